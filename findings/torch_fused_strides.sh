#!/usr/bin/env bash
# PyTorch's fused optimizers on a CPU (`fused=True`: Adam, AdamW, SGD, Adagrad) ignore strides. They pair a weight with
# its gradient and its moments in the order of memory; where the layouts differ, each weight takes the step of another
# one, silently. The default and `foreach=True` pair them by index.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. Largest difference from the default after one step of a 3 -> 8
# convolution's weights, learning rate 0.1. "gradient": `torch.autograd.grad` with channels-last images, as frames
# (B, H, W, C) that were permuted to (B, C, H, W) are; the gradient is channels-last, the weight is not. "state": the
# optimizer's state of a contiguous model, saved and loaded for `model.to(memory_format=torch.channels_last)`. Seen:
#     Adam: gradient 0.2, state 0.11
#     AdamW: gradient 0.2, state 0.11
#     SGD: gradient 0.0072, state 0.017
#     Adagrad: gradient 0.2, state 0.012
# (`.backward()` gives the gradient the layout of the weight, so that a plain training loop is not touched.)
#
# Why it matters: steps of Adam have their usual size, so that nothing but the learning curve shows it. Meta-gradients,
# gradients per task and checkpoints that are resumed with another memory format run into it.
# Expected before: equal up to rounding, whatever the layout, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
frames = torch.randn(16, 32, 32, 3).permute(0, 3, 1, 2)
initial = torch.nn.Conv2d(3, 8, 4, stride=2, bias=False).state_dict()
settings = {"Adam": {}, "AdamW": {}, "SGD": {"momentum": 0.9}, "Adagrad": {}}


def model_and_optimizer(name, memory_format=torch.contiguous_format, **how):
    model = torch.nn.Conv2d(3, 8, 4, stride=2, bias=False).to(memory_format=memory_format)
    model.load_state_dict(initial)
    return model, getattr(torch.optim, name)(model.parameters(), lr=0.1, **settings[name], **how)


def gradient(name, **how):
    model, optimizer = model_and_optimizer(name, **how)
    (model.weight.grad,) = torch.autograd.grad(model(frames).square().mean(), model.weight)
    optimizer.step()
    return model.weight.detach()


def state(name, **how):
    model, optimizer = model_and_optimizer(name)
    for _ in range(3):
        optimizer.zero_grad()
        model(frames).square().mean().backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, sys.argv[1] + "/saved.pt")
    model, optimizer = model_and_optimizer(name, torch.channels_last, **how)
    saved = torch.load(sys.argv[1] + "/saved.pt")
    for group in saved["optimizer"]["param_groups"]:
        group["fused"], group["foreach"] = how.get("fused"), how.get("foreach")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    model(frames).square().mean().backward()
    optimizer.step()
    return model.weight.detach()


good = True
for name in settings:
    off = {case: (case(name, fused=True) - case(name)).abs().max().item() for case in (gradient, state)}
    listed = {case: (case(name, foreach=True) - case(name)).abs().max().item() for case in (gradient, state)}
    print(f"{name}: gradient {off[gradient]:.2g}, state {off[state]:.2g}")
    good &= min(off.values()) > 1e-4 and max(listed.values()) < 1e-6
sys.exit(0 if good else 1)
PYTHON
