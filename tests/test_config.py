"""The command line and configs.yaml."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tools
from tools import Config, ConfigError, load_config, read_config, save_config

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
    """The one line on stderr with which a command line is refused."""
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


def test_flags_have_the_last_word_wherever_they_stand(path):
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
        ("--bath 8", "error: unknown flag --bath; did you mean batch"),
        ("--depth 8", "error: unknown flag --depth; did you mean net.depth?"),
        ("--zzzzqq 8", "error: unknown flag --zzzzqq\n"),
        ("--configs bigg", "error: unknown config bigg; did you mean big?"),
        ("--configs qqqq", "error: unknown config qqqq; there are big, fast"),
        ("--configs defaults", "error: unknown config defaults"),
        ("--configs", "error: --configs needs names: big, fast"),
        ("--batch 1.5", "error: --batch is 1.5: expected a whole number"),
        ("--batch True", "error: --batch is True: expected a whole number"),
        ("--batch eight", "error: --batch is eight: expected a whole number"),
        ("--batch inf", "error: --batch is inf: expected a whole number"),
        ("--batch", "error: --batch takes one value (a whole number), got none"),
        ("--batch 1 2", "error: --batch takes one value (a whole number), got 2: 1 2"),
        ("--rate fast", "error: --rate is fast: expected a number"),
        ("--rate nan", "error: --rate is nan: expected a number"),
        ("--rate false", "error: --rate is False: expected a number"),
        ("--switch 1", "error: --switch is 1: expected True or False"),
        ("--name", "error: --name takes one value"),
        ("--size 64 b", "error: --size is b: expected a whole number"),
        ("--net 3", "error: --net is a group: set --net.depth, --net.act"),
        ("batch 8", "error: 'batch' is no flag"),
    ],
)
def test_wrong_flag_is_one_line(path, capsys, line, message):
    assert error(capsys, path, line).startswith(message)


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        ("batch: 64", "bath: 64", 20, "unknown setting bath; did you mean batch"),
        ("{depth: 48}", "{dept: 48}", 21, "unknown setting net.dept; did you mean depth?"),
        ("batch: 64", "batch: 6.5", 20, "batch is 6.5: expected a whole number"),
        ("batch: 64", "batch: '64'", 20, "batch is 64: expected a whole number"),
        ("batch: 64", "batch:", 20, "batch has no value"),
        ("batch: 64", "batch: .inf", 20, "batch is .inf: expected a finite number"),
        ("batch: 64", "batch: [64]", 20, "batch is 64: expected a whole number"),
        ("net: {depth: 48}", "net: 48", 21, "net is a group of settings"),
        ("batch: 64", "batch: {a: 1}", 20, "batch holds no settings"),
        ("  batch: 64", "  batch: 64\n  batch: 32", 21, "batch stands there twice"),
        ("  whole: 3", "  whole: 3\n  batch: 3", 9, "batch stands there twice"),
        ("fast:", "big:", 23, "group big stands there twice"),
        ("words: [a, b]", "words: [a, [b]]", 25, "words holds a list or settings within its list"),
        ("words: [a, b]", "words: [a, 2]", 25, "words is 2: expected a word"),
        ("batch: 64", "batch: [64", 21, "no valid YAML"),
        ("batch: 64", "batch: *other", 20, "no valid YAML"),
        ("batch: 64", "\tbatch: 64", 20, "no valid YAML"),
        ("batch: 64", "batch: 64\x07", 20, "no valid YAML"),
        ("big:", "[big]:", 19, "expected the name of a group"),
        ("batch: 64", "[batch]: 64", 20, "this is no name of a setting"),
        ("fast:", "fast: 3\nslow:", 23, "group fast holds no settings"),
        ("defaults:", "default:", 2, "the first group has to be defaults, this one is default"),
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
    assert error(capsys, path).startswith(f"error: {path}:1: expected groups of settings")


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
    assert first < lines.index("--steps 1000000 environment steps") < lines.index("--words (none)") < second
    assert "--size 64 64 height and width" in lines
    assert second < lines.index("--net.depth 32 channels")
    assert "--net.act silu # gelu activation" in lines
    assert "--eval_only False evaluate, then stop" in lines
    assert "big more of everything" in lines
    assert "fast steps 500000, words ['a', 'b']" in lines


def test_help_of_the_real_file_is_complete(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"])
    text = capsys.readouterr().out
    file = tools.ConfigFile(tools.CONFIGS)
    for name in Config(file.defaults).flat():
        assert f"  --{name} " in text
        assert file.comments[name], f"{name} has no comment"
    for group in file.groups:
        assert f"\n  {group} " in text


def test_every_named_config_of_the_real_file_merges_alone_and_together():
    groups = list(tools.ConfigFile(tools.CONFIGS).groups)
    for names in [[group] for group in groups] + [groups]:
        assert load_config(["--configs", *names]).configs == tuple(names)


def test_actions_are_kept_apart_from_settings(path, capsys):
    extra = {"eval_only": (False, "evaluate"), "eval_tasks": ((), "tasks"), "episodes": (10, "episodes")}
    config, extras = load(path, "--eval_only --batch 8 --eval_tasks a b", extra=extra)
    assert config.batch == 8 and "eval_only" not in config
    assert extras.to_dict() == {"eval_only": True, "eval_tasks": ["a", "b"], "episodes": 10}
    assert "--episodes is 1.5: expected a whole number" in error(capsys, path, "--episodes 1.5", extra=extra)
    assert "did you mean eval_only" in error(capsys, path, "--evalonly", extra=extra)


def test_settings_of_an_earlier_run_replace_the_defaults(path, tmp_path):
    save_config(load(path, "--configs big --rate 1e-8 --name ''"), tmp_path / "config.yaml")
    base = read_config(tmp_path / "config.yaml")
    config = load(path, "--batch 2", base=base)
    assert (config.rate, config.net.depth, config.batch, config.configs) == (1e-8, 48, 2, ("big",))


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
    other = config.replace(batch=8, net={"depth": 4}, size=(1, 2), rate=1)
    assert (other.batch, other.net.depth, other.net.act, other.size) == (8, 4, "silu # gelu", (1, 2))
    assert type(other.rate) is float and config.batch == 16 and other != config
    assert config.replace(**{"net.depth": 4}).net.depth == 4
    with pytest.raises(ConfigError, match="unknown setting bach; did you mean batch"):
        config.replace(bach=8)
    with pytest.raises(ConfigError, match=r"batch is 0\.5: expected a whole number"):
        config.replace(batch=0.5)


SCALARS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=20).filter(lambda text: text.isprintable()),
    st.sampled_from(["1e6", "1e-4", "null", "true", "~", "", "12:30", "- a", "# b", "'", "[]", "2020-01-01", "0x1f"]),
)
NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
VALUES = st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(NAMES, SCALARS)))


@given(VALUES)
def test_saved_config_reads_back_equal(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    save_config(Config(values), path)
    read = read_config(path)
    assert read.to_dict() == values
    assert repr(read) == repr(Config(values))  # types too: 1 is no 1.0


@given(st.one_of(st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_number_survives_a_flag(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("config") / "configs.yaml"
    path.write_text("defaults:\n  number: 0.5\n")
    assert load_config(["--number", repr(number)], path).number == float(number)


def test_damaged_saved_config(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="holds no settings"):
        read_config(tmp_path / "config.yaml")


def test_import_is_silent_and_without_torch():
    code = "import sys, tools; tools.load_config([]); print('torch' in sys.modules, 'tensorboard' in sys.modules)"
    root = Path(tools.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")
