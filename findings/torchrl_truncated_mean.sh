#!/usr/bin/env bash
# The mean of torchrl's TruncatedNormal leaves the bounds. If the location is some spreads outside of them, the mass
# between the bounds is rounded up to a millionth before it divides: mean, entropy and log_prob are wrong by any factor,
# the variance turns negative. The mean is the deterministic sample, so a policy of -1..1 is tested with actions of 2.0.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. Bounds -1 and 1 (the default). Each
# value with the true one of a fine grid, then the integral of exp(log_prob), which should be 1. Seen:
#     location 0.5, spread 0.3: mean 0.47/0.47, stddev 0.27/0.27, entropy 0.08/0.08, integral 1
#     location 1.2, spread 0.1: mean 0.96/0.96, stddev 0.03/0.03, entropy -2.29/-2.29, integral 1
#     location 1.5, spread 0.1: mean 1.35/0.98, stddev 0.25/0.02, entropy -10.98/-2.98, integral 0.3
#     location 2, spread 0.1: mean 2.00/0.99, stddev 0.10/0.01, entropy -14.70/-3.62, integral 8e-18
#     location 5, spread 1.0: mean 0.64/0.77, stddev nan/0.22, entropy -0.25/-0.49, integral 1
#     tanh_loc=True, location 20, spread 0.1: mean 5.00/1.00, stddev 0.10/0.00, entropy -14.70/-4.99, integral 0
#     actor of location 2, spread 0.1: action 2.00 (in the action spec: False), sampled 1.00 (True)
# (`nan`: the variance is -0.58. Samples are clipped to the bounds. The truth is the normal density on 400,001 points,
# divided by its own integral.)
#
# What the docstring says: `low` and `high` are minimum and maximum "value of the distribution". It warns of unstable
# samples if the location is too far from 0; the scaling against that is off by default, and allows 5 (sixth line).
#
# Why it matters: DreamerV2's continuous actor is a truncated normal, and PPO takes one as well. A location that runs
# past a bound is the normal case of a saturated action. The evaluation then plays actions outside of the action space,
# which training never did; an environment that does not clip gives other physics. Entropy bonus and PPO's ratio use a
# wrong density.
# Expected before: a mean between the bounds and a density that integrates to 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TruncatedNormal

torch.set_num_threads(1)
torch.manual_seed(0)
print(*(f"{name} {version(name)}" for name in ("torchrl", "tensordict", "torch", "numpy")), sep=", ")
grid = torch.linspace(-1, 1, 400001, dtype=torch.float64)
step = 2 / 400000


def truth(location, spread):
    """Mean, standard deviation and entropy on the grid."""
    density = -0.5 * ((grid - location) / spread) ** 2
    density = (density - density.max()).exp()
    density[[0, -1]] /= 2  # trapezoids
    density /= density.sum() * step
    mean = (density * grid).sum() * step
    variance = (density * (grid - mean) ** 2).sum() * step
    inner = density[1:-1]
    entropy = -(inner * inner.clamp_min(1e-300).log()).sum() * step
    return mean.item(), variance.sqrt().item(), entropy.item()


seen = []
CASES = (0.5, 0.3, 0), (1.2, 0.1, 0), (1.5, 0.1, 0), (2.0, 0.1, 0), (5.0, 1.0, 0), (20.0, 0.1, 1)
for raw, spread, tanh_loc in CASES:
    options = {"tanh_loc": bool(tanh_loc)}
    policy = TruncatedNormal(torch.tensor([raw]), torch.tensor([spread]), **options)
    assert policy.sample((1000,)).abs().max() <= 1
    true = truth(policy.loc.item(), spread)
    exact = TruncatedNormal(torch.tensor([raw]).double(), torch.tensor([spread]).double(), **options)
    integral = exact.log_prob(grid[:, None]).exp().sum().item() * step
    mean, stddev, entropy = policy.mean.item(), policy.variance.sqrt().item(), policy.entropy().item()
    assert policy.deterministic_sample.item() == mean
    seen.append((mean, stddev, entropy, integral, *true))
    print(
        f"{'tanh_loc=True, ' * tanh_loc}location {raw:g}, spread {spread}: mean {mean:.2f}/{true[0]:.2f}, "
        f"stddev {stddev:.2f}/{true[1]:.2f}, entropy {entropy:.2f}/{true[2]:.2f}, integral {integral:.1g}"
    )

spec = Bounded(-1.0, 1.0, shape=(1,))
network = TensorDictModule(lambda x: (x, torch.full_like(x, 0.1)), in_keys=["observation"], out_keys=["loc", "scale"])
actor = ProbabilisticActor(network, in_keys=["loc", "scale"], spec=spec, distribution_class=TruncatedNormal)
actions = []
for kind in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM):
    with set_exploration_type(kind):
        actions.append(actor(TensorDict({"observation": torch.tensor([2.0])}))["action"])
inside = [spec.is_in(action) for action in actions]
print(
    f"actor of location 2, spread 0.1: action {actions[0].item():.2f} (in the action spec: {inside[0]}), "
    f"sampled {actions[1].item():.2f} ({inside[1]})"
)
right = all(abs(row[i] - row[i + 4]) < 0.01 for row in seen[:2] for i in (0, 1, 2))
right &= all(abs(row[3] - 1) < 0.01 for row in seen[:2])
right &= seen[2][0] > 1.3 and seen[3][0] > 1.99 and seen[5][0] > 4.9 and not seen[4][1] >= 0
right &= seen[2][2] < seen[2][6] - 5 and seen[2][3] < 0.5 and seen[3][3] < 1e-6
right &= abs(actions[0].item() - 2) < 1e-3 and inside == [False, True]
sys.exit(0 if right else 1)
PYTHON
