"""Collection: the seeds of envs, and when the exploring behavior acts."""

import agents
import torch

from run import collect
from run.process import Interrupt

PENDULUM = ("--task", "gym_Pendulum-v1", "--parallel", "False")


def test_each_training_env_has_its_own_seed_and_an_evaluation_one_of_its_own():
    def seeds(mode, count, first=0, seed="0"):
        config = agents.config(*PENDULUM, "--seed", seed, base=("dmc_proprio",))
        made = [one.keywords for one in collect.env_constructors(config, mode, count, False, first)]
        assert {one["evaluation"] for one in made} == {mode != "train"}
        return [one["seed"] for one in made]

    train = seeds("train", 4)
    assert train[2:] == seeds("train", 2, first=2)  # envs of a second rank
    found = [*train, *seeds("train", 4, seed="1")]
    for mode in ("eval", "eval_only"):
        (own,) = set(seeds(mode, 3))  # they play different episodes of one stream
        found.append(own)
    assert len(set(found)) == len(found)


class Idle:
    """An agent that does nothing, and remembers when it was asked to explore."""

    keys, device = ("observation",), torch.device("cpu")

    def __init__(self):
        self.explored = []

    def act(self, obs, state, training, explore):
        self.explored.append(explore)
        return torch.zeros(len(obs["is_first"]), 1), {"action": torch.zeros(len(obs["is_first"]), 1)}


def test_exploration_ends_at_an_environment_step(tmp_path):
    flags = "--envs 2 --action_repeat 2 --prefill 8 --expl_behavior random --expl_until 40".split()
    config, agent = agents.config(*PENDULUM, *flags, base=("dmc_proprio",)), Idle()
    with collect.make_train_envs(config) as group, Interrupt() as interrupt:
        collector = collect.Collector(config, group, ["observation"], tmp_path)
        collector.restore(exact=False)
        for _ in range(15):
            collector.act(agent)
            collector.receive(interrupt)
    assert collector.env_step == 60
    # 8 agent steps of random actions are 16 environment steps, then 4 in each
    assert agent.explored == [env_step < 40 for env_step in range(16, 60, 4)]
