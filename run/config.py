"""Settings: the file configs.yaml, the command line, and the legal values of each setting.

    config = load_config(sys.argv[1:])  # each value has its default's type and is legal on its own
    check_config(config)  # the values fit together

Nothing here imports torch, so a mistake on the command line is reported at once.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re
import sys
from bisect import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import envs
from envs.legal import BOUNDS, TEXT, Legal, between, one_of
from run import distributed
from run.files import replacing

CONFIGS = Path(__file__).parent.parent / "configs.yaml"

# Flags that are not settings of a run: name -> (default, comment).
ACTIONS = {
    "eval_only": (False, "evaluate the checkpoint in --logdir, on --task if that is given, and exit"),
    "eval_suite": ("", "with --eval_only: a suite of test sets, dmcgb, dmcgb2, dmcgb2_geometric or distracting"),
    "episodes": (0, "episodes of --eval_only; 0 for eval_episode_num"),
    "video": (False, "with --eval_only: write videos of the episodes to logdir/videos"),
    "probe_state": (False, "with --eval_only: R² of linear probes from the features to state variables and background"),
}

# Settings that determine how long, how often or where, not what is computed: they may change when a run resumes.
FREE_SETTINGS = {
    "allow_config_change", "assets", "checkpoint_every", "compile", "configs", "device", "env_failures", "eval_envs",
    "eval_episode_num", "eval_every", "eval_tasks", "from_checkpoint", "log_every", "logdir", "loggers", "parallel",
    "replay_dir_limit", "replay_memory", "steps", "video_pred_log",
}  # fmt: skip
# They may change too, as the same files may lie elsewhere; but they may be others, so an evaluation records the change.
MOVED = {"ds_resource_path", "eval_resource_files", "resource_files", "scan_path"}


# Legal values


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError, TypeError):
        return False
    return True


NONEMPTY = Legal(bool, " that is not empty")
PATTERN = Legal(_is_pattern, " that is a regular expression")

# Every setting that is not True or False is in exactly one row. Below the lower bound, a value would fail or be
# meaningless; above the upper bound, a run would not end, not fit into any machine, or not stay finite.
_ROWS = (
    # Run
    ("logdir", NONEMPTY),
    ("task device eval_suite eval_tasks from_checkpoint loggers", TEXT),  # checked where they are used
    ("seed", between(*BOUNDS["seed"])),
    ("steps eval_every expl_until replay_dir_limit", between(0, 1e12)),
    ("log_every checkpoint_every dataset_size", between(1, 1e12)),
    ("replay_memory", between(0, 1e6)),
    ("eval_episode_num episodes", between(0, 1e5)),
    ("precision", one_of(16, 32)),
    # Environment
    ("size", between(*BOUNDS["size"])),
    ("envs", between(1, 1024)),
    ("eval_envs", between(0, 1024)),
    ("action_repeat", between(*BOUNDS["action_repeat"])),
    ("env_failures", between(0, 1e6)),
    ("failed_episodes", one_of("cut", "drop")),
    ("time_limit", between(*BOUNDS["time_limit"])),
    ("prefill", between(0, 1e8)),
    # Networks
    ("dyn_hidden dyn_deter dyn_cont_stoch_size units encoder.mlp_units disag_units", between(1, 16384)),
    ("reward_layers cont_layers value_layers actor_layers encoder.mlp_layers disag_layers", between(1, 100)),
    ("dyn_stoch dyn_blocks", between(1, 1024)),
    ("dyn_discrete", between(0, 1024)),
    ("dyn_min_std", between(1e-6, 10)),
    ("encoder.cnn_depth", between(1, 1024)),
    ("encoder.kernel_size", between(2, 32)),
    ("encoder.minres", between(1, 2048)),
    ("encoder.mlp_keys encoder.cnn_keys", PATTERN),
    ("dyn_cell", one_of("gru_layer_norm", "block_gru")),
    ("dyn_mean_act", one_of("none", "tanh5")),
    ("dyn_std_act", one_of("sigmoid2", "sigmoid", "softplus", "abs")),
    ("initial", one_of("learned", "zeros")),
    ("reward_head value_head", one_of("symlog_disc", "normal")),
    ("grad_heads", one_of("decoder", "reward", "cont")),
    # Losses
    ("kl_free dyn_scale rep_scale reward_scale cont_scale decoder_scale mbr_scale simsr_scale", between(0, 1e6)),
    ("expl_extr_scale expl_intr_scale", between(0, 1e6)),
    ("unimix_ratio action_unimix_ratio mask_ratio aug_prob expl_amount eval_noise imag_gradient_mix", between(0, 1)),
    ("encoder_tau dynamics_tau slow_target_fraction simsr_discount discount discount_lambda", between(0, 1)),
    ("patch_size block_size", between(1, 4096)),
    ("mbr_projection", one_of("trained", "fixed")),
    ("mbr_loss", one_of("distance", "barlow")),
    ("simsr_branch imag_branch", one_of("target", "masked")),
    ("baseline", one_of("none", "repo", "r2dreamer", "infonce", "dreamerpro")),
    ("repo_scale repo_target barlow_scale infonce_scale swav_scale temp_scale norm_scale", between(0, 1e6)),
    ("barlow_lambda", between(0, 1e6)),
    ("repo_balance proto_tau", between(0, 1)),
    ("repo_init_beta", between(1e-20, 1e6)),
    ("proto_count", between(1, 1e5)),
    ("proto_size", between(1, 16384)),
    ("proto_shift", between(0, 4096)),
    ("proto_freeze", between(0, 1e12)),
    ("proto_temperature sinkhorn_eps", between(1e-3, 1e3)),
    ("sinkhorn_iterations", between(1, 1000)),
    ("augmentation", one_of("affine", "crop", "rrc", "blur", "shift", "intensity", "overlay")),
    # Training
    ("batch_size", between(1, 4096)),
    ("batch_length", between(2, 4096)),
    ("train_ratio", between(1e-6, 1e5)),
    ("pretrain imag_starts", between(0, 1e6)),
    ("slow_target_update", between(1, 1e6)),
    ("model_lr value_lr actor_lr repo_lr", between(1e-10, 0.1)),
    ("opt_eps ac_opt_eps", between(1e-20, 1)),
    ("grad_clip value_grad_clip actor_grad_clip", between(0, 1e9)),
    ("weight_decay", between(0, 1)),
    # Behavior and exploration
    ("imag_horizon", between(2, 1000)),
    ("imag_gradient", one_of("dynamics", "reinforce", "both")),
    ("actor_dist", one_of("normal", "trunc_normal", "tanh_normal", "onehot")),
    ("actor_entropy", between(0, 1000)),
    ("actor_min_std actor_init_std", between(0, 10)),
    ("actor_max_std", between(1e-3, 10)),
    ("expl_behavior", one_of("greedy", "random", "plan2explore")),
    ("disag_target", one_of("stoch", "embed", "feat", "deter")),
    ("disag_models", between(2, 100)),
    ("disag_offset", between(1, 4095)),
)
LEGAL: dict[str, Legal] = {name: legal for names, legal in _ROWS for name in names.split()} | envs.settings()


# The type


class ConfigError(ValueError):
    """A setting that the user must correct; the message is one line."""


class Config(Mapping):
    """Settings, read only: `config.encoder.cnn_depth` or `config["encoder"]["cnn_depth"]`. Lists become tuples."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]):
        object.__setattr__(self, "_values", {key: _freeze(value) for key, value in values.items()})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in self._values:
            raise AttributeError(f"no setting {key}{nearest(key, self._values)}")
        return self._values[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"settings are read only: use replace({key}=...)")

    def __repr__(self) -> str:
        return f"Config({self.to_dict()})"

    def __reduce__(self):
        return Config, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for YAML and JSON."""
        return _thaw(self)

    def flat(self) -> dict[str, Any]:
        """One entry per setting, nested ones under dotted names, as in flags."""
        return dict(_flatten(self.to_dict()))

    def replace(self, **changes: Any) -> Config:
        """A copy with other values: `replace(batch_size=8, encoder={"cnn_depth": 16})`; dotted names work too.

        Raises ConfigError for an unknown name or an illegal value.
        """
        values = self.flat()
        for name, value in _flatten(changes):
            if name not in values:
                raise ConfigError(_unknown(name, values))
            values[name] = _convert(name, _thaw(value), values[name])
        return Config(_nest(values))


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config(value)
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    return [_thaw(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    return nested


def nearest(name: str, names: Collection[str], or_all: bool = False) -> str:
    """`; did you mean a, b?`. If no name is close: nothing, or with `or_all` the list of all names."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; choose from {', '.join(sorted(names))}" if or_all else ""


def _unknown(name: str, known: Collection[str], dashes: str = "") -> str:
    """The error for a name that is not a setting."""
    inside = [dashes + other for other in known if other.startswith(f"{name}.")]
    if inside:
        return f"{dashes}{name} is a group of settings: set {', '.join(inside)}"
    same_end = [dashes + other for other in known if other.rpartition(".")[2] == name]
    hint = f"; did you mean {', '.join(same_end)}?" if same_end else nearest(dashes + name, [dashes + k for k in known])
    return f"unknown {'flag' if dashes else 'setting'} {dashes}{name}{hint}"


def _expected(name: str, default: Any) -> str:
    if isinstance(default, list):
        return f"a list, each {_expected(name, default[0] if default else '')}"
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
    return kinds[type(default)] + (LEGAL[name].text if name in LEGAL else "")


def _convert(label: str, value: Any, default: Any) -> Any:
    """The value in the type of the default: a whole number may be written 1e4, a number 1.

    Raises ConfigError, naming the setting as `label` (with dashes for a flag), for another type or an illegal value.
    """
    name = label.removeprefix("--")
    if isinstance(default, list) and isinstance(value, list):
        return [_convert(label, item, default[0] if default else "") for item in value]
    found = value
    if type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # infinite, NaN, or too large an int for a float
            found = None
        elif isinstance(default, float):
            found = float(value)
        elif value == int(value):
            found = int(value)
    if type(found) is type(default) and (name not in LEGAL or LEGAL[name].allows(found)):
        return found
    shown = " ".join(map(str, value)) if isinstance(value, list) else "''" if value == "" else value
    raise ConfigError(f"{label} is {shown}: expected {_expected(name, default)}")


# Files


class ConfigFile:
    """A configs.yaml file: flat, dotted settings, with the comments and titles that --help shows.

    Raises ConfigError, naming file and line, for anything but groups of known settings with legal values.
    """

    def __init__(self, path: Path | str):
        self.defaults: dict[str, Any] = {}
        self.groups: dict[str, dict[str, Any]] = {}  # all but defaults
        self.comments: dict[str, str] = {}  # comment of each setting of defaults, and of each group under `:name`
        self.titles: dict[str, str] = {}  # last `# == Title ==` above each setting of defaults
        root, self._lines = _compose(path)
        for key, node in root.value:
            name = key.value
            if key.id != "scalar":
                raise _error(path, key, "expected the name of a group")
            if (name == "defaults") != (not self.defaults) or name in self.groups:
                order = f"group {name} is defined twice" if self.defaults else f"defaults must come before {name}"
                raise _error(path, key, order)
            if node.id != "mapping" or not node.value:
                raise _error(path, key, f"group {name} has no settings")
            values = self._settings(path, node)
            if self.defaults:
                self.groups[name] = values
            else:
                self.defaults = values
            self.comments[f":{name}"] = self._comment(key)

    def _settings(self, path: Path | str, group) -> dict[str, Any]:
        """Values of a group's node; the first one, the defaults, determines the names and types of all others."""
        values: dict[str, Any] = {}
        titles = [(i, match[1]) for i, line in enumerate(self._lines) if (match := TITLE.fullmatch(line))]
        for name, key, node in _entries(path, group):
            try:
                if self.defaults and name not in self.defaults:
                    raise ConfigError(_unknown(name, self.defaults))
                value = _value(name, node)
                values[name] = _convert(name, value, self.defaults.get(name, value))
            except ConfigError as error:
                raise _error(path, key, str(error)) from None
            if not self.defaults:
                self.comments[name] = self._comment(key)
                above = bisect(titles, (key.start_mark.line,))
                self.titles[name] = titles[above - 1][1] if above else ""
        return values

    def _comment(self, key) -> str:
        return self._lines[key.end_mark.line].partition("  # ")[2].strip()


TITLE = re.compile(r"\s*# == (.*) ==\s*")


def _error(path: Path | str, node, message: str) -> ConfigError:
    return ConfigError(f"{path}:{node.start_mark.line + 1}: {message}")


def _compose(path: Path | str) -> tuple[Any, list[str]]:
    """The root node of a YAML file, a mapping, and the file's lines."""
    from ruamel.yaml import YAML, YAMLError

    try:
        text = Path(path).read_text(encoding="utf-8")
        root = YAML(typ="safe", pure=True).compose(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise ConfigError(f"{path}:{line + 1}: invalid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: nested too deeply") from None
    if root is None or root.id != "mapping":
        raise ConfigError(f"{path}:1: expected settings as `name: value`")
    return root, text.splitlines()


def _entries(path: Path | str, mapping, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, key node and value node of each setting in a mapping node."""
    seen = set()  # names of settings and groups so far
    for key, node in mapping.value:
        if key.id != "scalar" or not re.fullmatch(r"[A-Za-z]\w*", key.value):
            raise _error(path, key, f"{key.value if key.id == 'scalar' else 'this'} is not the name of a setting")
        if key.value in seen:
            raise _error(path, key, f"{prefix}{key.value} is defined twice")
        seen.add(key.value)
        if node.id != "mapping" or not node.value:
            yield prefix + key.value, key, node
        elif prefix:
            raise _error(path, key, f"{prefix}{key.value} is a group within a group")
        else:
            yield from _entries(path, node, f"{key.value}.")


def _value(name: str, node) -> Any:
    if node.id == "sequence" and all(item.id == "scalar" for item in node.value):
        return [_value(name, item) for item in node.value]
    if node.id != "scalar" or node.tag.endswith(":null"):
        raise ConfigError(f"{name} has no value" if node.id != "sequence" else f"{name} is a list of lists or settings")
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "bool":
        return text.lower() == "true"
    if kind not in ("int", "float"):
        return text
    try:
        if kind == "int":
            return int(text)
        # 1e6 counts steps and 1e-4 is a rate: without a point and with a positive exponent it is a whole number
        return int(float(text)) if re.fullmatch(r"[-+]?\d+[eE]\+?\d+", text) else float(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"{name} is {text}: expected a finite number in decimal digits") from None


def save_config(config: Config, path: Path | str) -> None:
    """Writes a config as YAML, atomically."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False
    yaml.representer.add_representer(float, _represent_float)
    with replacing(path, "w") as file:
        yaml.dump(config.to_dict(), file)


def _represent_float(representer: Any, value: float) -> Any:
    """3.0e-05, not 3e-05, which other YAML libraries read as a string."""
    mantissa, e, exponent = repr(value).partition("e")
    if e and "." not in mantissa:
        mantissa += ".0"
    return representer.represent_scalar("tag:yaml.org,2002:float", mantissa + e + exponent)


def read_config(path: Path | str) -> Config:
    """Reads what `save_config` wrote; ConfigError, naming file and line, if the file is missing or damaged."""
    values = {}
    for name, key, node in _entries(path, _compose(path)[0]):
        try:
            values[name] = _value(name, node)
        except ConfigError as error:
            raise _error(path, key, str(error)) from None
    return Config(_nest(values))


# The command line


def load_config(
    argv: Sequence[str],
    path: Path | str = CONFIGS,
    extra: Mapping[str, tuple[Any, str]] | None = None,
    base: Config | None = None,
) -> Any:
    """The settings of a command line.

    `--configs A B` merges these groups of the file over its defaults, in order, nested settings one by one; flags
    override both. A whole number may be written 1e4; a lone `--flag` means True; a list takes any number of words.

    Args:
        argv: the command line without the program.
        path: the file of settings.
        extra: flags that are not settings, name -> (default, comment for --help).
        base: settings of an earlier run, which replace the defaults.

    Returns the config, its `configs` naming the groups; with `extra`, a pair: the config, the values of these flags.
    Prints --help and exits, or one line about what is wrong and exits with status 2.
    """
    actions = {name: default for name, (default, _) in (extra or {}).items()}
    try:
        file = ConfigFile(path)
        if any(word in ("-h", "--help") for word in argv):
            sys.stdout.write(_help(file, extra or {}))
            raise SystemExit(0)
        values = _merge(argv, {**file.defaults, "configs": [], **actions}, file.groups, base or {})
    except ConfigError as error:
        if distributed.rank() == 0:  # the others report the same
            print("error:", *str(error).split(), file=sys.stderr)
        raise SystemExit(2) from None
    actions = Config({name: values.pop(name) for name in actions})
    config = Config(_nest(values))
    return config if extra is None else (config, actions)


def _merge(argv: Sequence[str], defaults: dict[str, Any], groups: Mapping[str, dict], base: Mapping) -> dict[str, Any]:
    """Flat values: the defaults, replaced by `base`, by the groups that --configs names, by flags."""
    flags: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            flags.append((name, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise ConfigError(f"{word!r} is not a flag: write settings as --name value")
    # a run's settings may be older or newer than these
    replaced = {k: _convert(k, _thaw(v), defaults[k]) for k, v in _flatten(base) if k in defaults}
    values = {**defaults, **replaced}
    for flag, words in flags:
        if flag not in defaults:
            raise ConfigError(_unknown(flag, defaults, "--"))
        if flag == "configs":
            if not words:
                raise ConfigError(f"--configs needs names: {', '.join(groups)}")
            for group in words:
                if group not in groups:
                    raise ConfigError(f"unknown config {group}{nearest(group, groups, or_all=True)}")
                values.update(groups[group])
            values["configs"] = [*values["configs"], *words]
    for flag, words in flags:
        if flag != "configs":
            values[flag] = _convert(f"--{flag}", _parse(flag, words, defaults[flag]), defaults[flag])
    if values.get("time_limit") == 0:
        values["time_limit"] = envs.time_limit(values["task"])
    return values


def _parse(flag: str, words: list[str], default: Any) -> Any:
    """The words of a flag, as bools and numbers where they look like ones and the default is not a string."""
    if isinstance(default, list):
        return [_parse(flag, [word], default[0] if default else "") for word in words]
    if isinstance(default, bool) and not words:
        return True
    if len(words) != 1:
        got = f"got {len(words)}: {' '.join(words)}" if words else "got none"
        raise ConfigError(f"--{flag} takes one value ({_expected(flag, default)}), {got}")
    word = words[0]
    if not isinstance(default, str) and word.lower() in ("true", "false"):
        return word.lower() == "true"
    for number in () if isinstance(default, str) else (int, float):
        with contextlib.suppress(ValueError):
            return number(word)
    return word


def _help(file: ConfigFile, extra: Mapping[str, tuple[Any, str]]) -> str:
    def line(name: str, default: Any, comment: str) -> str:
        shown = " ".join(map(str, default)) or "(none)" if isinstance(default, list) else default
        start = f"  --{name} " + ("''" if shown == "" else str(shown))
        limits = f" ({legal.text.strip()})" if (legal := LEGAL.get(name, TEXT)).text.startswith(" from") else ""
        return f"{start:<42}  {comment}{limits}".rstrip() + "\n"

    text = "usage: python dreamer.py [--configs NAME ...] [--setting value ...]\n\n"
    text += (
        "All settings with their defaults. Step counts are environment steps, action repeat included, unless they are "
        "called agent steps or updates.\n"
    )
    title = ""
    for name, default in file.defaults.items():
        if file.titles[name] != title:
            title = file.titles[name]
            text += f"\n{title}\n"
        text += line(name, default, file.comments[name])
    if extra:
        text += "\nActions\n"
        text += "".join(line(name, default, comment) for name, (default, comment) in extra.items())
    text += "\nNamed configs, merged in the order in which --configs names them\n"
    for group, settings in file.groups.items():
        comment = file.comments[f":{group}"] or ", ".join(f"{name} {value}" for name, value in settings.items())
        text += f"  {group:<20}  {comment}\n"
    return text


# Several settings


def sees_images(config: Config) -> bool:
    """Whether the encoder reads the image."""
    return bool(re.match(config.encoder.cnn_keys, "image"))


def names_are_known(config: Config) -> bool:
    """Whether all images of a task are called `image`; an env of gym_ may give them other names."""
    return not config.task.startswith("gym_")


def require(true: Any, problem: str) -> None:
    if not true:
        raise ConfigError(problem)


def check_config(config: Config) -> None:
    """Raises ConfigError for settings that are legal individually, but not together."""
    c, ranks = config, distributed.size()
    require(len(c.size) == 2, f"--size {' '.join(map(str, c.size))}: expected height and width, such as 64 64")
    if sees_images(c) or names_are_known(c):  # else `make_agent` checks them
        check_images(c, sees_images(c))
    for name in ("batch_size", "envs", "imag_starts"):
        require(c[name] % ranks == 0, f"--{name} is {c[name]}: expected a multiple of {ranks}, for {ranks} processes")
    repeat, low, high = c.action_repeat, c.actor_min_std, c.actor_max_std
    limit = c.time_limit
    require(not limit or repeat <= limit, f"--time_limit {limit} is shorter than --action_repeat {repeat}")
    require(low <= high, f"--actor_min_std {low} is above --actor_max_std {high}")
    split = c.dyn_cell != "block_gru" or c.dyn_deter % c.dyn_blocks == 0
    require(split, f"--dyn_deter {c.dyn_deter} cannot be split into --dyn_blocks {c.dyn_blocks}, for block_gru")
    offset, length, decoder = c.disag_offset, c.batch_length, "decoder" in c.grad_heads
    require(offset < length, f"--disag_offset {offset}: expected less than --batch_length {length}")
    require(not (c.probe_decoder and decoder), "--probe_decoder: --grad_heads has a decoder, so there already is one")
    if c.video_pred_log or c.probe_decoder:
        require(decoder or c.probe_decoder, "--video_pred_log: there is no decoder; --probe_decoder True trains one")
        require(length > 5, f"--batch_length is {length}: a decoder's videos need more than 5 steps")


def check_images(config: Config, seen: bool) -> None:
    """Raises ConfigError for settings that do not fit an encoder that reads images, whatever their names, or none."""
    c, size, minres = config, " ".join(map(str, config.size)), config.encoder.minres
    if not seen:
        reads = f"needs images: --encoder.cnn_keys {c.encoder.cnn_keys} reads none"
        require(c.baseline != "dreamerpro", f"--baseline dreamerpro {reads}")
        require(not c.video_pred_log, f"--video_pred_log {reads}")
        return
    sides = [minres * 2**stages for stages in range(1, 13)]
    require(c.size[0] == c.size[1], f"--size {size}: the encoder takes square images")
    require(c.size[0] in sides, f"--size {size}: expected --encoder.minres {minres} times 2, 4, 8, ...")
    if c.mask_ratio:
        whole = c.batch_length % c.block_size == 0
        require(whole, f"--batch_length {c.batch_length} is not a multiple of --block_size {c.block_size}, of the mask")
        require(c.patch_size <= c.size[0], f"--patch_size {c.patch_size} is larger than the image, --size {size}")
        grid = max(c.size[0] // c.patch_size, 1)  # as in models.cube_mask
        require(
            int(c.mask_ratio * grid**2),
            f"--mask_ratio {c.mask_ratio} hides none of the {grid}x{grid} patches of --patch_size {c.patch_size} in an "
            f"image of --size {size}: reduce --patch_size, or set --mask_ratio 0",
        )


def unread_settings(config: Config) -> list[tuple[str, str]]:
    """What nothing reads in a run with this config: pairs of a reason and a pattern of names, as in fnmatch."""
    c = config
    tanh, discrete = c.actor_dist == "tanh_normal", c.actor_dist == "onehot"
    blind = not sees_images(c) and names_are_known(c)
    prefix = c.task.partition("_")[0]
    own = envs.family(prefix).settings if prefix in envs.FAMILIES else envs.settings()
    foreign = " ".join(name for name in envs.settings() if name not in own)  # settings of other families of tasks
    rules = [
        (foreign, "task", foreign),
        (c.img_source not in ("video", "images"), "img_source", "resource_files eval_resource_files total_frames"),
        (not c.hybrid, "hybrid", "mbr_* simsr_branch imag_branch encoder_tau dynamics_tau"),
        (not c.mbr_scale, "mbr_scale", "mbr_loss mbr_projection"),
        (not c.simsr_scale, "simsr_scale", "simsr_discount simsr_branch"),
        (not c.mask_ratio, "mask_ratio", "patch_size block_size"),
        (not c.augmentation, "augmentation", "aug_prob"),
        (blind, "encoder.cnn_keys", "mask_ratio patch_size block_size augmentation aug_prob"),
        (c.dyn_cell != "block_gru", "dyn_cell", "dyn_blocks"),
        (c.dyn_discrete, "dyn_discrete", "dyn_mean_act dyn_std_act dyn_min_std"),
        (not c.dyn_discrete, "dyn_discrete", "unimix_ratio"),
        ("decoder" not in c.grad_heads, "grad_heads", "decoder_scale"),
        (c.baseline != "repo", "baseline", "repo_*"),
        (c.baseline != "r2dreamer", "baseline", "barlow_scale"),
        (c.baseline != "r2dreamer" and c.mbr_loss != "barlow", "baseline", "barlow_lambda"),
        (c.baseline != "infonce", "baseline", "infonce_scale"),
        (c.baseline != "dreamerpro", "baseline", "swav_scale temp_scale norm_scale proto_* sinkhorn_*"),
        (not c.slow_value_target, "slow_value_target", "slow_target_*"),
        (c.imag_gradient != "both", "imag_gradient", "imag_gradient_mix"),
        (not tanh, "actor_dist", "actor_init_std"),
        (discrete, "actor_dist", "actor_min_std"),
        (tanh or discrete, "actor_dist", "actor_max_std"),
        (not discrete, "actor_dist", "action_unimix_ratio"),
        (c.expl_behavior == "greedy", "expl_behavior", "expl_until"),
        (c.expl_behavior != "plan2explore", "expl_behavior", "expl_extr_scale expl_intr_scale disag_*"),
    ]

    values = c.flat()

    def reason(name: str) -> str:
        value = values[name]
        return f"--{name} is {' '.join(value) or 'empty' if isinstance(value, list) else value}"

    return [(reason(name), pattern) for true, name, names in rules if true for pattern in names.split()]


def given_flags(argv: Sequence[str]) -> set[str]:
    """The names of the flags of a command line."""
    return {word[2:].partition("=")[0] for word in argv if word.startswith("--")}


def unread_flags(config: Config, argv: Sequence[str]) -> str:
    """A line about the flags of a command line that its run does not read; empty if there are none."""
    given = given_flags(argv)
    found = {name: reason for reason, pattern in unread_settings(config) for name in fnmatch.filter(given, pattern)}
    return "; ".join(f"--{name} has no effect: {found[name]}" for name in sorted(found))


def check_resume(config: Config, logdir: Path) -> str:
    """Compares the settings with those of the run in `logdir`, if there is one.

    Raises ConfigError if they differ, apart from FREE_SETTINGS and MOVED, or are lost. Returns a line about settings of
    the run that are ignored, as this version does not have them; empty if there are none.
    """
    path = logdir / "config.yaml"
    if not path.exists():
        left = [*logdir.glob("*.pt"), *logdir.glob("train_eps/*.npz")]
        if left:
            raise ConfigError(
                f"--logdir {logdir} holds a run ({left[0].name}) that has lost its config.yaml: restore that file, or "
                "use another --logdir"
            )
        return ""
    differ = changed_settings(config, path)
    if "action_repeat" in differ:
        old, new = differ["action_repeat"]
        raise ConfigError(
            f"--action_repeat is {new}: the run in --logdir {logdir} counts its steps with {old}, which cannot change; "
            "use another --logdir"
        )
    changed = [f"{name} {old!r} -> {new!r}" for name, (old, new) in differ.items() if name not in MOVED]
    if changed and not config.allow_config_change:
        raise ConfigError(
            f"--logdir {logdir} holds a run with other settings ({'; '.join(changed)}): "
            "use another --logdir, or --allow_config_change True to resume with the new ones"
        )
    return ignored(path, read_config(path).flat(), config.flat())


def changed_settings(config: Config, path: Path) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from those of a run's config.yaml, apart from FREE_SETTINGS: (the run's, this one)."""
    old, new = run_settings(path).flat(), config.flat()
    return {
        name: (old[name], new[name]) for name in sorted(new) if old[name] != new[name] and name not in FREE_SETTINGS
    }


def run_settings(path: Path) -> Config:
    """The settings of a run's config.yaml; one that it lacks, as it is newer than the run, had its default."""
    return Config(_nest({**load_config([]).flat(), **read_config(path).flat()}))


def ignored(path: Path, found: Collection[str], known: Collection[str]) -> str:
    """A line about the settings of a run that this version does not have, empty if there are none."""
    names = [name for name in found if name not in known]
    return f"{path}: ignored, as this version does not have it: {', '.join(names)}" if names else ""
