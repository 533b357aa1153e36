#!/usr/bin/env bash
# The MPPI planner of mbrl-lib ignores its `sigma`. It draws noise, scales it by sigma and the distance to the bounds, and
# then overwrites the result with actions made from the unscaled noise: whatever sigma and the action range are, the
# noise is a normal one of standard deviation 1, cut off at 2, times beta.
#
# 2026-11-30, mbrl 0.2.0, torch 2.13.0 (CPU), gymnasium 0.26.3, hydra-core 1.3.2 (mbrl asks for 1.0.3, which no longer
# imports on Python 3.11), numpy 2.4.6. 1,000 sequences of the first iteration, beta 1. Standard deviation of their
# first actions, and the share of these that lies on a bound. Seen:
#     MPPI, actions in +-0.1: sigma 0.01: 0.097 92%, sigma 0.1: 0.097 92%, sigma 1: 0.097 92%, sigma 10: 0.097 92%
#     MPPI, actions in +-1: sigma 0.01: 0.7 28%, sigma 0.1: 0.7 28%, sigma 1: 0.7 28%, sigma 10: 0.7 28%
#     MPPI, actions in +-20: sigma 0.01: 0.86 0%, sigma 0.1: 0.86 0%, sigma 1: 0.86 0%, sigma 10: 0.86 0%
#     MPPI, beta 0.5 in +-1: 0.43 0%
#     CEM of the same library: actions in +-0.1: 0.043 0%, actions in +-1: 0.43 0%, actions in +-20: 8.6 0%
#     plans of sigma 0.01 and 10 with the same seed: the same, to the last bit
#
# Why it matters: a sweep over sigma compares seeds. With small action ranges nearly all candidates are bang-bang; with
# ranges as torques of 20 the planner never looks beyond 2, and loses to CEM for that reason alone.
# Documented: "sigma (float): noise scaling term used in action sampling". Expected before: a spread that grows with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 gymnasium==0.26.3 hydra-core==1.3.2 omegaconf==2.3.1 \
    termcolor==3.3.0 tqdm==4.70.1 numpy==2.4.6
"$folder/venv/bin/pip" -q install --no-compile --no-deps mbrl==0.2.0
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from mbrl.planning import CEMOptimizer, MPPIOptimizer

HORIZON, BOUNDS, SIGMAS = 10, (0.1, 1.0, 20.0), (0.01, 0.1, 1.0, 10.0)
torch.set_num_threads(1)


def search(kind, bound, **options):
    """(standard deviation of the first actions, share on a bound, plan) of one iteration from the same seed."""
    torch.manual_seed(0)
    optimizer = kind(
        num_iterations=1,
        population_size=1000,
        lower_bound=[[-bound]] * HORIZON,
        upper_bound=[[bound]] * HORIZON,
        device=torch.device("cpu"),
        **options,
    )
    drawn = []

    def objective(population):
        drawn.append(population[:, 0].clone())
        return -(population - 0.05).pow(2).sum((1, 2))

    plan = optimizer.optimize(objective, x0=torch.zeros(HORIZON, 1))
    return drawn[0].std().item(), (drawn[0].abs() >= bound).float().mean().item(), plan


print("mbrl", version("mbrl"), "torch", torch.__version__)
good = True
for bound in BOUNDS:
    seen = [search(MPPIOptimizer, bound, gamma=1.0, sigma=sigma, beta=1.0) for sigma in SIGMAS]
    texts = [f"sigma {sigma:g}: {spread:.2g} {share:.0%}" for sigma, (spread, share, _) in zip(SIGMAS, seen)]
    print(f"MPPI, actions in +-{bound:g}:", ", ".join(texts))
    good &= all(each[0] == seen[0][0] and torch.equal(each[2], seen[0][2]) for each in seen)
    good &= 0.8 < seen[0][0] < 0.95 if bound == 20 else seen[0][1] > 0.2
half = search(MPPIOptimizer, 1.0, gamma=1.0, sigma=1.0, beta=0.5)
print(f"MPPI, beta 0.5 in +-1: {half[0]:.2g} {half[1]:.0%}")
other = [search(CEMOptimizer, bound, elite_ratio=0.1, alpha=0.1) for bound in BOUNDS]
texts = [f"actions in +-{bound:g}: {spread:.2g} {share:.0%}" for bound, (spread, share, _) in zip(BOUNDS, other)]
print("CEM of the same library:", ", ".join(texts))
print("plans of sigma 0.01 and 10 with the same seed:", "the same, to the last bit" if good else "different")
good &= 0.4 < half[0] < 0.5 and all(0.4 < spread / bound < 0.5 for bound, (spread, _, _) in zip(BOUNDS, other))
sys.exit(0 if good else 1)
PYTHON
