"""The suite's tasks: all run, an episode depends on (seed, episode, actions) only, hooks and frames as documented."""

import os
import subprocess
import sys
from pathlib import Path

import agents
import mujoco
import numpy as np
import old_floors
import pytest

import dreamer
import envs
import models
from envs import subtle
from envs.dmc import DMC, TASKS, suite, texture
from run import collect

ROOT = Path(__file__).resolve().parent.parent


def actions_of(env, count, seed=0):
    return [{"action": a} for a in np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape))]


def model_bytes(env):
    model = env.physics.model.ptr
    content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return content


@pytest.mark.parametrize("domain, task", suite.BENCHMARKING)
def test_every_benchmark_task_runs(domain, task):
    env = envs.make(f"dmc_{domain}_{task}", size=(64, 64))
    obs = [env.reset()]
    for action in actions_of(env, 3):
        o, reward, done, _ = env.step(action)
        assert 0 <= reward <= 2 and not done
        obs.append(o)
    for o in obs:
        for key, space in env.observation_space.items():
            assert space.contains(o[key]), key
    images = [o["image"] for o in obs]
    assert images[0].std() > 5  # a scene, not a blank frame
    assert any((images[0] != other).any() for other in images[1:])  # and it moves
    env.close()


@pytest.mark.parametrize(
    "domain, task",
    [t for t in suite.ALL_TASKS if t[0] != "dog"] + [pytest.param("dog", "fetch", marks=pytest.mark.slow)],
)
def test_an_episode_is_a_function_of_seed_number_and_actions(domain, task):
    """One env plays episodes 0, 1, 2; the other jumps to 2 directly. Observations, states and the model agree."""
    played, jumped, other = (DMC(domain, task, seed=seed, image=False) for seed in (7, 7, 8))
    np.testing.assert_array_equal(model_bytes(played), model_bytes(other))  # a seed chooses episodes, not the task
    for _ in range(2):
        played.reset()
        for action in actions_of(played, 3):
            played.step(action)
    ours, theirs = played.reset(), jumped.reset(episode=2)
    for action in [None, *actions_of(played, 5)]:
        if action is not None:
            (ours, reward, *_), (theirs, their_reward, *_) = played.step(action), jumped.step(action)
            assert reward == their_reward
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
        np.testing.assert_array_equal(played.physics.get_state(), jumped.physics.get_state())
    np.testing.assert_array_equal(model_bytes(played), model_bytes(jumped))


@pytest.mark.parametrize("domain, task", [("reacher", "hard"), ("finger", "turn_easy"), ("swimmer", "swimmer6")])
def test_frames_agree_where_the_task_randomizes_its_scene(domain, task):
    played, jumped, other = (DMC(domain, task, seed=seed) for seed in (3, 3, 4))
    first = played.reset()["image"]
    played.reset()
    ours, theirs = played.reset()["image"], jumped.reset(episode=2)["image"]
    np.testing.assert_array_equal(ours, theirs)
    assert (first != ours).any() and (other.reset(episode=2)["image"] != ours).any()
    for action in actions_of(played, 3):
        np.testing.assert_array_equal(played.step(action)[0]["image"], jumped.step(action)[0]["image"])
    np.testing.assert_array_equal(played.reset()["image"], jumped.reset()["image"])  # the counter continues from 2


def test_pixels_do_not_depend_on_the_buffer():
    """The frame buffer has the frame's size; with the suite's stock buffer every pixel is the same."""
    env = DMC("walker", "walk", size=(64, 64), seed=1)
    stock = suite.load("walker", "walk", task_kwargs={"random": 0})
    assert stock.physics.model.vis.global_.offwidth > 64
    for _ in range(2):
        obs = env.reset()
        for action in actions_of(env, 2):
            with stock.physics.reset_context():
                stock.physics.set_state(env.physics.get_state())
            np.testing.assert_array_equal(obs["image"], stock.physics.render(64, 64, camera_id=0))
            obs = env.step(action)[0]


def test_a_small_shadow_map_changes_almost_nothing():
    stock, small = DMC("walker", "walk", seed=1), DMC("walker", "walk", seed=1, shadow_size=512)
    assert stock.physics.model.vis.quality.shadowsize == 2048 and small.physics.model.vis.quality.shadowsize == 512
    ours, theirs = small.reset(), stock.reset()
    for action in actions_of(stock, 10):
        difference = np.abs(ours["image"].astype(int) - theirs["image"])
        assert difference.mean() < 0.1 and (difference.max(-1) > 0).mean() < 0.02  # the edges of shadows
        (ours, reward, *_), (theirs, their_reward, *_) = small.step(action), stock.step(action)
        assert reward == their_reward
        np.testing.assert_array_equal(small.physics.get_state(), stock.physics.get_state())
    assert (ours["image"] != theirs["image"]).any()


def test_frames_are_not_overwritten():
    env = DMC("cheetah", "run")
    first = env.reset()["image"]
    kept = first.copy()
    for action in actions_of(env, 3):
        env.step(action)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.c_contiguous and first.flags.owndata


@pytest.mark.parametrize("size", [(64, 64), (84, 84), (48, 96), (1, 1), (700, 900)])
def test_any_size_of_frame(size):
    env = DMC("pendulum", "swingup", size=size)
    assert env.observation_space["image"].shape == env.reset()["image"].shape == (*size, 3)


@pytest.mark.parametrize("domain", sorted(TASKS))
def test_cameras(domain):
    """By name: the first one, but for the quadruped, whose third one looks at it from the side."""
    env = DMC(domain, TASKS[domain][0])
    assert env.physics.model.name2id(env.camera, "camera") == (2 if domain == "quadruped" else 0)


@pytest.mark.slow
def test_the_dog_that_fetches_is_seen():
    """Its model has a camera on the ball too, in front of the others."""
    env = envs.make("dmc_dog_fetch", seed=0)
    for episode in range(5):
        env.reset(episode)
        kinds = env.physics.render(64, 64, camera_id=env.camera, segmentation=True)[..., 1]
        assert (kinds == mujoco.mjtObj.mjOBJ_SKIN).sum() > 200  # the dog is drawn as a skin


@pytest.mark.parametrize("domain", old_floors.TASKS)
def test_floors_of_before_mujoco_3_12(domain):
    expected = np.frombuffer(bytes.fromhex(old_floors.FRAMES[domain]), np.uint8).reshape(8, 8)
    task = old_floors.TASKS[domain]
    stock, old = (
        np.abs(old_floors.shrink(envs.make(f"dmc_{domain}_{task}", old_floor=floor).physics) - expected).mean()
        for floor in (False, True)
    )
    assert old < 2
    if domain in ("fish", "point_mass", "reacher", "walker"):
        assert stock > 5


def test_old_floors_under_distractions(tmp_path):
    """The colors of a set go to the floor of the setting; so does the altered look in front of a background."""
    for mode in ("color_hard", "video"):
        settings = {"img_source": "color", "assets": str(tmp_path), "size": (64, 64)}
        stock, old = (envs.make(f"dmc_reacher_easy_{mode}", old_floor=floor, **settings) for floor in (False, True))
        frames = [env.reset(3)["image"].astype(int) for env in (stock, old)]
        if mode == "color_hard":
            assert np.abs(frames[0] - frames[1]).mean() > 3
        grids = [texture(env.physics.model, env.physics.model.name2id("grid", "texture")) for env in (stock, old)]
        np.testing.assert_array_equal(np.roll(grids[0], (45, 45), (0, 1)), grids[1])  # 0.3 of 2 units, of 300 pixels


def test_rewards_are_within_the_range_of_the_family():
    for task in ("dmc_lqr_lqr_2_1", "dmc_lqr_lqr_6_2", "dmc_cartpole_swingup"):
        low, high = envs.reward_range(task)
        rewards = []
        for policy in (lambda rng, n: rng.uniform(-1, 1, n), lambda rng, n: np.ones(n), lambda rng, n: np.zeros(n)):
            env, rng = envs.make(task, image=False, action_repeat=1, time_limit=200), np.random.default_rng(0)
            for episode in range(5):
                env.reset(episode)
                done = False
                while not done:
                    _, reward, done, _ = env.step({"action": policy(rng, env.action_space.shape)})
                    rewards.append(reward)
        assert low <= min(rewards) and max(rewards) <= high
        assert (min(rewards) < 0) == ("lqr" in task)  # lqr's rewards are not in [0, 1]
    assert models.reward_to_simsr(envs.reward_range("dmc_lqr_lqr_2_1"), 2) == pytest.approx(2 / 3.2)
    assert models.reward_to_simsr(envs.reward_range("dmc_cartpole_swingup"), 2) == 1
    config = agents.config("--task", "dmc_lqr_lqr_2_1", base=("dmc_proprio",))
    with collect.make_envs(config, "train", 1, False) as group:
        assert dreamer.make_agent(config, group).world_model.reward_to_simsr == pytest.approx(2 / 3.2)


@pytest.mark.parametrize("name", subtle.TASKS)
def test_subtle_tasks_have_tiny_objects(name):
    """Sizes relative to the suite's, in the model and in what the task measures; the rest of the model is the same."""
    shrunk = subtle.TASKS[name]
    plain = DMC(shrunk.domain, shrunk.task, seed=1)
    tiny = envs.make(f"dmc_{name}_subtle", seed=1)
    plain.reset(), tiny.reset()

    def sizes(env):
        model = env.physics.model
        named = {("geom", model.id2name(i, "geom")): model.geom_size[i, 0] for i in range(model.ngeom)}
        named |= {("site", model.id2name(i, "site")): model.site_size[i, 0] for i in range(model.nsite)}
        named |= {("tendon", model.id2name(i, "tendon")): model.tendon_width[i] for i in range(model.ntendon)}
        return named

    changed = {
        "ball_in_cup_catch": {("geom", "ball"): 12, ("tendon", "string"): 12},
        "point_mass": {("geom", "target"): 6, ("geom", "pointmass"): 6},
        "finger_turn": {("site", "target"): 2},
        "reacher": {("geom", "target"): 3},
        "cartpole_swingup": {("geom", "pole_1"): 20},
    }[name]
    ours = sizes(tiny)
    for key, size in sizes(plain).items():
        assert ours[key] == pytest.approx(size / changed.get(key, 1)), key
    assert (plain.physics.model.cam_pos == tiny.physics.model.cam_pos).all()


def test_the_camera_is_the_one_rendered():
    env = DMC("quadruped", "walk")
    image = env.reset()["image"]
    np.testing.assert_array_equal(image, env.physics.render(64, 64, camera_id=2))
    assert (image != env.physics.render(64, 64, camera_id=0)).any()


def test_hooks_and_repeat():
    log = []

    class Logged(DMC):
        def begin_episode(self):
            log.append(("begin", self.rng.random(), self.physics.data.time))

        def after_substep(self):
            log.append("substep")

        def render(self):
            log.append("render")
            return super().render()

    env = Logged("cartpole", "swingup", seed=4, action_repeat=3)
    env.reset()
    env.step({"action": np.zeros(1)})
    (begin, draw, time), *rest = log
    assert (begin, time) == ("begin", 0) and rest == ["render", "substep", "substep", "substep", "render"]
    log.clear()
    env.reset(episode=0)
    assert log[0][1] == draw  # self.rng is the episode's
    env.reset()
    assert log[-2][1] != draw


def test_reward_is_the_sum_over_the_repeat():
    four, one = DMC("walker", "run", image=False, action_repeat=4), DMC("walker", "run", image=False, action_repeat=1)
    four.reset(), one.reset()
    for action in actions_of(four, 5):
        obs, reward, *_ = four.step(action)
        singles = [one.step(action) for _ in range(4)]
        assert reward == pytest.approx(sum(s[1] for s in singles)) and reward > 0
        np.testing.assert_array_equal(obs["orientations"], singles[-1][0]["orientations"])


def test_a_terminal_state_ends_the_episode_within_the_repeat():
    """lqr ends, with discount 0, once nothing moves."""
    substeps = []
    env = DMC("lqr", "lqr_2_1", image=False, action_repeat=4)
    env.after_substep = lambda: substeps.append(1)
    env.reset()
    assert not env.step({"action": np.zeros(1)})[2] and len(substeps) == 4
    with env.physics.reset_context():
        env.physics.set_state(np.zeros_like(env.physics.get_state()))
    obs, _, done, _ = env.step({"action": np.zeros(1)})
    assert done and obs["is_last"] and obs["is_terminal"] and len(substeps) == 5


def test_the_suites_own_time_limit_does_not_interfere():
    env = envs.make("dmc_pendulum_swingup", image=False, time_limit=1500, action_repeat=5)
    env.reset()
    lengths = next(n for n in range(1, 400) if env.step({"action": np.zeros(1)})[2])
    assert lengths == 300


def test_actions_span_the_tasks_bounds():
    env = DMC("quadruped", "walk", image=False, action_repeat=1)
    spec = suite.load("quadruped", "walk").action_spec()
    assert spec.maximum.max() != 1  # bounds that need rescaling
    env.reset()
    for action, bound in ((-1, spec.minimum), (1, spec.maximum), (0, (spec.minimum + spec.maximum) / 2)):
        env.step({"action": np.full(spec.shape, action)})
        np.testing.assert_allclose(env.physics.data.ctrl, bound)
    env.step({"action": np.full(spec.shape, 3)})  # outside the box: clipped to its bounds
    np.testing.assert_allclose(env.physics.data.ctrl, spec.maximum)


def test_unbounded_actions_are_passed_unchanged():
    env = DMC("lqr", "lqr_6_2", image=False, action_repeat=1)
    env.reset()
    env.step({"action": np.array([0.25, -3])})
    np.testing.assert_array_equal(env.physics.data.ctrl, [0.25, -3])


def test_assets_replace_the_suites_in_this_model_only():
    from dm_control.suite import common

    stock = dict(common.ASSETS)
    name = next(n for n in stock if n.endswith("materials.xml"))
    materials = stock[name].replace(b'rgba=".7 .5 .3 1"', b'rgba="0 1 0 1"')
    assert materials != stock[name]
    changed, plain = DMC("walker", "walk", assets={"materials.xml": materials}), DMC("walker", "walk")
    assert stock == common.ASSETS
    np.testing.assert_array_equal(changed.physics.named.model.mat_rgba["self"], [0, 1, 0, 1])
    np.testing.assert_allclose(plain.physics.named.model.mat_rgba["self"], [0.7, 0.5, 0.3, 1])
    assert (changed.reset()["image"] != plain.reset()["image"]).any()
    with pytest.raises(ValueError, match=r"nothing\.xml"):
        DMC("walker", "walk", assets={"nothing.xml": b""})
    with pytest.raises(ValueError):  # a model that does not compile leaves the suite unchanged
        DMC("walker", "walk", assets={"materials.xml": b"<mujoco><broken/></mujoco>"})
    assert stock == common.ASSETS


def run(code, **settings):
    environ = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")} | settings
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)


RENDER = "import os, envs; print(envs.make('dmc_cup_catch').reset()['image'].std() > 5, os.environ['MUJOCO_GL'])"


def test_the_renderer_is_picked():
    done = run(RENDER)
    assert done.stderr == "" and done.stdout in ("True egl\n", "True osmesa\n")


def test_osmesa_where_egl_finds_no_driver(tmp_path):
    if run(RENDER, MUJOCO_GL="osmesa").returncode:
        pytest.skip("this machine has no OSMesa")
    done = run(RENDER, __EGL_VENDOR_LIBRARY_DIRS=str(tmp_path))
    assert (done.stdout, done.stderr) == ("True osmesa\n", "")


def test_without_a_renderer_vectors_work_and_images_raise():
    done = run(
        "import envs; envs.make('dmc_cup_catch', image=False).reset(); envs.make('dmc_cup_catch')", MUJOCO_GL="off"
    )
    assert "RuntimeError: images need a renderer" in done.stderr and "setup/install_env.sh" in done.stderr


def test_glfw_without_a_screen_is_one_line():
    code = "import envs; envs.make('dmc_cup_catch', image=False).reset(); envs.make('dmc_cup_catch')"
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")} | {"MUJOCO_GL": "glfw"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: MUJOCO_GL is glfw, which needs a screen")
