"""Speed of the envs, alone and in workers, and our overhead on top of the engines' own step and render.

    python tests/benchmarks/envs.py [--steps 200] [--workers 4] [--assets FOLDER] [TASK ...]

Without --assets, small videos, frames and rooms are generated. For each task: agent steps/s of one env and of all
workers together; milliseconds of an agent step, and of the engine's calls alone on the same model (the suite's steps,
texture upload and render; ManiSkill2's step and image), alternating with whole steps in the same run; our overhead;
milliseconds that we add to the engine's reset (colors, videos, walks). For DMC the first line is the unmodified suite:
its step and physics.render with its stock buffer.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
import envs
from envs.dmc import suite
from envs.parallel import EnvGroup

MODES = ["", "_video", "_color_hard", "_video_easy", "_video_hard", "_sensor_cs", "_distracting_cs"]
TASKS = [f"dmc_walker_walk{mode}" for mode in MODES] + ["rms_push_cube"]


def make_assets(root: Path) -> None:
    """Blurred noise as videos of DMC-GS and as sequences of DAVIS, and rooms for ManiSkill."""
    rng = np.random.default_rng(0)

    def picture(height: int, width: int) -> np.ndarray:
        return cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (width, height))

    for number in range(4):
        for mode in ("video_easy", "video_hard"):
            path = root / "dmcgb" / mode / f"video{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (352, 352))
            for _ in range(100):
                writer.write(picture(352, 352))
            writer.release()
        sequence = root / "davis" / f"sequence{number}"
        sequence.mkdir(parents=True)
        for frame in range(20):
            cv2.imwrite(str(sequence / f"{frame:05d}.jpg"), picture(480, 854))
    try:
        from maniskill_assets import write_assets
    except ImportError:
        return  # no ManiSkill2 here
    write_assets(root)


def engine_call(env, task: str):
    """A function of an action and the camera's pose: the engine's work in an agent step, and none of ours."""
    if task.startswith("rms_"):

        def call(action, pose):
            for _ in range(env.action_repeat):
                env._env.step(action)
            env._env.update_render()
            camera = env._env._cameras["base_camera"].camera
            camera.take_picture()
            camera.get_float_texture("Color")

    else:

        def call(action, pose):
            for _ in range(env.action_repeat):
                env._env.step(action)
            if task.endswith("_cs"):  # render time depends on what is in view, so the pose is fixed
                env.physics.data.cam_xpos[0], env.physics.data.cam_xmat[0] = pose
            if task.endswith("distracting_cs"):
                env._uploaded = None  # a frame that is not uploaded yet
                env._show(env._frame)
            env._view.render()

    return call


def seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def typical(times: list[float]) -> float:
    """Milliseconds, without the first: the lower quintile, as other load on the machine only ever adds time."""
    return 1000 * np.percentile(times[1:], 20) if times else float("nan")


def alone(task: str, settings: dict, steps: int) -> tuple[float, float, float]:
    """Milliseconds of an agent step, of the engine's part in it, and of our part in a reset."""
    env = envs.make(task, **settings)
    inner = env.env.env
    rng = np.random.default_rng(0)
    beginnings = []
    if hook := getattr(inner, "begin_episode", None):
        inner.begin_episode = lambda: beginnings.append(seconds(hook))
    for _ in range(2 if task.startswith("rms_") else 6):
        env.reset()
    call, ours, engines = engine_call(inner, task), [], []
    data = None if task.startswith("rms_") else inner.physics.data
    for step in range(steps):
        action = rng.uniform(-1, 1, env.action_space.shape)
        pose = None if task.startswith("rms_") else (data.cam_xpos[0].copy(), data.cam_xmat[0].copy())
        pair = [(ours, env.step, {"action": action}), (engines, call, action, pose)]
        for times, function, *arguments in pair if step % 2 else reversed(pair):
            times.append(seconds(function, *arguments))
    env.close()
    return typical(ours), typical(engines), typical(beginnings)


def together(task: str, settings: dict, steps: int, workers: int) -> float:
    """Agent steps/s of all workers together, in lock step."""
    constructors = [partial(envs.make, task, seed=i, **settings) for i in range(workers)]
    rng = np.random.default_rng(0)
    with EnvGroup(constructors, True) as group:
        group.reset([0] * workers)

        def play(count):
            for _ in range(count):
                group.send([{"action": rng.uniform(-1, 1, group.action_space.shape)} for _ in range(workers)])
                group.receive()

        play(3)
        return workers * steps / seconds(play, steps)


def stock(steps: int) -> float:
    """Milliseconds of two steps and a 64 x 64 render of the unmodified suite."""
    env = suite.load("walker", "walk", task_kwargs={"random": 0})
    env.reset()
    rng = np.random.default_rng(0)
    times = []
    for _ in range(steps + 1):
        action = rng.uniform(-1, 1, 6)
        times.append(seconds(lambda a: (env.step(a), env.step(a), env.physics.render(64, 64, camera_id=0)), action))
    return typical(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK")
    parser.add_argument("--steps", type=int, default=200, help="agent steps of each measurement")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--assets", help="folder of the downloaded assets")
    parser.add_argument("--resource_files", default="", help="videos of _video tasks; default those of DMC-GS")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if not args.assets:
            make_assets(Path(folder))
        assets = args.assets or folder
        settings = {"assets": assets, "time_limit": 10**6}
        settings["resource_files"] = args.resource_files or str(Path(assets, "dmcgb", "video_easy", "*.mp4"))
        head = ("1 env/s", f"{args.workers} envs/s", "step ms", "engine", "ours", "begin")
        print(f"{'task':36} {' '.join(f'{word:>8}' for word in head)}")
        if any(task.startswith("dmc_walker_walk") for task in args.tasks):
            print(f"{'unmodified suite, walker walk':36} {'':8} {'':8} {stock(args.steps):8.2f}")
        for task in args.tasks:
            own = settings | ({"action_repeat": 1} if task.startswith("rms_") else {})
            try:
                ours, engine, begin = alone(task, own, args.steps)
                rate = together(task, own, args.steps // 2, args.workers)
            except (ImportError, FileNotFoundError, RuntimeError) as error:
                print(f"{task:36} {error}")
                continue
            share = f"{ours / engine - 1:6.1%}"
            print(
                f"{task:36} {1000 / ours:8.1f} {rate:8.1f} {ours:8.2f} {engine:8.2f} {share:>6} {begin:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
