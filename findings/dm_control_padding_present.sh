#!/usr/bin/env bash
# dm_control's delayed observations are not delayed at the start of an episode if they are padded with the initial value.
# `ObservationPadding.INITIAL_VALUE` puts the first array itself into the buffer, not a copy as with all later values. A
# feature of the simulator is a view of its memory: until the first delayed value arrives, the agent sees the present.
# A stack of values without a delay has the present where the oldest ones should be.
#
# 2026-12-01, dm_control 1.0.50, mujoco 3.17.0, numpy 2.4.6. A slider that starts at 5 and moves by 0.02 in each control
# step of 10 simulation steps; delay of 50 simulation steps, i.e. 5 control steps. Then the same with a stack of three
# values, one of each control step. `copied`: an observable that returns a copy of the same value. Seen:
#     position: 5.00 5.02 5.04 5.06 5.08 5.10 5.12 5.14
#     delay, feature: 5.00 5.02 5.04 5.06 5.08 5.00 5.02 5.04
#     delay, copied: 5.00 5.00 5.00 5.00 5.00 5.00 5.02 5.04
#     stack after one step, feature: 5.02 5.00 5.02
#     stack after one step, copied: 5.00 5.00 5.02
# The Ant of dm_control.locomotion in its task GoToTarget, random actions, delay of 10 control steps. How many of its 12
# features that moved are equal to those of an env without a delay, and to those of the first step:
#     step 9: of 12: 10 to the present, 2 to the first
#     step 10: of 12: 0 to the present, 12 to the first
# (The other two are computed, and so are no views.)
#
# Why it matters: a study of latency gives the agent the true state for as long as the delay lasts, and then sets it back
# in time, in each episode. A recurrent or world model learns that jump, and a policy can act on the undelayed state
# just where an episode is decided. Differences of a stack, i.e. velocities, have the wrong sign at the start.
# Documented: "If `INITIAL_VALUE` then the buffer is initially filled with the first observation values."
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6 2> "$folder/log" || { cat "$folder/log"; exit 1; }
MUJOCO_GL=disable "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import numpy as np
from dm_control import composer, mjcf
from dm_control.composer.observation import observable
from dm_control.locomotion.arenas import floors
from dm_control.locomotion.tasks import go_to_target
from dm_control.locomotion.walkers import ant

PADDING = composer.ObservationPadding.INITIAL_VALUE


class Slider(composer.Entity):
    def _build(self):
        self._model = mjcf.RootElement(model="slider")
        body = self._model.worldbody.add("body", name="body")
        self.joint = body.add("joint", name="joint", type="slide", axis=(1, 0, 0))
        body.add("geom", type="sphere", size=(0.1,), mass=1)

    def _build_observables(self):
        return Observables(self)

    @property
    def mjcf_model(self):
        return self._model


class Observables(composer.Observables):
    @composer.observable
    def feature(self):
        return observable.MJCFFeature("qpos", self._entity.joint)

    @composer.observable
    def copied(self):
        return observable.Generic(lambda physics: np.array(physics.bind(self._entity.joint).qpos))


class Slide(composer.Task):
    def __init__(self, **options):
        self._arena, self.slider = composer.Arena(), Slider()
        self._arena.attach(self.slider)
        self.slider.observables.feature.configure(enabled=True, **options)
        self.slider.observables.copied.configure(enabled=True, **options)
        self.set_timesteps(control_timestep=0.02, physics_timestep=0.002)

    @property
    def root_entity(self):
        return self._arena

    def initialize_episode(self, physics, random_state):
        physics.bind(self.slider.joint).qpos = 5.0
        physics.bind(self.slider.joint).qvel = 1.0

    def get_reward(self, physics):
        return 0.0


def play(steps, **options):
    """Positions and both observations, at reset and after each step."""
    env = composer.Environment(Slide(**options), random_state=0, delayed_observation_padding=PADDING)
    time_step, seen = env.reset(), []
    for _ in range(steps):
        values = {name.split("/")[-1]: np.array(value).ravel() for name, value in time_step.observation.items()}
        seen.append((env.physics.data.qpos[0].copy(), values["feature"], values["copied"]))
        time_step = env.step(np.zeros(0))
    return seen


def text(values):
    return " ".join(f"{value:.2f}" for value in values)


print("dm_control", version("dm_control"), "mujoco", version("mujoco"), "numpy", np.__version__)
delayed = play(8, delay=50)
position, feature, copied = (np.array([np.ravel(step[i])[0] for step in delayed]) for i in range(3))
print("position:", text(position))
print("delay, feature:", text(feature))
print("delay, copied:", text(copied))
_, stack, stack_copied = play(2, buffer_size=3, update_interval=10)[1]
print("stack after one step, feature:", text(stack))
print("stack after one step, copied:", text(stack_copied))


def make(**options):
    walker = ant.Ant()
    task = go_to_target.GoToTarget(walker, floors.Floor(), physics_timestep=0.005, control_timestep=0.025)
    for item in walker.observables.as_dict().values():
        if item.enabled:
            item.configure(**options)
    return composer.Environment(task, random_state=0, delayed_observation_padding=PADDING)


now, late = make(), make(delay=50)
step_now, step_late = now.reset(), late.reset()
first = {name: np.array(value) for name, value in step_late.observation.items()}
moving = [name for name in first if "target" not in name]
generator, counts = np.random.RandomState(0), {}
for step in range(1, 11):
    action = generator.uniform(-1, 1, now.action_spec().shape)
    step_now, step_late = now.step(action), late.step(action)
    if step in (9, 10):
        values = [(step_now.observation[name], step_late.observation[name], first[name]) for name in moving]
        values = [item for item in values if not np.allclose(item[0], item[2])]  # those that moved
        present = sum(np.array_equal(item[1], item[0]) for item in values)
        counts[step] = len(values), present, sum(np.array_equal(item[1], item[2]) for item in values)
        print(f"step {step}: of {len(values)}: {present} to the present, {counts[step][2]} to the first")
good = np.allclose(position, 5 + 0.02 * np.arange(8))
good &= np.allclose(feature[:5], position[:5]) and np.allclose(feature[5:], position[:3])
good &= np.allclose(copied[:5], 5) and np.allclose(copied[5:], position[:3])
good &= np.allclose(stack, [5.02, 5, 5.02]) and np.allclose(stack_copied, [5, 5, 5.02])
good &= counts[9][0] >= 10 and counts[9][1] >= 8 and counts[10][1] == 0 and counts[10][2] == counts[10][0]
sys.exit(0 if good else 1)
PYTHON
