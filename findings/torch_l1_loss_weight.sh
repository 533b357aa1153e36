#!/usr/bin/env bash
# `F.l1_loss(input, target, weight=weight)` ignores its weights once a default device is set, be it with
# `torch.set_default_device` or with `with torch.device(...)`, and also for subclasses of Tensor. The branch for those
# hands the call on without `weight`. `mse_loss` and `huber_loss` keep theirs.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. Errors 1, 2, 3 and 4 with weights 1, 1, 0 and 0, as for two padded steps.
# The loss, and the sum of its absolute gradient for the two steps of weight 0. Seen:
#     l1_loss: 1.50, gradient of masked steps 0.00
#     l1_loss, with torch.device("cpu"): 2.50, gradient of masked steps 0.50
#     l1_loss, set_default_device("cpu"): 2.50, gradient of masked steps 0.50
#     l1_loss, a subclass of Tensor: 2.50, gradient of masked steps 0.50
#     mse_loss, set_default_device("cpu"): 2.50, gradient of masked steps 0.00
#     huber_loss, set_default_device("cpu"): 0.50, gradient of masked steps 0.00
# (Right are 1.5, 2.5 and 0.5. A default device is a mode that sees each call of a function, so that it goes the way of
# subclasses. Of all functions with such a branch in torch/nn/functional.py it is the only one that forgets an argument.)
#
# Why it matters: `torch.set_default_device("cuda")` at the start of a program is common. Importance weights of a
# prioritized replay, masks of padded steps and weights of samples then do nothing; no error or warning says so, and a
# test of the loss without a default device passes.
# Expected before: 1.5 each time; where a tensor lives does not change the loss.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F


class Subclass(torch.Tensor):
    pass


seen = []


def show(loss, case="", kind=torch.Tensor):
    errors = torch.tensor([1.0, 2.0, 3.0, 4.0]).as_subclass(kind).requires_grad_()
    value = loss(errors, torch.zeros(4), weight=torch.tensor([1.0, 1.0, 0.0, 0.0]))
    (gradient,) = torch.autograd.grad(value, errors)
    row = (round(value.item(), 4), round(gradient[2:].abs().sum().item(), 4))
    seen.append(row)
    print(f"{loss.__name__}{case}: {row[0]:.2f}, gradient of masked steps {row[1]:.2f}")


show(F.l1_loss)
with torch.device("cpu"):
    show(F.l1_loss, ', with torch.device("cpu")')
torch.set_default_device("cpu")
show(F.l1_loss, ', set_default_device("cpu")')
torch.set_default_device(None)
show(F.l1_loss, ", a subclass of Tensor", Subclass)
torch.set_default_device("cpu")
show(F.mse_loss, ', set_default_device("cpu")')
show(F.huber_loss, ', set_default_device("cpu")')
good = seen == [(1.5, 0.0), (2.5, 0.5), (2.5, 0.5), (2.5, 0.5), (2.5, 0.0), (0.5, 0.0)]
sys.exit(0 if good else 1)
PYTHON
