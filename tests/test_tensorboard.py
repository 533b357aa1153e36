"""The TensorBoard data of a run besides scalars and videos."""

import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from run import logs
from run.config import load_config


@pytest.fixture
def config():
    return load_config(["--configs", "dmc_vision", "--kl_free", "2.5", "--eval_tasks", "a", "b"])


@pytest.fixture
def events(config, tmp_path):
    logger = logs.Logger(tmp_path)
    logger.settings(config.flat(), 0)
    logger.scalar("eval_return", 5)
    logger.write(10)
    logger.close()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # no second run
    return EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()


def content(events, tag) -> HParamsPluginData:
    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def test_hparams_are_the_settings_and_the_metric_is_a_scalar_of_the_run(config, events):
    metrics = content(events, "_hparams_/experiment").experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["eval_return"]
    assert [event.value for event in events.Scalars("eval_return")] == [5]
    found = content(events, "_hparams_/session_start_info").session_start_info.hparams
    flat = config.flat()
    assert set(found) == set(flat)
    assert found["kl_free"].number_value == 2.5 and found["encoder.cnn_depth"].number_value == 32
    assert found["hybrid"].string_value == "True" and found["task"].string_value == flat["task"]
    assert found["eval_tasks"].string_value == "a b"


def test_the_config_is_logged_as_text(config, events):
    (event,) = events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    for name, value in config.flat().items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        assert f"| {name} | {shown} |" in text


def test_charts_are_grouped_and_hold_every_scalar(events):
    assert any("custom_scalars" in tag for tag in events.Tags()["tensors"])
    patterns = [pattern for charts in logs.Logger.CHARTS.values() for pattern in charts.values()]
    names = (
        "train_return eval_return eval_return/dmc_walker_walk_color_hard model_loss reward_loss cont_loss mbr_loss "
        "simsr_loss decoder_loss probe_loss dyn_loss rep_loss kl prior_ent post_ent model_grad_norm actor_loss "
        "value_loss actor_entropy value_mean target_mean imag_reward_mean EMA_005 EMA_095 actor_grad_norm "
        "expl_actor_loss disag_loss expl_EMA_005 a_new_loss its_grad_norm fps updates_per_second update_count "
        "replay_steps train_episodes repo_loss repo_kl_excess repo_beta swav_loss"
    ).split()
    for name in names:
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) == 1, name
