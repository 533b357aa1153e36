#!/usr/bin/env bash
# highway-env's `policy_frequency` is what it says only where it divides `simulation_frequency` (15 Hz by default). Else
# a step simulates less time than 1 / policy_frequency, while the clock of the episode counts all of it: with 10 Hz a
# step is 1/15 s and `duration` ends the episode after two thirds of its seconds. From 8 to 15 Hz each step is the same.
#
# 2026-11-30, highway-env 1.12.1, gymnasium 1.4.0, numpy 2.4.6. highway-v0 with no other cars, action IDLE, duration
# 20 s; simulated seconds are meters driven by speed. Seen:
#     policy_frequency  step should be  step is    episode should be  episode is
#      1 Hz             1.0000 s        1.0000 s   20.0 s             20.00 s
#      2 Hz             0.5000 s        0.4667 s   20.0 s             18.67 s
#      4 Hz             0.2500 s        0.2000 s   20.0 s             16.00 s
#      5 Hz             0.2000 s        0.2000 s   20.0 s             20.20 s
#      8 Hz             0.1250 s        0.0667 s   20.0 s             10.67 s
#     10 Hz             0.1000 s        0.0667 s   20.0 s             13.33 s
#     15 Hz             0.0667 s        0.0667 s   20.0 s             20.07 s
# (A step runs int(simulation_frequency // policy_frequency) frames of 1 / simulation_frequency; the clock is advanced
# by 1 / policy_frequency. The last digits of 5 and 15 Hz are a step that the rounding of the clock's sum adds.)
#
# What the default configuration says: "policy_frequency: 1, # [Hz]" and "duration: 40, # [s]"; nothing of a condition, and no
# warning is given.
#
# Why it matters: a comparison of control rates compares other episodes than it says: at 8 Hz the car drives half as far
# as at 5 Hz and has half the time to crash, and returns are sums over more steps of less time each. The discount per
# second and the speed of videos are off as well.
# Expected before: steps of 1 / policy_frequency, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile highway-env==1.12.1 gymnasium==1.4.0 numpy==2.4.6 \
    2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import gymnasium as gym
import highway_env  # noqa: F401

for name in ("highway-env", "gymnasium", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
DURATION, IDLE = 20, 1
IS = {1: 15, 2: 7, 4: 3, 5: 3, 8: 1, 10: 1, 15: 1}  # Frames of 1/15 s that a step has.
right = True
print("policy_frequency  step should be  step is    episode should be  episode is")
for frequency, frames in IS.items():
    config = {"policy_frequency": frequency, "duration": DURATION, "vehicles_count": 0}
    env = gym.make("highway-v0", config=config)
    env.reset(seed=0)
    car = env.unwrapped.vehicle
    seconds, steps, over = 0.0, 0, False
    while not over:
        before, speed = car.position[0], car.speed
        _, _, terminated, truncated, _ = env.step(IDLE)
        seconds += (car.position[0] - before) / speed
        steps += 1
        over = terminated or truncated
    step = seconds / steps
    print(f"{frequency:2} Hz             {1 / frequency:.4f} s        {step:.4f} s", end="   ")
    print(f"{DURATION:.1f} s             {seconds:.2f} s")
    right &= truncated and abs(steps - DURATION * frequency) <= 1 and abs(step - frames / 15) < 1e-3
    right &= (abs(step * frequency - 1) < 1e-2) == (15 % frequency == 0)
sys.exit(0 if right else 1)
PYTHON
