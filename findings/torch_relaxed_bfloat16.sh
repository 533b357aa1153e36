#!/usr/bin/env bash
# PyTorch's RelaxedOneHotCategorical never draws a class of small probability if its logits are bfloat16, and too rarely
# if they are float16. Its Gumbel noise comes from uniform numbers of that dtype, cut at eps and 1 - eps: in bfloat16 it is
# between -1.6 and 4.8. `F.gumbel_softmax`, which samples the same distribution, and Categorical are right in each dtype.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. How often what is named is the largest entry of a sample (temperature 1),
# relative to its probability with the same logits in float32. Seen:
#     1% uniform of 32, bfloat16: RelaxedOneHotCategorical 0.00, gumbel_softmax 0.99, Categorical 1.00
#     1% uniform of 32, float16: RelaxedOneHotCategorical 0.16, gumbel_softmax 0.95, Categorical 1.00
#     1% uniform of 32, float32: RelaxedOneHotCategorical 1.01, gumbel_softmax 0.96, Categorical 1.00
#     0.1 of two, bfloat16: RelaxedOneHotCategorical 0.97, gumbel_softmax 1.02, Categorical 1.00
#     0.1 of two, float16: RelaxedOneHotCategorical 1.00, gumbel_softmax 1.01, Categorical 1.01
#     0.1 of two, float32: RelaxedOneHotCategorical 1.00, gumbel_softmax 1.00, Categorical 0.99
#     0.01 of two, bfloat16: RelaxedOneHotCategorical 0.75, gumbel_softmax 1.01, Categorical 1.01
#     0.01 of two, float16: RelaxedOneHotCategorical 0.98, gumbel_softmax 1.00, Categorical 1.00
#     0.01 of two, float32: RelaxedOneHotCategorical 0.98, gumbel_softmax 0.99, Categorical 1.02
#     0.001 of two, bfloat16: RelaxedOneHotCategorical 0.00, gumbel_softmax 1.00, Categorical 1.01
#     0.001 of two, float16: RelaxedOneHotCategorical 0.68, gumbel_softmax 0.98, Categorical 1.00
#     0.001 of two, float32: RelaxedOneHotCategorical 1.02, gumbel_softmax 0.98, Categorical 1.01
# ("1% uniform of 32": 0.99 of one class and 0.01 of all, as DreamerV3 has it; counted is all but that one class.)
#
# Why it matters: under `torch.autocast` the logits of a head have this dtype. A class whose logit is 6.5 below the best is
# drawn with probability 0, not 0.0015, while `log_prob`, entropy and KL count it: a policy stops exploring, and
# what was to keep the latents' classes alive does nothing. The two ways to write one layer train differently.
# Expected before: as with `F.gumbel_softmax`, up to rounding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, RelaxedOneHotCategorical

torch.manual_seed(0)
torch.set_num_threads(1)


def rare(kind, logits, draws):
    """How often another class than the last one wins, relative to the softmax of the same logits."""
    if kind == "RelaxedOneHotCategorical":
        temperature = torch.ones((), dtype=logits.dtype)
        drawn = RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False).rsample((draws,)).argmax(-1)
    elif kind == "gumbel_softmax":
        drawn = F.gumbel_softmax(logits.expand(draws, -1)).argmax(-1)
    else:
        drawn = Categorical(logits=logits, validate_args=False).sample((draws,))
    last = len(logits) - 1
    return ((drawn != last).double().mean() / logits.double().softmax(-1)[:last].sum()).item()


unimix = torch.full((32,), 0.01 / 32)
unimix[-1] += 0.99
cases = {"1% uniform of 32": (unimix, 200000), "0.1 of two": (torch.tensor([0.1, 0.9]), 200000),
         "0.01 of two": (torch.tensor([0.01, 0.99]), 1000000), "0.001 of two": (torch.tensor([0.001, 0.999]), 3000000)}
kinds = ("RelaxedOneHotCategorical", "gumbel_softmax", "Categorical")
good = True
for name, (probs, draws) in cases.items():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        seen = [rare(kind, probs.log().to(dtype), draws) for kind in kinds]
        print(f"{name}, {str(dtype)[6:]}:", ", ".join(f"{kind} {value:.2f}" for kind, value in zip(kinds, seen)))
        good &= all(abs(value - 1) < 0.12 for value in seen[dtype != torch.float32:])
        if dtype == torch.bfloat16 and name in ("1% uniform of 32", "0.001 of two"):
            good &= seen[0] == 0
sys.exit(0 if good else 1)
PYTHON
