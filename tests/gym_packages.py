"""Tries envs of Gymnasium's packages and prints the table of docs/data.md.

    pip install gymnasium==1.4.0 minigrid highway-env ale-py gymnasium-robotics shimmy box2d miniworld metaworld
    python tests/gym_packages.py

For each task: the shape of its image and how much of it is drawn, its vectors, what determines an episode, its actions.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import envs

TASKS = [  # (package, task, --env_kwargs)
    ("gymnasium", "CartPole-v1", []),
    ("gymnasium", "MountainCarContinuous-v0", []),
    ("gymnasium", "Acrobot-v1", []),
    ("gymnasium", "Pendulum-v1", []),
    ("gymnasium", "Taxi-v4", []),
    ("gymnasium", "Blackjack-v1", []),
    ("gymnasium", "FrozenLake-v1", ["map_name=8x8"]),
    ("gymnasium", "CliffWalking-v1", []),
    ("gymnasium", "Ant-v5", []),
    ("gymnasium", "Humanoid-v5", []),
    ("gymnasium, box2d", "BipedalWalker-v3", []),
    ("gymnasium, box2d", "LunarLander-v3", ["continuous=True"]),
    ("gymnasium, box2d", "CarRacing-v3", []),
    ("ale-py", "ale_py:ALE/Pong-v5", []),
    ("ale-py", "ale_py:ALE/Breakout-v5", ["obs_type=ram"]),
    ("minigrid", "minigrid:MiniGrid-Empty-8x8-v0", []),
    ("minigrid", "minigrid:BabyAI-GoToLocal-v0", []),
    ("highway-env", "highway_env:highway-v0", []),
    ("highway-env", "highway_env:parking-v0", []),
    ("gymnasium-robotics", "gymnasium_robotics:FetchReach-v4", []),
    ("gymnasium-robotics", "gymnasium_robotics:PointMaze_UMaze-v3", []),
    ("miniworld", "miniworld:MiniWorld-OneRoom-v0", []),
    ("metaworld", "metaworld:Meta-World/MT1", ["env_name=reach-v3"]),
    ("shimmy", "shimmy:dm_control/walker-walk-v0", []),
]


def act(env, rng: np.random.Generator) -> dict:
    space = env.action_space
    return {
        "action": np.eye(space.n)[rng.integers(space.n)] if hasattr(space, "n") else rng.uniform(-1, 1, space.shape)
    }


def play(env, episode: int, steps: int = 25) -> list[dict]:
    rng = np.random.default_rng(episode)
    frames, done = [env.reset(episode)], False
    while not done and len(frames) <= steps:
        obs, _, done, _ = env.step(act(env, rng))
        frames.append(obs)
    return frames


def equal(ours: list[dict], theirs: list[dict]) -> bool:
    return len(ours) == len(theirs) and all(
        np.array_equal(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a
    )


def row(package: str, task: str, kwargs: list[str]) -> list[str]:
    cells = [package, f"`gym_{task}`" + "".join(f" `--env_kwargs {word}`" for word in kwargs)]
    try:
        env = envs.make(f"gym_{task}", env_kwargs=kwargs, image=None, seed=1)
        played = [play(env, episode) for episode in (0, 1)]
        exact = equal(play(env, 0), played[0])
        spaces = env.observation_space.spaces
        vectors = [f"{key} {space.shape[0]}" for key, space in spaces.items() if len(space.shape) == 1]
        images = []
        for key, space in spaces.items():
            if len(space.shape) == 3:
                stack = np.stack([obs[key] for obs in played[0]])
                moves = any((stack[0] != frame).any() for frame in stack[1:])
                images.append(f"{key}, std {stack.std():.0f}{'' if moves else ', still'}")
        seeds = "none" if not exact else "a new env each episode" if env._renew else "yes"
        space = env.action_space
        actions = f"{space.n} discrete" if hasattr(space, "n") else f"{space.shape[0]} continuous"
        env.close()
        return [*cells, "; ".join(images) or "none", ", ".join(vectors) or "none", actions, seeds]
    except Exception as error:
        return [*cells, f"{type(error).__name__}: {error}", "", "", ""]


if __name__ == "__main__":
    chosen = sys.argv[1:]
    print("| package | task | images | vectors | actions | a seed determines an episode |\n|---|---|---|---|---|---|")
    for package, task, kwargs in TASKS:
        if not chosen or any(word in task for word in chosen):
            print(f"| {' | '.join(row(package, task, kwargs))} |", flush=True)
