"""Do agents get what they imagine? `python figures/imagined_rewards.py RUN... [--episodes 8]`.

For each RUN, a --logdir or the folder of an exported agent, plays episodes with sampled actions. From every fifth of
their states the agent imagines as it does to learn: `imag_horizon` states, by the same policy. Prints a Markdown table
with the mean reward of a step, and how much more (+) or less (-) reward the model predicts 1 step ahead, a third of the
horizon ahead and at its end than the episode has there, with a standard error over episodes: first along actions that
the policy takes in imagination, then along those that it took in the episode. The latter is the error of the model; the
former also holds what the actor gains by that error.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dreamer
from envs.parallel import EnvGroup
from figures.plot import table
from run import checkpoint, evaluate
from run.collect import make_envs, sees_images, stack_obs

STRIDE = 5  # steps from one start of imagination to the next


@torch.no_grad()
def play(agent: dreamer.Dreamer, group: EnvGroup) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """An episode of each env, with sampled actions.

    Returns:
        The states that the agent inferred (T, N, ...), its actions (T, N, A), and the rewards that they led to (T, N),
        NaN after the end of an episode.
    """
    n, steps = len(group), []
    obs, state, playing = group.reset(list(range(n)), stride=n), None, [True] * n
    while any(playing):
        action, state = agent.act(stack_obs(obs, agent.keys, agent.device), state, training=True)
        taken = action.cpu().numpy()
        if hasattr(group.action_space, "low"):
            taken = taken.clip(-1, 1)
        group.send([{"action": one} if is_playing else None for one, is_playing in zip(taken, playing, strict=True)])
        reward = torch.full((n,), torch.nan)
        for env, transition in enumerate(group.receive()):
            if transition is not None:
                obs[env], reward[env], playing[env] = transition.obs, transition.reward, not transition.done
        steps.append(({k: state[k] for k in agent.world_model.dynamics.carried}, action, reward))
    states, actions, rewards = zip(*steps, strict=True)
    return {k: torch.stack([one[k] for one in states]) for k in states[0]}, torch.stack(actions), torch.stack(rewards)


@torch.no_grad()
def gaps(
    agent: dreamer.Dreamer, states: dict[str, Tensor], actions: Tensor, rewards: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted minus real reward, along imagined and along the episodes' actions; arguments as `play` returns them.

    Returns:
        Two arrays (K, N): means over the starts of each episode, 1 to K = `imag_horizon` - 1 steps ahead.
    """
    dynamics, head = agent.world_model.dynamics, agent.world_model.heads["reward"]
    ahead, (length, n) = agent.config.imag_horizon - 1, rewards.shape
    starts = torch.arange(0, max(length - ahead + 1, 0), STRIDE)
    # (S·N, ...)
    start = {k: v[starts].flatten(0, 1) for k, v in states.items()}
    feats, _, _ = dynamics.imagine(agent.behavior.actor, start, ahead + 1)
    state, along = start, []
    for k in range(ahead):
        state = dynamics.img_step(state, actions[starts + k].flatten(0, 1))
        along.append(dynamics.feat(state))
    # (K, S·N, F) → (K, S, N)
    imagined, replayed = (head(x).mode()[..., 0].cpu().unflatten(1, (-1, n)) for x in (feats[1:], torch.stack(along)))
    real = torch.stack([rewards[starts + k] for k in range(ahead)])
    return tuple((found - real).nanmean(1).numpy() for found in (imagined, replayed))


def measure(run: Path, episodes: int) -> dict[str, str]:
    """A run's row, by columns. Raises ValueError if there is no agent, or its episodes are too short."""
    config = evaluate.run_config([], run).replace(parallel=False, device="cpu", compile=False)
    dreamer.check_settings(config)
    evaluate.check_files(f"--task {config.task}", config.task, config)
    with make_envs(config, "eval_only", episodes, sees_images(config)) as group:
        agent = dreamer.make_agent(config, group)
        step = checkpoint.load_weights(run, agent) * config.action_repeat
        torch.manual_seed(0)
        states, actions, rewards = play(agent, group)
    ahead = config.imag_horizon - 1
    if len(rewards) < ahead:
        raise ValueError(f"{run}: no episode of {config.task} is as long as imag_horizon {config.imag_horizon}")
    cells = {"run": str(run), "step": f"{step:,}", "reward": f"{rewards.nanmean():.2f}"}
    for kind, found in zip(("imagined", "real"), gaps(agent, states, actions, rewards), strict=True):
        for k in sorted({1, max(ahead // 3, 1), ahead}):
            error = np.nanstd(found[k - 1], ddof=1) / np.isfinite(found[k - 1]).sum() ** 0.5
            cells[f"{kind} actions, {k} ahead"] = f"{np.nanmean(found[k - 1]):+.2f} ± {error:.2f}"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--episodes", type=int, default=8)
    args = parser.parse_args()
    if args.episodes < 2:
        parser.error("--episodes: expected 2 or more")
    try:
        rows = [measure(run, args.episodes) for run in args.runs]
    except (OSError, ValueError) as error:
        parser.exit(2, f"imagined_rewards.py: {error}\n")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
