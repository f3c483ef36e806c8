"""A run's configuration: typed dataclasses on OmegaConf, YAML on disk, one line per mistake.

`load_config("quickstart", ["seed=1"])` reads `configs/quickstart.yaml` (from the clone or from the installed wheel),
lays the overrides on top and returns a complete `TrainConfig`. Whatever is wrong raises `UptakeError` with the file,
the line, the value and the fix: an unknown key is answered with the nearest known one. `save_config` writes every
field out, defaults included, so a run folder says what was done and not what was asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.policies.moshi.prompt import PromptConfig
from align.trainers.grpo_config import GrpoConfig
from align.trainers.ppo_config import PpoConfig
from envs import located_yaml
from envs.errors import UptakeError, nearest
from rewards.detector import DetectorConfig
from rewards.judge.config import JudgeConfig

ALGORITHMS: dict[str, type[GrpoConfig] | type[PpoConfig]] = {"grpo": GrpoConfig, "ppo": PpoConfig}
"""Sections of which a configuration has exactly one: it says what is trained with."""
SMALL, SMALL_ON = "small", "small=true"
KeyPath = tuple[str, ...]  # a dotted key, split: the names of rewards may hold dots


@dataclass(frozen=True)
class _Setting:
    path: KeyPath
    value: Any
    where: str  # file:line, or the override

    @property
    def key(self) -> str:
        return ".".join(self.path)


@dataclass
class EvaluationConfig:
    """What is measured before and after training."""

    split: str = "test"
    """Which scenarios: dev or test. Their voices and texts are in no training split."""
    variants: int = 4
    """How many times each scenario is played; variant v of a scenario sounds the same before and after."""
    frames: int = 150
    """Length of a conversation in frames of 80 ms."""
    batch: int = 32
    """Conversations played side by side. Changes speed and memory, no figure."""
    seed: int = 1234
    """Seeds the users' rooms and timing and the policy's sampling; the same for every seed of the training."""
    baselines: list[str] = field(default_factory=lambda: ["silent", "always_talking", "vad_200", "vad_700", "oracle"])
    """Scripted agents measured in the same table (names: `align.evaluation.BASELINES`)."""
    resamples: int = 2000
    """Bootstrap resamples behind every 95 % interval."""
    conversations: int = 6
    """How many conversations the report shows and plays, before and after."""


@dataclass
class WandbConfig:
    """Where metrics go besides `metrics.jsonl`."""

    mode: str = "offline"
    """offline (a folder inside the run that `wandb sync` uploads later), online or disabled."""
    project: str = "uptake"


@dataclass
class TrainConfig:
    """Everything that decides a run."""

    name: str = "run"
    """The run folder's name."""
    runs: str = "runs"
    """The folder of run folders."""
    policy: str = "pocket"
    """The checkpoint that training starts from: `pocket`, or the path of a checkpoint folder."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """What its conversations begin with."""
    pack: str = "core"
    """The scenarios and their audio: `core`, or the path of a pack folder."""
    users: str = ""
    """Other scenarios for the pack's audio: `reactive`, or the path of a YAML file. Empty: the pack's own."""
    acoustics: str = "clean"
    """How conversations sound that do not say it themselves, in training and when they are measured: a preset (`cafe`,
    `telephone`, ...; `mixed`: another one for every conversation), or a YAML file (docs/acoustics.md)."""
    seed: int = 0
    """Seeds the training: rollouts, batches, sampling."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Reward term -> weight; 0 leaves it out. A term is a registered name, or `path/to/file.py:name`."""
    activity: DetectorConfig = field(default_factory=DetectorConfig)
    """Who is taken to speak when, in rewards and measures."""
    embedding: str = ""
    """Folder of the sentence encoder that terms on meaning compare texts with; empty: none (docs/judge.md)."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The language model that the terms which ask one are put to."""
    grpo: GrpoConfig | None = None
    """Train with GRPO; or"""
    ppo: PpoConfig | None = None
    """with PPO. Exactly one of the two is given."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs) / self.name

    @property
    def algorithm(self) -> GrpoConfig | PpoConfig:
        """The section that is given."""
        found = self.grpo or self.ppo
        assert found is not None  # load_config sees to it
        return found


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration and check it.

    A recipe for a large machine may have a section `small`: settings that `small=true` lays over the others, so that
    the same recipe runs on a laptop.

    Args:
        name_or_path: a name inside `configs/` ("quickstart", "recipes/published") or the path of a YAML file.
        overrides: `key=value` with dotted keys ("grpo.iterations=2"); the values are YAML.

    Raises:
        UptakeError: no such file, YAML that does not parse, an unknown key, a value of the wrong type or range.
    """
    source, text = _read(name_or_path)
    tree, lines = _parse(text, source)
    small = _small(tree, SMALL_ON in overrides, source, lines)
    given = [name for name in ALGORITHMS if tree.get(name) is not None]
    # What another algorithm calls something helps nobody who has chosen one.
    hidden = [name for name in ALGORITHMS if given and name not in given]
    _check_keys(tree, TrainConfig, source, lines, hidden)
    settings = [_Setting(path, value, _at(source, lines, path)) for path, value in _leaves(tree, TrainConfig)]
    below = {path[1:]: line for path, line in lines.items() if path[:1] == (SMALL,)}
    _check_keys(small, TrainConfig, source, below, hidden)
    if SMALL_ON in overrides:
        settings += [_Setting(path, value, _at(source, below, path)) for path, value in _leaves(small, TrainConfig)]
    for override in overrides:
        if override != SMALL_ON:
            settings.append(_parse_override(override, hidden))
    config = OmegaConf.structured(TrainConfig)
    algorithm = _algorithm(given, settings, source, lines)
    config[algorithm] = OmegaConf.structured(ALGORITHMS[algorithm])
    for setting in settings:
        node: Any = config
        for part in setting.path[:-1]:
            node = node[part]
        try:
            node[setting.path[-1]] = _plain(setting)
        except OmegaConfBaseException as error:
            raise UptakeError(
                f"{setting.where}: {setting.key} = {setting.value!r}: expected {_kind(setting.path)}"
            ) from error
    result: TrainConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    _check_values(result, settings)
    return result


def _small(tree: dict[str, Any], wanted: bool, source: str, lines: Mapping[KeyPath, int]) -> dict[str, Any]:
    """The section `small`, taken out of the tree."""
    section = tree.pop(SMALL, {})
    if not isinstance(section, dict):
        raise UptakeError(f"{_at(source, lines, (SMALL,))}: '{SMALL}' is a section of keys, found {section!r}")
    if wanted and not section:
        raise UptakeError(f"override '{SMALL_ON}': {source} has no section '{SMALL}'")
    return section


def _algorithm(given: Sequence[str], settings: Sequence[_Setting], source: str, lines: Mapping[KeyPath, int]) -> str:
    """The one section of `ALGORITHMS` that file and overrides speak of."""
    places = {name: _at(source, lines, (name,)) for name in given}
    for setting in settings:
        if setting.path[0] in ALGORITHMS:
            places.setdefault(setting.path[0], setting.where)
    if len(places) > 1:
        (first, where), (second, other) = places.items()
        raise UptakeError(f"{other}: '{second}' next to '{first}' of {where}: a run is trained with one; keep one")
    if not places:
        known = "' nor '".join(ALGORITHMS)
        raise UptakeError(f"{source}: neither '{known}': give one of these sections, it says what is trained with")
    return next(iter(places))


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration, every field included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_config(config), encoding="utf-8")


def dump_config(config: TrainConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def names() -> list[str]:
    """The configurations that can be given by name."""
    found: list[str] = []

    def walk(folder: Any, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir() and entry.name != "__pycache__":
                walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                found.append(prefix + entry.name.removesuffix(".yaml"))

    walk(resources.files("configs"), "")
    return sorted(found)


def _read(name_or_path: str) -> tuple[str, str]:
    known = names()
    if name_or_path in known:
        return f"configs/{name_or_path}.yaml", (resources.files("configs") / f"{name_or_path}.yaml").read_text("utf-8")
    path = Path(name_or_path)
    if not path.is_file():
        raise UptakeError(f"no configuration '{name_or_path}': neither a file nor a name{nearest(name_or_path, known)}")
    try:
        return str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UptakeError(f"{path}: not a text file in UTF-8: {error}") from error


def _parse(text: str, source: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """YAML text -> (nested dict, path -> line)."""
    documents = located_yaml.read(text, source)
    if not documents:
        return {}, {}
    tree = documents[0].data
    if not isinstance(tree, dict):
        raise UptakeError(f"{source}:1: a configuration is a mapping of keys to values, found {type(tree).__name__}")
    return tree, {tuple(str(part) for part in path): line for path, line in documents[0].lines.items()}


def _parse_override(override: str, hidden: Collection[str]) -> _Setting:
    key, equals, text = override.partition("=")
    key = key.strip()
    where = f"override '{override}'"
    if not equals or not key:
        raise UptakeError(f"{where}: write key=value, for example grpo.iterations=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UptakeError(f"{where}: '{text}' is not valid YAML") from error
    path: list[str] = []
    kind: Any = TrainConfig
    rest = key
    while rest:
        if get_origin(kind) is dict and get_args(kind)[1] is not Any:
            path.append(rest)  # the name of a reward may be a file's path, dots included
            break
        part, _, rest = rest.partition(".")
        if dataclasses.is_dataclass(kind):
            fields = _fields(kind)  # type: ignore[arg-type]
            if part not in fields:
                prefix = "".join(f"{name}." for name in path)
                raise UptakeError(f"{where}: unknown key '{prefix}{part}'{_nearest_key(part, prefix, fields, hidden)}")
            kind = fields[part]
        elif get_origin(kind) is not dict:
            raise UptakeError(f"{where}: '{'.'.join(path)}' has no keys below it")
        path.append(part)
    if dataclasses.is_dataclass(kind):
        raise UptakeError(f"{where}: '{key}' is a section; write {key}.KEY=VALUE")
    return _Setting(tuple(path), value, where)


def _fields(schema: type) -> dict[str, Any]:
    """Names and types; an optional section counts as a section."""
    hints = get_type_hints(schema)
    return {f.name: ALGORITHMS.get(f.name, hints[f.name]) for f in dataclasses.fields(schema)}


def _known(schema: type, prefix: str = "", hidden: Collection[str] = ()) -> list[str]:
    """Every dotted key of a schema but those of the hidden sections."""
    keys = []
    for name, kind in _fields(schema).items():
        if name in hidden:
            continue
        keys.append(prefix + name)
        if dataclasses.is_dataclass(kind):
            keys += _known(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return keys


def _check_keys(
    tree: dict[str, Any],
    schema: type,
    where: str,
    lines: dict[KeyPath, int],
    hidden: Collection[str],
    prefix: KeyPath = (),
) -> None:
    fields = _fields(schema)
    for name, value in tree.items():
        path = (*prefix, str(name))
        at, key = _at(where, lines, path), ".".join(path)
        if name not in fields:
            hint = _nearest_key(str(name), "".join(f"{part}." for part in prefix), fields, hidden)
            raise UptakeError(f"{at}: unknown key '{key}'{hint}")
        kind = fields[name]
        if value is None and name in ALGORITHMS:  # as a written configuration says that it is not this one
            continue
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise UptakeError(f"{at}: '{key}' is a section of keys, found {value!r}")
            _check_keys(value, kind, where, lines, hidden, path)  # type: ignore[arg-type]


def _nearest_key(name: str, prefix: str, siblings: Mapping[str, Any], hidden: Collection[str]) -> str:
    """The nearest key: an exact match in another section, an abbreviation (lr), a misspelling here or elsewhere."""
    leaves = {known.rpartition(".")[2]: known for known in reversed(_known(TrainConfig, hidden=hidden))}
    if name in leaves:
        return f"; did you mean '{leaves[name]}'?"
    for sibling in siblings:
        if name == "".join(word[0] for word in sibling.split("_")):
            return f"; did you mean '{prefix}{sibling}'?"
    here = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if here:
        return f"; did you mean '{prefix}{here[0]}'?"
    elsewhere = difflib.get_close_matches(name, leaves, n=1, cutoff=0.8)
    if elsewhere:
        return f"; did you mean '{leaves[elsewhere[0]]}'?"
    return nearest(prefix + name, [prefix + sibling for sibling in siblings])


def _leaves(tree: dict[str, Any], schema: type, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """(path, value) of every field that a checked tree sets; a mapping is set entry by entry."""
    fields = _fields(schema)
    for name, value in tree.items():
        kind = fields[name]
        if value is None and name in ALGORITHMS:
            continue
        if dataclasses.is_dataclass(kind):
            yield from _leaves(value, kind, (*prefix, name))  # type: ignore[arg-type]
        elif get_origin(kind) is dict and isinstance(value, dict):
            yield from (((*prefix, name, str(key)), item) for key, item in value.items())
        else:
            yield (*prefix, name), value


def _type(path: KeyPath) -> Any:
    """The type of a field, or of an entry of a mapping."""
    kind: Any = TrainConfig
    for part in path:
        if dataclasses.is_dataclass(kind):
            kind = _fields(kind)[part]  # type: ignore[arg-type]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
    return kind


def _plain(setting: _Setting) -> Any:
    """The value, with what YAML 1.1 takes for text (`1e-4`, which lacks its point) read as the number that it is.

    A whole number where any number is expected becomes one, or OmegaConf would warn of it.
    """
    if type(setting.value) in (str, int) and _type(setting.path) in (float, float | None):
        with contextlib.suppress(ValueError):
            return float(setting.value)
    return setting.value


def _kind(path: KeyPath) -> str:
    """What a field holds, in a user's words."""
    kind = _type(path)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(kind) is dict:
        return f"a mapping of names to {words.get(get_args(kind)[1], 'values')}"
    if get_origin(kind) is list:
        return f"a list, each entry {words.get(get_args(kind)[0], 'a value')}"
    return words.get(kind, str(kind))


def _at(where: str, lines: Mapping[KeyPath, int], path: KeyPath) -> str:
    while path and path not in lines:
        path = path[:-1]
    return f"{where}:{lines[path]}" if path else where


def _check_values(config: TrainConfig, settings: Sequence[_Setting]) -> None:
    """Ranges that a type does not say."""

    def check(path: KeyPath, good: Callable[[Any], bool], why: str) -> None:
        value: Any = config
        for part in path:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if not good(value):
            where = [f"{s.where}: " for s in settings if s.path == path[: len(s.path)]]
            raise UptakeError(f"{where[-1] if where else ''}{'.'.join(path)} = {value!r}: {why}")

    for name in ("variants", "frames", "batch", "resamples"):
        check(("evaluation", name), lambda n: n >= 1, "must be at least 1")
    for path in (("seed",), ("evaluation", "seed"), ("evaluation", "conversations")):
        check(path, lambda n: n >= 0, "must be 0 or more")
    check(("evaluation", "split"), lambda s: s in ("train", "dev", "test"), "must be train, dev or test")
    check(("wandb", "mode"), lambda m: m in ("disabled", "offline", "online"), "must be disabled, offline or online")
    check(("name",), lambda n: bool(n) and Path(n).name == n, "must be one folder name, without '/'")
    for term in config.rewards:
        check(("rewards", term), math.isfinite, "a weight must be finite")
    for name, kind in _fields(type(config.algorithm)).items():
        if kind is float:
            check((config.algorithm.section, name), math.isfinite, "must be finite")
