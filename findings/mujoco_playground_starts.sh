#!/usr/bin/env bash
# Episodes of MuJoCo Playground's DeepMind Control Suite do not start as those of dm_control, which it re-implements. The
# ball in the cup has one start. A random key that is used twice ties the spinner to the finger, and the cart's velocity
# to its position. Targets are placed after `mjx.forward`, so that the first observation shows one of the XML.
#
# 2026-11-30, playground 0.2.0, mujoco and mujoco-mjx 3.17.0, brax 0.14.2, jax 0.10.2 (CPU, `impl="jax"`), warp-lang
# 1.19.0, dm_control 1.0.50, numpy 2.4.6. `reset` with 256 keys, and 256 episodes of dm_control. Seen:
#     BallInCup: different starts 1 of 256 (dm_control 256)
#     CartpoleSwingup: rank correlation of the cart's position and velocity 1.00 (dm_control 0.09)
#     FingerSpin: rank correlation of the finger and the spinner 1.00 (dm_control 0.11)
#     FishSwim: 256 targets, in the first observations 1 (dm_control 256)
#     FishSwim: mean distance of the observed target from the target 0.47 m (dm_control 0)
# (JAX's draws of shapes () and (2,) from one key begin with the same number. `BallInCup.reset` does not use its key. The
# auto-reset keeps the first observation, for each later episode. The finger's turn tasks have such first targets too,
# and CartpoleBalance a cart whose velocity is that of the pole's angle.)
#
# Why it matters: returns are compared with those of dm_control, under the same names of tasks. A policy that is trained
# from one start of the ball fails from others, and no evaluation in Playground shows it. A world model, which is
# trained on all transitions, has one per episode in which the goal jumps, and the first action is for another goal.
# Expected before: the starts of dm_control. The README says "a re-implementation", with no word on other starts (in
# `humanoid.py` a TODO says that its joints do not vary).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile playground==0.2.0 mujoco==3.17.0 mujoco-mjx==3.17.0 brax==0.14.2 \
    jax==0.10.2 jaxlib==0.10.2 warp-lang==1.19.0 dm_control==1.0.50 numpy==2.4.6 2> "$folder/log" || { cat "$folder/log"; exit 1; }
MUJOCO_GL=disabled JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import jax
import mujoco
import numpy as np
from dm_control import suite
from mujoco_playground import dm_control_suite
from scipy.stats import spearmanr

for name in ("playground", "mujoco-mjx", "jax", "dm_control", "mujoco", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
EPISODES = 256


def playground(name, of=lambda state: ()):
    """The model, the starts of the episodes and what `of` takes from their states."""
    env = dm_control_suite.load(name, config_overrides={"impl": "jax"})

    def start(key):
        state = env.reset(key)
        return state.data.qpos, state.data.qvel, of(state)

    qpos, qvel, more = jax.jit(jax.vmap(start))(jax.random.split(jax.random.PRNGKey(0), EPISODES))
    return env.mj_model, np.asarray(qpos), np.asarray(qvel), [np.asarray(x) for x in more]


def control(domain, task, of=lambda env, step: ()):
    env = suite.load(domain, task, task_kwargs={"random": 0})
    starts = []
    for _ in range(EPISODES):
        step = env.reset()
        starts.append((env.physics.data.qpos.copy(), env.physics.data.qvel.copy(), of(env, step)))
    return (np.array(x) for x in zip(*starts))


def ranks(x, y):
    return abs(spearmanr(x, y).statistic)


def different(x):
    return len(np.unique(x.round(5), axis=0))


# The ball.
_, ball, _, _ = playground("BallInCup")
theirs, _, _ = control("ball_in_cup", "catch")
balls = different(ball), different(theirs)
print(f"BallInCup: different starts {balls[0]} of {EPISODES} (dm_control {balls[1]})")

# The cart: its position and its velocity.
_, qpos, qvel, _ = playground("CartpoleSwingup")
theirs = list(control("cartpole", "swingup"))
cart = ranks(qpos[:, 0], qvel[:, 0]), ranks(theirs[0][:, 0], theirs[1][:, 0])
print(f"CartpoleSwingup: rank correlation of the cart's position and velocity {cart[0]:.2f} (dm_control {cart[1]:.2f})")

# The finger: its first joint and the spinner.
_, qpos, _, _ = playground("FingerSpin")
theirs = list(control("finger", "spin"))
spinner = ranks(qpos[:, 0], qpos[:, 2]), ranks(theirs[0][:, 0], theirs[0][:, 2])
print(f"FingerSpin: rank correlation of the finger and the spinner {spinner[0]:.2f} (dm_control {spinner[1]:.2f})")

# The fish: the target of the episode, and the target according to the first observation.
model, qpos, _, (mocap, observed) = playground("FishSwim", lambda state: (state.data.mocap_pos[0], state.obs))
to_target = observed[:, 1 + model.nq - 7 :][:, :3]
data = mujoco.MjData(model)
shown, wrong = [], []
for i in range(EPISODES):
    data.qpos[:], data.mocap_pos[0] = qpos[i], mocap[i]
    mujoco.mj_forward(model, data)
    mouth, target = data.geom("mouth"), data.geom("target").xpos
    shown.append(mouth.xpos + mouth.xmat.reshape(3, 3) @ to_target[i])
    wrong.append(np.linalg.norm(shown[-1] - target))


def off(env, step):
    env.physics.forward()
    return [*env.physics.named.data.geom_xpos["target"], np.abs(step.observation["target"] - env.physics.mouth_to_target()).max()]


*_, theirs = control("fish", "swim", off)
targets = different(mocap), different(np.array(shown).round(3)), different(theirs[:, :3])
error = np.mean(wrong), theirs[:, 3].max()
print(f"FishSwim: {targets[0]} targets, in the first observations {targets[1]} (dm_control {targets[2]})")
print(f"FishSwim: mean distance of the observed target from the target {error[0]:.2f} m (dm_control {error[1]:.2g})")
found = balls == (1, EPISODES) and min(cart[0], spinner[0]) > 0.999 and max(cart[1], spinner[1]) < 0.3
sys.exit(0 if found and targets[1] == 1 and min(targets[0], targets[2]) > 250 and error[0] > 0.05 and error[1] < 1e-6 else 1)
PYTHON
