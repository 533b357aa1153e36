"""The schedule of updates."""

import agents

from run.trainer import Schedule


def settings(train_ratio: str):
    """Updates on 3×8 rows after 100 agent steps of 4 envs."""
    return agents.config("--prefill", "98", "--pretrain", "10", "--envs", "4", "--train_ratio", train_ratio)


def test_schedule_of_updates():
    schedule = Schedule.of(settings("12"))
    due = [schedule.due(step) for step in range(0, 200, 4)]
    assert due[:25] == [0] * 25
    assert due[25:] == [10 + 2 * i for i in range(25)]  # half an update for each agent step


def test_a_changed_ratio_holds_from_the_resume_on():
    slow, fast = (Schedule.of(settings(ratio)) for ratio in ("12", "48"))
    resumed = slow.resumed(settings("48"), 140)
    assert [resumed.due(step) for step in (140, 144, 160)] == [30, 38, 70]
    assert slow.resumed(settings("48"), 96) == fast != slow and slow.resumed(settings("12"), 140) == slow
