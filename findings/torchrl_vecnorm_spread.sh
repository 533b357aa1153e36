#!/usr/bin/env bash
# torchrl's VecNormV2 squeezes observations whose mean is not 0. Its moving averages of x and x^2 start at 0 and are
# corrected for that, but only after the variance was taken as the difference of the raw ones. With c = 1 - decay^steps
# it is too large by (1 - c) mean^2. At the default decay that lasts for tens of thousands of steps.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. Independent observations of spread 1 and
# mean 0, 3, 100; spread of the normalized ones in steps 500 to 1,000 and 4,500 to 5,000, then `scale` at the end. Seen:
#     VecNormV2: 1.03 0.33 0.01; 0.96 0.38 0.01; scale 1.02 2.54 77.9
#     VecNormV2(decay=1.0): 1.03 1.05 1.00; 0.96 0.97 1.04; scale 1.02 0.99 1.00
#     VecNorm, the class it replaces: 1.03 1.05 1.00; 0.96 0.97 1.05; scale 1.02 0.99 0.99
#     root of 1 + decay^steps mean^2 at the end: 1.00 2.54 77.9
# (The mean is right. VecNormV2 is documented as "almost drop-in replacement" of VecNorm; the default of both is 0.9999.)
#
# Why it matters: heights, joint angles, pressures and rewards of one sign have means of several spreads. Such inputs
# reach the network shrunk to a third, or to nothing, and grow as training goes on: it reads as slow learning, and makes
# a policy drift. A frozen copy for evaluation, or a checkpoint, keeps the scale of its moment. Rewards too are shrunk.
# Expected before: a spread of 1 after some hundred steps, which is what a bias correction is for.
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
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv, VecNorm, VecNormV2

torch.set_num_threads(1)
STEPS, DECAY = 5000, 0.9999
MEANS = torch.tensor([0.0, 3.0, 100.0])
print(*(f"{name} {version(name)}" for name in ("torchrl", "tensordict", "torch", "numpy")), sep=", ")


class Noise(EnvBase):
    """Each observation is a new draw of three normal numbers, and no episode ends."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded((3,)))
        self.action_spec = Unbounded((1,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict):
        return TensorDict({"observation": MEANS + torch.randn(3)}, [])

    def _step(self, tensordict):
        ending = {"done": torch.zeros(1, dtype=torch.bool), "terminated": torch.zeros(1, dtype=torch.bool)}
        return TensorDict({"observation": MEANS + torch.randn(3), "reward": torch.zeros(1), **ending}, [])

    def _set_seed(self, seed):
        torch.manual_seed(seed)


def run(transform):
    """Spread of the normalized observations early and late, and the scale in use at the end."""
    env = TransformedEnv(Noise(), transform)
    env.set_seed(0)
    data = env.rollout(STEPS)["next", "observation"]
    return data[500:1000].std(0), data[-500:].std(0), transform.scale["observation"], data[-500:].mean(0)


seen = []
for name, transform in (
    ("VecNormV2", VecNormV2(in_keys=["observation"])),
    ("VecNormV2(decay=1.0)", VecNormV2(in_keys=["observation"], decay=1.0)),
    ("VecNorm, the class it replaces", VecNorm(in_keys=["observation"], new_api=False)),
):
    early, late, scale, mean = run(transform)
    seen.append((early, late, scale, mean))
    print(f"{name}: {' '.join(f'{x:.2f}' for x in early)}; {' '.join(f'{x:.2f}' for x in late)};", end="")
    print(" scale", *(f"{x:.3g}" if x > 10 else f"{x:.2f}" for x in scale.flatten().tolist()))
predicted = (1 + DECAY**STEPS * MEANS**2).sqrt()
print("root of 1 + decay^steps mean^2 at the end:", *(f"{x:.3g}" if x > 10 else f"{x:.2f}" for x in predicted.tolist()))
one = torch.ones(3)
good = all(torch.allclose(value.flatten(), one, atol=0.15) for values in seen[1:] for value in values[:3])
good &= torch.allclose(seen[0][2].flatten(), predicted, rtol=0.1) and abs(seen[0][1][0] - 1) < 0.15
good &= seen[0][0][1] < 0.4 and seen[0][0][2] < 0.03 and seen[0][1][2] < 0.03 and seen[0][3].abs().max() < 0.2
sys.exit(0 if good else 1)
PYTHON
