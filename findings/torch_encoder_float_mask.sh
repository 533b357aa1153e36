#!/usr/bin/env bash
# PyTorch's transformer encoder reads a float mask otherwise in evaluation than in training. In training it is added to
# the scores, as documented. In `eval()` without gradients a fast path takes each nonzero entry for "masked": with ALiBi
# or any other bias each time step then sees itself alone, and where no entry is 0 the output is NaN. Nothing is said.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. `TransformerEncoder` of two layers, batch_first, causal, with the bias
# -0.5 for each step of age. It learns in 600 updates to name the symbol of the step before, one of 8. Loss on the same
# batch (chance is 2.08). Seen:
#     train(), no_grad: 0.00157
#     eval(), gradients: 0.00157
#     eval(), no_grad: 8.37
#     eval(), no_grad, each step sees itself alone: 8.37
#     eval(), no_grad, 1e-9 added to the mask: nan
#     eval(), no_grad, fast path off: 0.00157
# (There is no dropout. "Fast path off" is `torch.backends.mha.set_fastpath_enabled(False)`. A layer alone does the same,
# also for a float `src_key_padding_mask`; nn.MultiheadAttention alone does not. No warning is printed.)
#
# Documentation: "If a FloatTensor is provided, it will be added to the attention weight" (nn.Transformer, of all masks).
# The conditions for the fast path in nn.TransformerEncoderLayer name no type of mask.
#
# Why it matters: biases for recency, distance or episode borders are common in transformer world models and policies.
# The training loss is right, and all that runs without gradients is not: evaluation, imagination, acting, targets. It
# looks like overfitting or like errors that compound in a rollout. Masks of 0 and -inf only are read alike.
# Expected before: the same output in eval() as in train() without dropout.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch

torch.set_num_threads(1)
LENGTH, WIDTH, SYMBOLS = 16, 32, 8
torch.manual_seed(0)
age = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
causal = torch.where(age >= 0, 0.0, float("-inf"))
alibi = torch.where(age >= 0, -0.5 * age, float("-inf"))  # added to the scores: 0 for now, -0.5 for the step before
alone = torch.where(age == 0, 0.0, float("-inf"))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inputs = torch.nn.Embedding(SYMBOLS, WIDTH)
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.0, batch_first=True)
        self.body = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.outputs = torch.nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols, mask):
        return self.outputs(self.body(self.inputs(symbols), mask=mask))


def loss(model, symbols, mask):
    """The target is the symbol of the step before."""
    return torch.nn.functional.cross_entropy(model(symbols, mask)[:, 1:].flatten(0, 1), symbols[:, :-1].flatten())


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(600):
    optimizer.zero_grad()
    value = loss(model, torch.randint(SYMBOLS, (32, LENGTH)), alibi)
    value.backward()
    optimizer.step()
symbols = torch.randint(SYMBOLS, (256, LENGTH))
seen = {}


def show(name, mask):
    with torch.no_grad():
        seen[name] = loss(model, symbols, mask).item()
    print(f"{name}: {seen[name]:.3g}")


show("train(), no_grad", alibi)
model.eval()
seen["eval(), gradients"] = loss(model, symbols, alibi).item()
print(f"eval(), gradients: {seen['eval(), gradients']:.3g}")
show("eval(), no_grad", alibi)
show("eval(), no_grad, each step sees itself alone", alone)
show("eval(), no_grad, 1e-9 added to the mask", alibi + 1e-9)
torch.backends.mha.set_fastpath_enabled(False)
show("eval(), no_grad, fast path off", alibi)
right = [seen[name] for name in ("train(), no_grad", "eval(), gradients", "eval(), no_grad, fast path off")]
wrong, single = seen["eval(), no_grad"], seen["eval(), no_grad, each step sees itself alone"]
good = max(right) < 0.1 and max(right) - min(right) < 1e-3
good &= wrong > 2 and abs(wrong - single) < 1e-3
good &= seen["eval(), no_grad, 1e-9 added to the mask"] != seen["eval(), no_grad, 1e-9 added to the mask"]
sys.exit(0 if good else 1)
PYTHON
