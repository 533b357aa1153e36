#!/usr/bin/env bash
# `EMA.forward_eval` of ema-pytorch does not evaluate. It reads the mode of the averaged model, runs it and puts the mode
# back, but never calls `eval()`. The copy is made in training mode: dropout stays on, and BatchNorm normalizes by the
# batch and takes it into its running statistics, which the average then holds.
#
# 2026-11-30, ema-pytorch 0.8.3, torch 2.13.0 (CPU), numpy 2.4.6. A network with dropout, one with BatchNorm, trained for
# 20 steps on normal inputs; 2 and 50 calls with a test batch of mean 3. Seen:
#     dropout, forward_eval: two calls differ by up to 3.4
#     dropout, ema_model.eval(): two calls differ by up to 0
#     BatchNorm, forward_eval: running mean from -0.00 to 2.97
#     BatchNorm, ema_model.eval(): running mean from -0.00 to -0.00
# (Its comment says "no grad + eval". The README does not mention it. `EMA.eval()` does switch the copy.)
#
# Why it matters: the averaged agent is what one evaluates, or what gives targets. With dropout its scores are noisy and
# too low; with BatchNorm a sample's output depends on the batch, one frame at a time gives nonsense, and each evaluation
# on a test set leaks into the model that is then saved. No gradient flows and no mode changes, so that nothing shows it.
# Expected before: the outputs of the averaged model in eval mode, and no buffer changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 ema-pytorch==0.8.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from ema_pytorch import EMA
from torch import nn

torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("ema-pytorch", "torch", "numpy")), sep=", ")


def averaged(layer):
    """EMA of a network with that layer, after some training steps."""
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Linear(64, 64))
    ema = EMA(model, beta=0.9, update_after_step=0, update_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(20):
        model(torch.randn(256, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    return ema


@torch.no_grad()
def evaluate(ema, batch):
    return ema.ema_model.eval()(batch)


good = True
torch.manual_seed(0)
test = 3 + torch.randn(64, 64)
for name, call in (("forward_eval", lambda ema, batch: ema.forward_eval(batch)), ("ema_model.eval()", evaluate)):
    ema = averaged(nn.Dropout(0.1))
    apart = (call(ema, test) - call(ema, test)).abs().max().item()
    print(f"dropout, {name}: two calls differ by up to {apart:.2g}")
    good &= apart > 0.1 if name == "forward_eval" else apart == 0
for name, call in (("forward_eval", lambda ema, batch: ema.forward_eval(batch)), ("ema_model.eval()", evaluate)):
    ema = averaged(nn.BatchNorm1d(64))
    norm = ema.ema_model[0]
    before = norm.running_mean.mean().item()
    for _ in range(50):
        call(ema, test)
    after = norm.running_mean.mean().item()
    print(f"BatchNorm, {name}: running mean from {before:.2f} to {after:.2f}")
    good &= abs(before) < 0.1 and (after > 2.8 if name == "forward_eval" else after == before)
sys.exit(0 if good else 1)
PYTHON
