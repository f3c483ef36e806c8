"""YAML and `key=value` on typed dataclasses (OmegaConf), one line per mistake: what every configuration shares.

A `Schema` says which dataclass a file describes. Whatever is wrong raises `UptakeError` with the file, the line, the
value and the fix: an unknown key is answered with the nearest known one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs import located_yaml
from envs.errors import UptakeError, nearest
from envs.files import whole

SMALL, SMALL_ON = "small", "small=true"
KeyPath = tuple[str, ...]  # a dotted key, split: the names of rewards may hold dots
APART = ("sft",)
"""Folders in `configs/` whose files are of a schema of their own."""


@dataclass(frozen=True)
class Setting:
    """One value that was given."""

    path: KeyPath
    value: Any
    where: str  # file:line, or the override

    @property
    def key(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Schema:
    """What a configuration file describes."""

    root: type
    """The dataclass that its keys are fields of."""
    example: str
    """A `key=value` that a message may show."""
    folder: str = ""
    """The folder in `configs/` whose files can be given by name; empty: all but those `APART`."""
    alternatives: Mapping[str, type] = field(default_factory=dict)
    """Sections of which a file has exactly one: it says what is trained with."""

    def read(self, name_or_path: str, overrides: Sequence[str]) -> tuple[Any, list[Setting]]:
        """The object that a file and overrides describe, and where each value that was given comes from.

        Raises:
            UptakeError: no such file, YAML that does not parse, an unknown key, a value of the wrong type.
        """
        source, text = _read(name_or_path, self.folder)
        tree, lines = _parse(text, source)
        small = _small(tree, SMALL_ON in overrides, source, lines)
        given = [name for name in self.alternatives if tree.get(name) is not None]
        # What another algorithm calls something helps nobody who has chosen one.
        hidden = [name for name in self.alternatives if given and name not in given]
        self._check_keys(tree, self.root, source, lines, hidden)
        settings = [Setting(path, value, _at(source, lines, path)) for path, value in self._leaves(tree, self.root)]
        below = {path[1:]: line for path, line in lines.items() if path[:1] == (SMALL,)}
        self._check_keys(small, self.root, source, below, hidden)
        if SMALL_ON in overrides:
            settings += [
                Setting(path, value, _at(source, below, path)) for path, value in self._leaves(small, self.root)
            ]
        for override in overrides:
            if override != SMALL_ON:
                settings.append(self._parse_override(override, hidden))
        config = OmegaConf.structured(self.root)
        if self.alternatives:
            chosen = self._alternative(given, settings, source, lines)
            config[chosen] = OmegaConf.structured(self.alternatives[chosen])
        for setting in settings:
            node: Any = config
            for part in setting.path[:-1]:
                node = node[part]
            try:
                node[setting.path[-1]] = self._plain(setting)
            except OmegaConfBaseException as error:
                raise UptakeError(
                    f"{setting.where}: {setting.key} = {setting.value!r}: expected {self._kind(setting.path)}"
                ) from error
        return OmegaConf.to_object(config), settings

    def fields(self, schema: type) -> dict[str, Any]:
        """Names and types; an optional section counts as a section."""
        hints = get_type_hints(schema)
        return {f.name: self.alternatives.get(f.name, hints[f.name]) for f in dataclasses.fields(schema)}

    def _known(self, schema: type, prefix: str = "", hidden: Collection[str] = ()) -> list[str]:
        """Every dotted key of a schema but those of the hidden sections."""
        keys = []
        for name, kind in self.fields(schema).items():
            if name in hidden:
                continue
            keys.append(prefix + name)
            if dataclasses.is_dataclass(kind):
                keys += self._known(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        return keys

    def _parse_override(self, override: str, hidden: Collection[str]) -> Setting:
        key, equals, text = override.partition("=")
        key = key.strip()
        where = f"override '{override}'"
        if not equals or not key:
            raise UptakeError(f"{where}: write key=value, for example {self.example}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UptakeError(f"{where}: '{text}' is not valid YAML") from error
        path: list[str] = []
        kind: Any = self.root
        rest = key
        while rest:
            if get_origin(kind) is dict and get_args(kind)[1] is not Any:
                path.append(rest)  # the name of a reward may be a file's path, dots included
                break
            part, _, rest = rest.partition(".")
            if dataclasses.is_dataclass(kind):
                fields = self.fields(kind)  # type: ignore[arg-type]
                if part not in fields:
                    prefix = "".join(f"{name}." for name in path)
                    raise UptakeError(
                        f"{where}: unknown key '{prefix}{part}'{self._nearest_key(part, prefix, fields, hidden)}"
                    )
                kind = fields[part]
            elif get_origin(kind) is not dict:
                raise UptakeError(f"{where}: '{'.'.join(path)}' has no keys below it")
            path.append(part)
        if dataclasses.is_dataclass(kind):
            raise UptakeError(f"{where}: '{key}' is a section; write {key}.KEY=VALUE")
        return Setting(tuple(path), value, where)

    def _alternative(
        self, given: Sequence[str], settings: Sequence[Setting], source: str, lines: Mapping[KeyPath, int]
    ) -> str:
        """The one section of `alternatives` that file and overrides speak of."""
        places = {name: _at(source, lines, (name,)) for name in given}
        for setting in settings:
            if setting.path[0] in self.alternatives:
                places.setdefault(setting.path[0], setting.where)
        if len(places) > 1:
            (first, where), (second, other) = places.items()
            raise UptakeError(f"{other}: '{second}' next to '{first}' of {where}: a run is trained with one; keep one")
        if not places:
            known = "' nor '".join(self.alternatives)
            raise UptakeError(f"{source}: neither '{known}': give one of these sections, it says what is trained with")
        return next(iter(places))

    def _check_keys(
        self,
        tree: dict[str, Any],
        schema: type,
        where: str,
        lines: dict[KeyPath, int],
        hidden: Collection[str],
        prefix: KeyPath = (),
    ) -> None:
        fields = self.fields(schema)
        for name, value in tree.items():
            path = (*prefix, str(name))
            at, key = _at(where, lines, path), ".".join(path)
            if name not in fields:
                hint = self._nearest_key(str(name), "".join(f"{part}." for part in prefix), fields, hidden)
                raise UptakeError(f"{at}: unknown key '{key}'{hint}")
            kind = fields[name]
            if value is None and name in self.alternatives:  # as a written configuration says that it is not this one
                continue
            if dataclasses.is_dataclass(kind):
                if not isinstance(value, dict):
                    raise UptakeError(f"{at}: '{key}' is a section of keys, found {value!r}")
                self._check_keys(value, kind, where, lines, hidden, path)  # type: ignore[arg-type]

    def _nearest_key(self, name: str, prefix: str, siblings: Mapping[str, Any], hidden: Collection[str]) -> str:
        """The nearest key: an exact match in another section, an abbreviation (lr), a misspelling here or elsewhere."""
        leaves = {known.rpartition(".")[2]: known for known in reversed(self._known(self.root, hidden=hidden))}
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

    def _leaves(self, tree: dict[str, Any], schema: type, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
        """(path, value) of every field that a checked tree sets; a mapping is set entry by entry."""
        fields = self.fields(schema)
        for name, value in tree.items():
            kind = fields[name]
            if value is None and name in self.alternatives:
                continue
            if dataclasses.is_dataclass(kind):
                yield from self._leaves(value, kind, (*prefix, name))  # type: ignore[arg-type]
            elif get_origin(kind) is dict and isinstance(value, dict):
                yield from (((*prefix, name, str(key)), item) for key, item in value.items())
            else:
                yield (*prefix, name), value

    def _type(self, path: KeyPath) -> Any:
        """The type of a field, or of an entry of a mapping."""
        kind: Any = self.root
        for part in path:
            if dataclasses.is_dataclass(kind):
                kind = self.fields(kind)[part]  # type: ignore[arg-type]
            elif get_origin(kind) is dict:
                kind = get_args(kind)[1]
        return kind

    def _plain(self, setting: Setting) -> Any:
        """The value, with what YAML 1.1 takes for text (`1e-4`, which lacks its point) read as the number that it is.

        A whole number where any number is expected becomes one, or OmegaConf would warn of it; so do the keys of a
        mapping by number, which a file's reader takes for text.
        """
        kind = self._type(setting.path)
        with contextlib.suppress(ValueError, TypeError):
            if type(setting.value) in (str, int) and kind in (float, float | None):
                return float(setting.value)
            if isinstance(setting.value, dict) and kind == dict[int, float]:
                return {int(key): float(value) for key, value in setting.value.items()}
        return setting.value

    def _kind(self, path: KeyPath) -> str:
        """What a field holds, in a user's words."""
        kind = self._type(path)
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        if get_origin(kind) is dict:
            keys = "whole numbers" if get_args(kind)[0] is int else "names"
            return f"a mapping of {keys} to {words.get(get_args(kind)[1], 'values')}"
        if get_origin(kind) is list:
            return f"a list, each entry {words.get(get_args(kind)[0], 'a value')}"
        return words.get(kind, str(kind))


def dump(config: Any) -> str:
    """A resolved configuration as YAML, every field included."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save(config: Any, path: Path) -> None:
    """Write a resolved configuration, every field included, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(dump(config), encoding="utf-8")


def check(config: Any, settings: Sequence[Setting], path: KeyPath, good: Callable[[Any], bool], why: str) -> None:
    """Raise `UptakeError`, naming where it was given, for a value that a type allows and that cannot be."""
    value = config
    for part in path:
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if not good(value):
        where = [f"{s.where}: " for s in settings if s.path == path[: len(s.path)]]
        raise UptakeError(f"{where[-1] if where else ''}{'.'.join(path)} = {value!r}: {why}")


def names(inside: str = "") -> list[str]:
    """The configurations that can be given by name: those in a folder of `configs/`, or all but those `APART`."""
    found: list[str] = []

    def walk(folder: Any, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir() and entry.name not in ("__pycache__", *APART):
                walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                found.append(prefix + entry.name.removesuffix(".yaml"))

    walk(resources.files("configs") / inside, "")
    return sorted(found)


def sections(path: str) -> frozenset[str]:
    """The keys at the top of a file; raises UptakeError if it is none of YAML."""
    source, text = _read(path, "")
    return frozenset(_parse(text, source)[0])


def _read(name_or_path: str, inside: str) -> tuple[str, str]:
    known = names(inside)
    if name_or_path in known:
        file = f"{inside}/{name_or_path}.yaml".removeprefix("/")
        return f"configs/{file}", (resources.files("configs") / file).read_text("utf-8")
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


def _small(tree: dict[str, Any], wanted: bool, source: str, lines: Mapping[KeyPath, int]) -> dict[str, Any]:
    """The section `small`, taken out of the tree."""
    section = tree.pop(SMALL, {})
    if not isinstance(section, dict):
        raise UptakeError(f"{_at(source, lines, (SMALL,))}: '{SMALL}' is a section of keys, found {section!r}")
    if wanted and not section:
        raise UptakeError(f"override '{SMALL_ON}': {source} has no section '{SMALL}'")
    return section


def _at(where: str, lines: Mapping[KeyPath, int], path: KeyPath) -> str:
    while path and path not in lines:
        path = path[:-1]
    return f"{where}:{lines[path]}" if path else where
