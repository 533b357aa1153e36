#!/usr/bin/env bash
# A vector quantizer with `affine_param=True` (vector-quantize-pytorch) keeps learning in eval mode. Each forward pass
# moves its running mean and variance of the inputs, also after `eval()`, under `no_grad` and with `freeze_codebook=True`,
# and the codebook is scaled by them. The codes of an image then depend on which images were evaluated before it.
#
# 2026-11-30, vector-quantize-pytorch 1.32.0, torch 2.13.0 (CPU), numpy 2.4.6. 64 codes of 8 dimensions, 200 training
# batches of normal vectors; then a test set is encoded before and after 100 eval passes over another batch, 64 vectors
# with mean 1 and half the spread. Share of codes that stay, mean squared error before and after, buffers that moved; seen:
#     plain, eval(): 1.00 0.437 0.437, none
#     affine, eval(): 0.31 0.437 0.714, batch_mean batch_variance
#     affine, eval(), freeze_codebook=True: 0.31 0.437 0.714, batch_mean batch_variance
#     affine, eval(), buffers put back: 1.00 0.437 0.437, none
# (The codebook's own mean and variance are updated in training only. The docstring, README say nothing of eval mode.)
#
# Why it matters: in a world model with discrete latents, acting and evaluating change the tokens: a policy reads others
# after a long episode than at its start, evaluating before a checkpoint and after it give different models, and data
# that were tokenized ahead of time do not match the model. No gradient, flag or log shows it; a test in eval mode is not
# repeatable. Expected before: eval mode changes no buffer, as in BatchNorm and in the same class without the option.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 vector-quantize-pytorch==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import copy
import sys
from importlib.metadata import version

import torch
from vector_quantize_pytorch import VectorQuantize

torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("vector-quantize-pytorch", "torch", "numpy")), sep=", ")


@torch.no_grad()
def run(affine, restore=False, **options):
    """Share of the test set's codes that stay, its error before and after 100 eval passes, moved buffers."""
    torch.manual_seed(0)
    model = VectorQuantize(dim=8, codebook_size=64, affine_param=affine)
    for _ in range(200):
        model(torch.randn(64, 16, 8))
    model.eval()
    test, other = torch.randn(64, 16, 8), 1 + 0.5 * torch.randn(1, 64, 8)
    start = copy.deepcopy(model.state_dict())
    old, old_codes, _ = model(test, **options)
    for _ in range(100):
        model(other, **options)
    if restore:
        model.load_state_dict(start)
    moved = [name.split(".")[-1] for name, value in model.state_dict().items() if not torch.equal(value, start[name])]
    new, new_codes, _ = model(test, **options)
    same = (old_codes == new_codes).float().mean().item()
    return same, (old - test).square().mean().item(), (new - test).square().mean().item(), moved


seen = {}
for name, affine, options in (
    ("plain, eval()", False, {}),
    ("affine, eval()", True, {}),
    ("affine, eval(), freeze_codebook=True", True, {"freeze_codebook": True}),
    ("affine, eval(), buffers put back", True, {"restore": True}),
):
    same, before, after, moved = seen[name] = run(affine, **options)
    print(f"{name}: {same:.2f} {before:.3f} {after:.3f},", *(moved or ["none"]))
kinds = list(seen.values())
good = all(kind[0] == 1 and kind[1] == kind[2] and not kind[3] for kind in (kinds[0], kinds[3]))
good &= all(kind[0] < 0.8 and kind[2] > 1.05 * kind[1] and "batch_variance" in kind[3] for kind in kinds[1:3])
sys.exit(0 if good else 1)
PYTHON
