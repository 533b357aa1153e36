"""The command line and configs.yaml."""

import contextlib
import copy
import functools
import io
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
import networks
from baselines import augmentations
from run import config as module
from run import distributed
from run.config import (
    ACTIONS,
    CONFIGS,
    LEGAL,
    Config,
    ConfigError,
    ConfigFile,
    check_config,
    check_resume,
    load_config,
    read_config,
    save_config,
)

SMALL = """\
# A file of settings.
defaults:

  # == First ==
  steps: 1e6  # environment steps
  batch: 16
  rate: 1e-4  # of learning
  whole: 3
  name: plain  # a name
  switch: True
  size: [64, 64]  # height and width
  words: []

  # == Second ==
  net:  # the network
    depth: 32  # channels
    act: 'silu # gelu'  # activation

big:  # more of everything
  batch: 64
  net: {depth: 48}

fast:
  steps: 5e5
  words: [a, b]
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "configs.yaml"
    file.write_text(SMALL)
    return file


def load(path, line="", **settings):
    return load_config(line.split(), path, **settings)


def error(capsys, path, line="", **settings):
    """The one-line error of a command line."""
    with pytest.raises(SystemExit) as stop:
        load(path, line, **settings)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_defaults_have_the_types_of_the_file(path):
    values = load(path).to_dict()
    assert values == {
        "steps": 1000000,
        "batch": 16,
        "rate": 1e-4,
        "whole": 3,
        "name": "plain",
        "switch": True,
        "size": [64, 64],
        "words": [],
        "net": {"depth": 32, "act": "silu # gelu"},
        "configs": [],
    }
    assert type(values["steps"]) is int and type(values["rate"]) is float


def test_groups_merge_in_order_and_nested_keys_one_by_one(path):
    config = load(path, "--configs big fast")
    assert (config.batch, config.steps, config.words) == (64, 500000, ("a", "b"))
    assert config.net.to_dict() == {"depth": 48, "act": "silu # gelu"}
    assert config.configs == ("big", "fast")


def test_flags_override_groups_in_any_position(path):
    assert load(path, "--batch 8 --net.depth 4 --configs big").batch == 8
    assert load(path, "--net.depth 4 --configs big").net.depth == 4
    assert load(path, "--configs big --configs fast").configs == ("big", "fast")


@pytest.mark.parametrize(
    "line, name, value",
    [
        ("--steps 2e4", "steps", 20000),
        ("--steps 20_000", "steps", 20000),
        ("--batch=8", "batch", 8),
        ("--whole -2", "whole", -2),
        ("--whole 2.0", "whole", 2),
        ("--rate 1", "rate", 1.0),
        ("--rate 3e-5", "rate", 3e-5),
        ("--rate 1e4", "rate", 10000.0),
        ("--name 5", "name", "5"),
        ("--name True", "name", "True"),
        ("--name=a=b", "name", "a=b"),
        ("--name=", "name", ""),
        ("--switch False", "switch", False),
        ("--switch false", "switch", False),
        ("--switch", "switch", True),
        ("--size 84 96", "size", (84, 96)),
        ("--size", "size", ()),
        ("--words a 1 True", "words", ("a", "1", "True")),
        ("--words", "words", ()),
        ("--net.act tanh", "net.act", "tanh"),
        ("--batch 8 --batch 9", "batch", 9),
    ],
)
def test_flag(path, line, name, value):
    found = Config(load(path, line).flat())[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "line, message",
    [
        ("--bath 8", "error: unknown flag --bath; did you mean --batch"),
        ("--depth 8", "error: unknown flag --depth; did you mean --net.depth?"),
        ("--zzzzqq 8", "error: unknown flag --zzzzqq\n"),
        ("--configs bigg", "error: unknown config bigg; did you mean big?"),
        ("--configs qqqq", "error: unknown config qqqq; choose from big, fast"),
        ("--configs defaults", "error: unknown config defaults"),
        ("--configs", "error: --configs needs names: big, fast"),
        ("--batch 1.5", "error: --batch is 1.5: expected a whole number"),
        ("--batch True", "error: --batch is True: expected a whole number"),
        ("--batch eight", "error: --batch is eight: expected a whole number"),
        ("--batch inf", "error: --batch is inf: expected a whole number"),
        ("--batch 1" + 400 * "0", "error: --batch is 1000"),
        ("--rate 1" + 400 * "0", "error: --rate is 1000"),
        ("--steps -1", "error: --steps is -1: expected a whole number from 0 to 1e12"),
        ("--batch", "error: --batch takes one value (a whole number), got none"),
        ("--batch 1 2", "error: --batch takes one value (a whole number), got 2: 1 2"),
        ("--rate fast", "error: --rate is fast: expected a number"),
        ("--rate nan", "error: --rate is nan: expected a number"),
        ("--rate false", "error: --rate is False: expected a number"),
        ("--switch 1", "error: --switch is 1: expected True or False"),
        ("--name", "error: --name takes one value"),
        ("--size 64 b", "error: --size is b: expected a whole number"),
        ("--net 3", "error: --net is a group of settings: set --net.depth, --net.act"),
        ("batch 8", "error: 'batch' is not a flag"),
    ],
)
def test_wrong_flag_is_one_line(path, capsys, line, message):
    assert error(capsys, path, line).startswith(message)


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        ("batch: 64", "bath: 64", 20, "unknown setting bath; did you mean batch"),
        ("{depth: 48}", "{dept: 48}", 21, "unknown setting net.dept; did you mean net.depth"),
        ("batch: 64", "batch: 6.5", 20, "batch is 6.5: expected a whole number"),
        ("batch: 64", "batch: '64'", 20, "batch is 64: expected a whole number"),
        ("batch: 64", "batch:", 20, "batch has no value"),
        ("batch: 64", "batch: .inf", 20, "batch is .inf: expected a finite number"),
        ("batch: 64", "batch: [64]", 20, "batch is 64: expected a whole number"),
        ("net: {depth: 48}", "net: 48", 21, "net is a group of settings"),
        ("batch: 64", "batch: {}", 20, "batch has no value"),
        ("batch: 64", "7: 64", 20, "7 is not the name of a setting"),
        ("batch: 64", "steps: -1", 20, "steps is -1: expected a whole number from 0 to 1e12"),
        ("steps: 1e6", "steps: many", 5, "steps is many: expected"),
        ("steps: 1e6", "steps: -1", 5, "steps is -1: expected a whole number from 0 to 1e12"),
        ("net: {depth: 48}", "net: &net {net: *net}", 21, "net.net is a group within a group"),
        ("words: [a, b]", "words: &words [*words]", 25, "words is a list of lists or settings"),
        ("batch: 64", "batch: {a: 1}", 20, "unknown setting batch.a; did you mean batch"),
        ("  batch: 64", "  batch: 64\n  batch: 32", 21, "batch is defined twice"),
        ("  whole: 3", "  whole: 3\n  batch: 3", 9, "batch is defined twice"),
        ("  rate: 1e-4", "  net: 1 2", 15, "net is defined twice"),
        ("    act: 'silu # gelu'", "  net: 1 2", 17, "net is defined twice"),
        ("fast:", "big:", 23, "group big is defined twice"),
        ("words: [a, b]", "words: [a, [b]]", 25, "words is a list of lists or settings"),
        ("words: [a, b]", "words: [a, 2]", 25, "words is 2: expected a word"),
        ("batch: 64", "batch: [64", 21, "invalid YAML"),
        ("batch: 64", "batch: *other", 20, "invalid YAML"),
        ("batch: 64", "\tbatch: 64", 20, "invalid YAML"),
        ("batch: 64", "batch: 64\x07", 20, "invalid YAML"),
        ("big:", "[big]:", 19, "expected the name of a group"),
        ("batch: 64", "[batch]: 64", 20, "this is not the name of a setting"),
        ("fast:", "fast: 3\nslow:", 23, "group fast has no settings"),
        ("defaults:", "default:", 2, "defaults must come before default"),
        ("depth: 32", "depth: {deeper: {deepest: 3}}", 16, "net.depth is a group within a group"),
    ],
)
def test_wrong_file_is_one_line_with_its_place(path, capsys, old, new, line, message):
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1))
    assert error(capsys, path).startswith(f"error: {path}:{line}: {message}")


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_file_without_groups(path, capsys, text):
    path.write_text(text)
    assert error(capsys, path) == f"error: {path}:1: expected settings as `name: value`\n"


@pytest.mark.parametrize("start, end", ["[]", ("{a: ", "}")])
def test_deeply_nested_file(path, capsys, start, end):
    depth = sys.getrecursionlimit()  # PyTorch's compiler may have raised it in this process
    path.write_text(SMALL.replace("whole: 3", f"whole: {depth * start}1{depth * end}"))
    assert error(capsys, path) == f"error: {path} cannot be read: nested too deeply\n"
    with pytest.raises(ConfigError, match="cannot be read: nested too deeply"):
        read_config(path)


def test_missing_and_binary_file(tmp_path, capsys):
    assert "No such file" in error(capsys, tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot be read" in error(capsys, tmp_path / "binary.yaml")


def test_help_shows_every_setting_with_default_and_comment(path, capsys):
    with pytest.raises(SystemExit) as stop:
        load(path, "--batch 8 --help", extra={"eval_only": (False, "evaluate, then stop")})
    assert stop.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first, second = lines.index("First"), lines.index("Second")
    steps = lines.index("--steps 1000000 environment steps (from 0 to 1e12)")
    assert first < steps < lines.index("--words (none)") < second
    assert "--size 64 64 height and width (from 8 to 4096)" in lines
    assert second < lines.index("--net.depth 32 channels")
    assert "--net.act silu # gelu activation" in lines
    assert "--eval_only False evaluate, then stop" in lines
    assert "big more of everything" in lines
    assert "fast steps 500000, words ['a', 'b']" in lines


def test_help_of_the_real_file_is_complete(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"])
    text = capsys.readouterr().out
    file = ConfigFile(CONFIGS)
    for name in file.defaults:
        assert f"  --{name} " in text
        assert file.comments[name], f"{name} has no comment"
        for choice in LEGAL[name].choices if name in LEGAL else ():
            assert str(choice) in file.comments[name], f"the comment of {name} does not name {choice}"
    for group in file.groups:
        assert f"\n  {group} " in text


def test_every_named_config_of_the_real_file_merges_alone_and_together():
    groups = list(ConfigFile(CONFIGS).groups)
    for names in [[group] for group in groups] + [groups]:
        assert load_config(["--configs", *names]).configs == tuple(names)


@pytest.mark.parametrize("group", ["dmc_vision", *ConfigFile(CONFIGS).groups])
def test_every_named_config_passes_the_checks(group):
    check_config(load_config(["--configs", group]))


def test_actions_are_separate_from_settings(path, capsys):
    extra = {"eval_only": (False, "evaluate"), "eval_tasks": ([], "tasks"), "episodes": (10, "episodes")}
    config, extras = load(path, "--eval_only --batch 8 --eval_tasks a b", extra=extra)
    assert config.batch == 8 and "eval_only" not in config
    assert extras.to_dict() == {"eval_only": True, "eval_tasks": ["a", "b"], "episodes": 10}
    assert "--episodes is 1.5: expected a whole number" in error(capsys, path, "--episodes 1.5", extra=extra)
    assert "did you mean --eval_only" in error(capsys, path, "--evalonly", extra=extra)


def test_settings_of_an_earlier_run_replace_the_defaults(path, tmp_path, capsys):
    save_config(load(path, "--configs big --rate 1e-8 --name ''"), tmp_path / "config.yaml")
    base = read_config(tmp_path / "config.yaml")
    config = load(path, "--batch 2", base=base)
    assert (config.rate, config.net.depth, config.batch, config.configs) == (1e-8, 48, 2, ("big",))
    for value, words in ({"steps": -1}, "steps is -1: expected"), ({"net": 3}, None), ({"configs": 3}, "configs is 3"):
        if words:
            assert words in error(capsys, path, base=Config(value))
        else:  # a setting that no longer exists
            assert load(path, base=Config(value)).net.depth == 32


def test_config_is_read_only_and_can_be_copied(path):
    config = load(path)
    with pytest.raises(AttributeError, match="read only"):
        config.batch = 3
    with pytest.raises(TypeError):
        config["batch"] = 3
    with pytest.raises(AttributeError, match="no setting bath; did you mean batch"):
        _ = config.bath
    config.to_dict()["size"].append(3)
    assert config.size == (64, 64) and config["net"]["depth"] == config.net.depth == 32
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config and type(other.net) is Config


def test_replace_checks_names_and_types(path):
    config = load(path)
    other = config.replace(batch=8, net={"depth": 4}, size=(16, 32), rate=1)
    assert (other.batch, other.net.depth, other.net.act, other.size) == (8, 4, "silu # gelu", (16, 32))
    assert type(other.rate) is float and config.batch == 16 and other != config
    assert config.replace(**{"net.depth": 4}).net.depth == 4
    with pytest.raises(ConfigError, match="unknown setting bach; did you mean batch"):
        config.replace(bach=8)
    with pytest.raises(ConfigError, match=r"batch is 0\.5: expected a whole number"):
        config.replace(batch=0.5)


SCALARS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(-1e15, 1e15),  # beyond, YAML has 1e+16, which reads as a whole number, a count of steps
    st.booleans(),
    st.text(max_size=20).filter(lambda text: text.isprintable()),
    st.sampled_from(["1e6", "1e-4", "null", "true", "~", "", "12:30", "- a", "# b", "'", "[]", "2020-01-01", "0x1f"]),
)
NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
GROUPS = st.dictionaries(NAMES, SCALARS, min_size=1)
VALUES = st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(SCALARS, max_size=3), GROUPS), min_size=1)


@given(VALUES)
def test_saved_config_reads_back_equal(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    save_config(Config(values), path)
    read = read_config(path)
    assert read.to_dict() == values
    assert repr(read) == repr(Config(values))  # types too: 1 is not 1.0


@given(st.one_of(st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_number_survives_a_flag(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("config") / "configs.yaml"
    path.write_text("defaults:\n  number: 0.5\n")
    assert load_config(["--number", repr(number)], path).number == float(number)


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "cannot be read: No such file"),
        ("a: [", ":1: invalid YAML"),
        ("", ":1: expected settings"),
        ("a: 1\n2: 3", ":2: 2 is not the name of a setting"),
        ("a: 1\nb: {c: {d: 1}}", ":2: b.c is a group within a group"),
        ("a: &a {b: *a}", ":1: a.b is a group within a group"),
        ("a:\n", ":1: a has no value"),
        ("net: 1 2\nnet: {depth: 3}\n", ":2: net is defined twice"),
    ],
)
def test_damaged_saved_config_is_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as problem:
        read_config(tmp_path / "config.yaml")
    assert f"config.yaml{words}" in str(problem.value) or f"config.yaml {words}" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_import_is_silent_and_without_torch():
    code = "import sys; from run import config; config.load_config([]); "
    code += "print('torch' in sys.modules, 'tensorboard' in sys.modules)"
    root = Path(module.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")


# The settings of configs.yaml


def test_every_setting_has_legal_values_in_one_row():
    defaults = {**ConfigFile(CONFIGS).defaults, **{name: default for name, (default, _) in ACTIONS.items()}}
    names = [name for row, _ in module._ROWS for name in row.split()]
    names += [name for name in envs.settings() if not isinstance(defaults[name], bool)]
    assert sorted(names) == sorted(name for name, default in defaults.items() if not isinstance(default, bool))
    assert module.FREE_SETTINGS - {"configs"} <= defaults.keys()


def refuse(capsys, line: str) -> str:
    """The one-line error of a command line, raised before anything but the settings is read."""
    try:
        config, _ = load_config(["--configs", "dmc_vision", *shlex.split(line)], extra=ACTIONS)
    except SystemExit as stop:
        assert stop.code == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err
    with pytest.raises(ConfigError) as problem:
        check_config(config)
    assert "\n" not in str(problem.value)
    return str(problem.value)


POSITIVE = """
    encoder.minres encoder.kernel_size encoder.cnn_depth encoder.mlp_layers encoder.mlp_units reward_layers cont_layers
    value_layers actor_layers disag_models disag_layers disag_units disag_offset dyn_cont_stoch_size dyn_stoch
    dyn_deter dyn_hidden units slow_target_update batch_size batch_length imag_horizon train_ratio envs action_repeat
    dataset_size log_every checkpoint_every total_frames patch_size block_size model_lr value_lr actor_lr
    opt_eps ac_opt_eps actor_max_std dyn_min_std repo_init_beta repo_lr proto_count proto_size proto_temperature
    sinkhorn_eps sinkhorn_iterations
""".split()
NOT_NEGATIVE = """
    seed steps time_limit eval_every eval_episode_num eval_envs episodes prefill pretrain replay_dir_limit shadow_size
    replay_memory dyn_discrete
    kl_free dyn_scale rep_scale reward_scale cont_scale decoder_scale mbr_scale simsr_scale weight_decay grad_clip
    value_grad_clip actor_grad_clip imag_starts actor_entropy actor_min_std actor_init_std expl_amount eval_noise
    expl_until expl_extr_scale expl_intr_scale mask_ratio aug_prob unimix_ratio action_unimix_ratio encoder_tau
    dynamics_tau slow_target_fraction discount discount_lambda simsr_discount imag_gradient_mix
    repo_scale repo_target repo_balance barlow_scale barlow_lambda infonce_scale swav_scale temp_scale norm_scale
    proto_shift proto_tau proto_freeze
""".split()


@pytest.mark.parametrize(
    "name, value",
    [
        *((name, value) for name in POSITIVE for value in ("0", "-1")),
        *((name, "-1") for name in NOT_NEGATIVE),
        *((name, "1e18") for name in POSITIVE + NOT_NEGATIVE if name != "seed"),
        ("seed", "1e30"),
        ("train_ratio", "1e300"),
    ],
)
def test_number_out_of_its_range_is_refused(capsys, name, value):
    err = refuse(capsys, f"--{name} {value}")
    assert re.fullmatch(rf"error: --{name} is \S+: expected a (whole )?number from \S+ to \S+\n", err)


@pytest.mark.parametrize(
    "line, words",
    [
        ("--logdir ''", "--logdir is '': expected a word that is not empty"),
        ("--encoder.cnn_keys [", "--encoder.cnn_keys is [: expected a word that is a regular expression"),
        ("--encoder.cnn_keys *", "--encoder.cnn_keys is *: expected a word that is a regular expression"),
        ("--encoder.mlp_keys [", "--encoder.mlp_keys is [: expected a word that is a regular expression"),
        ("--encoder.mlp_keys *", "--encoder.mlp_keys is *: expected a word that is a regular expression"),
        (f"--encoder.mlp_keys {5000 * '('}", "expected a word that is a regular expression"),
        ("--encoder.mlp_keys a{9999999999999999999}", "expected a word that is a regular expression"),
        ("--size 64", "--size 64: expected height and width"),
        ("--size 64 64 64", "--size 64 64 64: expected height and width"),
        ("--size", "expected height and width"),
        ("--size 64 32", "--size 64 32: the encoder takes square images"),
        ("--size 0 0", "--size is 0: expected a whole number from 8 to 4096"),
        ("--size 50 50", "--size 50 50: expected --encoder.minres 4 times 2, 4, 8"),
        ("--encoder.minres 64", "--size 64 64: expected --encoder.minres 64 times 2, 4, 8"),
        ("--encoder.minres 3", "--size 64 64: expected --encoder.minres 3 times 2, 4, 8"),
        ("--batch_length 30", "--batch_length 30 is not a multiple of --block_size 4"),
        ("--patch_size 65", "--patch_size 65 is larger than the image, --size 64 64"),
        ("--baseline dreamer", "--baseline is dreamer: expected a word, one of none, repo, r2dreamer"),
        ("--configs dmc_proprio dreamerpro", "--baseline dreamerpro needs images: --encoder.cnn_keys $^ reads none"),
        ("--time_limit 1", "--time_limit 1 is shorter than --action_repeat 2"),
        ("--actor_min_std 2", "--actor_min_std 2.0 is above --actor_max_std 1.0"),
        ("--actor_min_std 0 --actor_max_std 0", "--actor_max_std is 0: expected a number from 0.001 to 10"),
        ("--disag_models 1", "--disag_models is 1: expected a whole number from 2 to 100"),
        ("--disag_offset 64", "--disag_offset 64: expected less than --batch_length 64"),
        ("--imag_horizon 1", "--imag_horizon is 1: expected a whole number from 2 to 1000"),
        ("--video_pred_log", "--video_pred_log: there is no decoder"),
        ("--configs dmc_proprio dreamerv3 --video_pred_log", "--video_pred_log needs images: --encoder.cnn_keys $^"),
        ("--probe_decoder --grad_heads decoder", "--probe_decoder: --grad_heads has a decoder"),
        ("--probe_decoder --batch_length 4", "--batch_length is 4: a decoder's videos need more than 5 steps"),
        ("--dyn_cell block_gru --dyn_deter 500", "--dyn_deter 500 cannot be split into --dyn_blocks 8, for block_gru"),
        ("--precision 8", "--precision is 8: expected a whole number, one of 16, 32"),
        ("--grad_heads reward image", "--grad_heads is image: expected a word, one of decoder, reward, cont"),
        ("--augmentation mirror", "expected a word, one of affine, crop, rrc, blur, shift, intensity, overlay"),
        ("--actor_dist gauss", "expected a word, one of normal, trunc_normal, tanh_normal, onehot"),
        ("--imag_gradient none", "expected a word, one of dynamics, reinforce, both"),
        ("--expl_behavior none", "expected a word, one of greedy, random, plan2explore"),
        ("--disag_target none", "expected a word, one of stoch, embed, feat, deter"),
        ("--initial none", "expected a word, one of learned, zeros"),
        ("--reward_head none", "expected a word, one of symlog_disc, normal"),
        ("--dyn_std_act none", "expected a word, one of sigmoid2, sigmoid, softplus, abs"),
        ("--img_source none", "expected a word, one of video, images, clouds, noise, color"),
        ("--distracting_cs_intensity 0.6", "expected a number, one of 0.025, 0.05"),
        ("--task 'a\nb' --steps 'a\nb'", "--steps is a b: expected a whole number from 0 to 1e12"),
    ],
)
def test_bad_setting_is_refused(capsys, line, words):
    assert words in refuse(capsys, line)


@pytest.mark.parametrize(
    "line",
    [
        "--eval_episode_num 0 --eval_every 0 --prefill 0 --pretrain 0 --steps 0",
        "--dyn_discrete 0",
        "--grad_clip 0 --value_grad_clip 0 --actor_grad_clip 0",
        "--grad_heads",
        "--mask_ratio 0 --batch_length 30 --patch_size 100",
        "--encoder.cnn_keys $^ --size 64 48 --batch_length 30",
        "--size 96 96 --encoder.minres 3",
        "--size 8 8 --patch_size 4",
        "--grad_heads decoder --video_pred_log",
        "--eval_only --episodes 3 --video",
    ],
)
def test_unusual_setting_is_accepted(line):
    check_config(load_config(["--configs", "dmc_vision", *line.split()], extra=ACTIONS)[0])


def test_totals_must_be_multiples_of_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(distributed, "_size", 3)
    config = load_config(["--configs", "dmc_vision", "--envs", "6", "--batch_size", "12", "--imag_starts", "9"])
    check_config(config)
    for name in ("envs", "batch_size", "imag_starts"):
        with pytest.raises(ConfigError, match=f"--{name} is 4: expected a multiple of 3"):
            check_config(config.replace(**{name: 4}))


def test_a_resumed_run_keeps_its_settings(tmp_path):
    config = load_config(["--units", "16"])
    check_resume(config, tmp_path)  # no run yet
    for name in ("latest.pt", "train_eps/0.npz"):
        (tmp_path / "lost" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lost" / name).touch()
        with pytest.raises(ConfigError, match=r"lost holds a run \(.+\) that has lost its config.yaml"):
            check_resume(config, tmp_path / "lost")
        (tmp_path / "lost" / name).unlink()
    saved = config.to_dict()
    del saved["kl_free"]  # a setting that is newer than the run
    save_config(Config(saved), tmp_path / "config.yaml")
    check_resume(config.replace(steps=1, log_every=2, device="cpu", assets="elsewhere"), tmp_path)
    other = config.replace(units=24, encoder={"cnn_depth": 8}, kl_free=2)
    with pytest.raises(ConfigError) as problem:
        check_resume(other, tmp_path)
    assert "(encoder.cnn_depth 32 -> 8; kl_free 1.0 -> 2.0; units 16 -> 24)" in str(problem.value)
    assert check_resume(other.replace(allow_config_change=True), tmp_path) == ""
    older = {**saved, "opt": "adam", "encoder": {**saved["encoder"], "act": "SiLU"}}  # with settings that are gone
    save_config(Config(older), tmp_path / "config.yaml")
    assert check_resume(config, tmp_path).endswith("ignored, as this version does not have it: encoder.act, opt")


def test_other_yaml_libraries_read_the_numbers_of_a_run(tmp_path):
    config = load_config(["--value_lr", "3e-5", "--opt_eps", "1.5e-8", "--steps", "1e6"])
    save_config(config, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config.to_dict()
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("flags, code", [(["--help"], 0), (["--batch_sise", "3"], 2), (["--units", "many"], 2)])
def test_help_and_wrong_flags_do_not_wait_for_torch(flags, code):
    command = [sys.executable, "-X", "importtime", str(Path(__file__).parent.parent / "dreamer.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.M)
    assert done.returncode == code and "run.config" in imported
    assert not {"torch", "numpy", "gym", "tensorboard", "mujoco"} & set(imported)


# Properties: tests/campaign.py tries more examples of them

JUNK = (
    "", " ", "nan", "-inf", "1e999", "True", "none", "0x10", "1_000", "1,5", "٣", "--", "-", "é" * 300, "\n", "\x01",
    "'", "1 2", "1e-400", "9" * 400, "[1]", "{}", "1e", "+5", "../..", "%s", "$(reboot)",
)  # fmt: skip
CACHED = functools.cache(ConfigFile)
DEFAULTS = {**CACHED(CONFIGS).defaults, **{name: value for name, (value, _) in ACTIONS.items()}}
BOUNDS = {  # those that --help shows
    name: tuple(map(float, match.groups()))
    for name, legal in LEGAL.items()
    if (match := re.fullmatch(r" from (\S+) to (\S+)", legal.text))
}


def test_legal_values_are_those_of_the_tables():
    """LEGAL lists them again, as networks and baselines import PyTorch, which takes a second."""
    assert LEGAL["dyn_cell"].choices == tuple(networks.CELLS)
    assert LEGAL["augmentation"].choices == tuple(augmentations.AUGMENTATIONS)
    assert set(LEGAL["reward_head"].choices) == networks.PREDICTIONS.keys() - {"binary"}


CHOICES = sorted({str(choice) for legal in LEGAL.values() for choice in legal.choices})
NAMES_OF_FLAGS = st.sampled_from(["configs", "help", "encoder", *DEFAULTS])
FLAGS = NAMES_OF_FLAGS.map("--{}".format)
WORDS = st.one_of(
    FLAGS,
    NAMES_OF_FLAGS.map(lambda name: f"--{name[:-1]}"),
    st.builds("--{}={}".format, NAMES_OF_FLAGS, st.text(max_size=8)),
    SCALARS.map(str),
    st.text(max_size=8),
    st.sampled_from([*CACHED(CONFIGS).groups, *CHOICES, *JUNK, "0", "-1", "-h"]),
    st.sampled_from(sorted({f"{bound:g}" for bounds in BOUNDS.values() for bound in bounds})),
)
PLACES, INSERTED = st.integers(0, 10**5), "{}[]&*!|>'\"%@`,:#-?\\\t\0\x07\ufeff\u2028é\na "
NEW = st.binary(max_size=9) | st.text(INSERTED, max_size=9).map(str.encode)
EDITS = st.lists(st.tuples(PLACES, st.integers(0, 20) | PLACES, NEW), max_size=3)
VALUE = st.sampled_from([None, None, *JUNK, "[1, [2]]", "{a: {b: 1}}", "|", ">", "~"])
MOVES = st.lists(st.tuples(PLACES, PLACES, VALUE), max_size=3)


def edited(text: bytes, edits: list, moves: list) -> bytes:
    """Bytes replaced by others, then lines copied to another place or given another value."""
    for place, count, new in edits:
        place %= len(text) + 1
        text = text[:place] + new + text[place + count :]
    lines = text.splitlines(keepends=True) or [b""]
    for i, j, value in moves:
        line = lines[i % len(lines)]
        lines[j % len(lines)] = line if value is None else f"{line.split(b':')[0].decode('latin')}: {value}\n".encode()
    return b"".join(lines)


def read(words: list[str], check: bool = True, **options) -> tuple[dict | None, str]:
    """Legal settings and flags of a command line, or None and the one line by which it is refused."""
    out, err = io.StringIO(), io.StringIO()
    once = mock.patch.object(module, "ConfigFile", CACHED)
    try:
        with once, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            config, actions = load_config(words, extra=ACTIONS, **options)
            found = {**config.flat(), **actions}
            for name in found.keys() & DEFAULTS:
                assert type(found[name]) is type(DEFAULTS[name])
                for item in found[name] if isinstance(found[name], list) else [found[name]]:
                    assert name not in LEGAL or LEGAL[name].allows(item), f"{name} became {item!r}"
            if check:
                check_config(config)
        return found, ""
    except ConfigError as error:  # printed by dreamer.py
        assert str(error) and "\n" not in str(error)
        return None, str(error)
    except SystemExit as stop:
        assert (stop.code, err.getvalue().count("\n")) == ((0, 0) if out.getvalue() else (2, 1)), err.getvalue()
        return None, err.getvalue()


@settings(deadline=None)
@given(st.sampled_from(sorted(BOUNDS)), st.floats(0, 1) | st.sampled_from([-1e300, -1.0, 2.0, 1e300]))
def test_a_number_is_legal_within_its_bounds_alone(name, place):
    (low, high), default = BOUNDS[name], DEFAULTS[name]
    kind = type(default[0] if isinstance(default, list) else default)
    gap = 1 if kind is int else max(abs(low), abs(high)) * 1e-6
    inside = min(high, low + (high - low) * place)
    value = {-1.0: low - gap, 2.0: high + max(gap, high * 1e-6)}.get(place, inside if 0 <= place <= 1 else place)
    text = str(int(value)) if kind is int and abs(value) < 1e20 else repr(value)
    found, line = read([f"--{name}", *[text] * (2 if name == "size" else 1)], check=False)
    if 0 <= place <= 1:
        assert (found[name][0] if isinstance(default, list) else found[name]) == kind(text), line
    else:
        assert found is None and f"--{name} is" in line


@settings(deadline=None)
@given(st.one_of(st.lists(WORDS, max_size=8), st.lists(st.tuples(FLAGS, WORDS), max_size=4).map(lambda x: sum(x, ()))))
def test_any_command_line_gives_a_legal_config_or_one_line(words):
    read(words)


@settings(deadline=None)
@given(st.sampled_from([SMALL.encode(), CONFIGS.read_bytes()]), EDITS, MOVES)
def test_any_change_of_the_file_gives_a_config_or_one_line(tmp_path_factory, text, edits, moves):
    path = tmp_path_factory.mktemp("config") / "configs.yaml"
    path.write_bytes(edited(text, edits, moves))
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            load_config([], path)
    except SystemExit as stop:
        assert stop.code == 2 and err.getvalue().count("\n") == 1 and str(path) in err.getvalue()


@functools.cache
def vision_config() -> Config:
    return load_config(["--configs", "dmc_vision"])


@settings(deadline=None)
@given(EDITS, MOVES)
def test_any_change_of_a_saved_config_gives_a_config_or_one_line(tmp_path_factory, edits, moves):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    save_config(vision_config(), path)
    path.write_bytes(edited(path.read_bytes(), edits, moves))
    try:
        read([], check=False, base=read_config(path))
    except ConfigError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize(
    "line, note",
    [
        ("--task gym_Pendulum-v1 --img_source clouds", "--img_source has no effect: --task is gym_Pendulum-v1"),
        ("--task dmc_walker_walk --env_kwargs g=5", "--env_kwargs has no effect: --task is dmc_walker_walk"),
        (
            "--task dmc_walker_walk_video --img_source clouds --eval_resource_files a/*.mp4",
            "--eval_resource_files has no effect: --img_source is clouds",
        ),
        ("--task gym_X-v0 --encoder.cnn_keys rgb --mask_ratio 0.3", ""),
        ("--task dmc_walker_walk --old_floor True", ""),
    ],
)
def test_flags_of_other_tasks_are_named(line, note):
    words = ["--configs", "dmc_vision", *line.split()]
    assert module.unread_flags(load_config(words), words) == note


@pytest.mark.parametrize("flags", ["--size 16 16", "--patch_size 40", "--mask_ratio 0.02"])
def test_a_mask_that_hides_nothing_is_refused(flags):
    with pytest.raises(ConfigError, match="hides none of the"):
        module.check_config(load_config(["--configs", "dmc_vision", *flags.split()]))
