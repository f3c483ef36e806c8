"""YAML that remembers its lines, and the subset of JSON Schema that checks it with one clear error.

Only what `scenario.schema.json` uses is interpreted: type, enum, properties, required, additionalProperties, items,
minItems, maxItems, minLength, minimum, maximum, exclusiveMinimum, pattern, anyOf and $ref into $defs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from envs.errors import UptakeError, nearest

_MAX_NODES = 200_000  # aliases can blow a short file up without end; no honest scenario file is this large
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """One YAML document as plain data, and the line (from 1) on which each key or item stands."""

    source: str
    data: Any
    lines: Mapping[Path, int]

    def line(self, path: Path = ()) -> int:
        """The line of this place, or of the nearest place round it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, message: str, path: Path = ()) -> UptakeError:
        """An error that starts with ``file:line``."""
        return UptakeError(f"{self.source}:{self.line(path)}: {message}")


def read(text: str, source: str) -> list[Document]:
    """Read all documents of a YAML text; empty ones are left out. Raises `UptakeError` with ``source:line``."""
    try:
        nodes = list(yaml.compose_all(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UptakeError(f"{source}:{line}: not YAML: {error.problem}; check indentation and quotes") from error
    except (yaml.YAMLError, ValueError) as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position if isinstance(position, int) else 0) + 1
        raise UptakeError(f"{source}:{line}: not YAML text: {str(error).splitlines()[0]}; save it as UTF-8") from error
    try:
        return [_Reader(source).document(node) for node in nodes if node is not None]
    except RecursionError as error:
        raise UptakeError(f"{source}:1: nested too deeply; no scenario has a use for that") from error


class _Reader:
    """Turns one node tree into data and lines."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Path, int] = {}
        self.open: set[int] = set()
        self.count = 0
        self.scalars = SafeConstructor()

    def document(self, node: yaml.Node) -> Document:
        self.lines[()] = node.start_mark.line + 1
        return Document(self.source, self._value(node, ()), self.lines)

    def _fail(self, node: yaml.Node, message: str) -> UptakeError:
        return UptakeError(f"{self.source}:{node.start_mark.line + 1}: {message}")

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if id(node) in self.open or self.count > _MAX_NODES:
            raise self._fail(node, "an alias contains itself or the file is too large; write it out")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                values = []
                for i, child in enumerate(node.value):
                    self.lines[(*path, i)] = child.start_mark.line + 1
                    values.append(self._value(child, (*path, i)))
                return values
            return self._scalar(node)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._fail(key_node, "a key must be a plain word")
            key = key_node.value
            if key in result:
                raise self._fail(key_node, f"key {key!r} stands twice; remove one")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self._value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self.scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
            raise self._fail(node, f"cannot read the value {str(node.value)!r:.60}; quote it if it is text") from error


_TYPES = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
}
_ARTICLES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
}


def check(document: Document, schema: Mapping[str, Any]) -> None:
    """Raise `UptakeError` naming line, value and fix for the first thing that does not agree with the schema."""
    _check(document, document.data, schema, schema, ())


def check_part(document: Document, value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: Path) -> None:
    """`check` for the value at a place in a document; `root` holds the schema's ``$defs``."""
    _check(document, value, schema, root, path)


def _check(document: Document, value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: Path) -> None:
    if "$ref" in schema:
        definition = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
        # The definition says what a value may be, the place only what it is for: an error needs the former.
        schema = {**definition, **schema, "description": definition.get("description", schema.get("description"))}
    name = ".".join(str(part) for part in path) or "the document"
    if "anyOf" in schema:
        options = [root["$defs"][o["$ref"].rsplit("/", 1)[-1]] if "$ref" in o else o for o in schema["anyOf"]]
        mappings = [option for option in options if option.get("type") == "object"]
        if isinstance(value, dict) and len(mappings) == 1:  # what is wrong inside is a better answer than the choice
            return _check(document, value, mappings[0], root, path)
        if not any(_agrees(document, value, option, root, path) for option in schema["anyOf"]):
            known = [word for option in schema["anyOf"] for word in option.get("enum", ())]
            hint = nearest(value, known) if known and isinstance(value, str) else ""
            raise document.error(f"{name} is {_show(value)}; it must be {schema['description']}{hint}", path)
        return
    if "enum" in schema and not (isinstance(value, str) and value in schema["enum"]):
        hint = nearest(str(value), schema["enum"])
        raise document.error(f"{name} is {_show(value)}, which is not allowed{hint}", path)
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        raise document.error(f"{name} is {_show(value)}; it must be {_ARTICLES[kind]}", path)
    if kind in ("number", "integer"):
        _check_number(document, value, schema, name, path)
    elif kind == "string":
        if len(value) < schema.get("minLength", 0) or not re.fullmatch(schema.get("pattern", "(?s:.*)"), value):
            wanted = schema.get("description") or "text that is not empty"
            raise document.error(f"{name} is {_show(value)}; it must be {wanted}", path)
    elif kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", _MAX_NODES):
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            wanted = f"{least}" if least == most else f"at least {least}"
            raise document.error(f"{name} has {len(value)} entries; give {wanted}", path)
        for i, item in enumerate(value):
            _check(document, item, schema["items"], root, (*path, i))
    elif kind == "object":
        _check_object(document, value, schema, root, name, path)


def _check_number(document: Document, value: float, schema: Mapping[str, Any], name: str, path: Path) -> None:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    if math.isnan(value) or math.isinf(value) or not (low <= value <= high and value > above):
        lowest = f"above {above}" if above > -math.inf else f"at least {low}"
        raise document.error(f"{name} is {_show(value)}; it must be {lowest} and at most {high}", path)


def _check_object(
    document: Document, value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], name: str, path: Path
) -> None:
    properties = schema.get("properties", {})
    extra = schema.get("additionalProperties", True)
    for key in value:
        if key not in properties and extra is False:
            raise document.error(f"unknown key {key!r} in {name}{nearest(key, properties)}", (*path, key))
    for key in schema.get("required", ()):
        if key not in value:
            raise document.error(f"{name} has no {key!r}; add it", path)
    for key, child in value.items():
        inner = properties.get(key, extra)
        if isinstance(inner, Mapping):
            _check(document, child, inner, root, (*path, key))


def _agrees(document: Document, value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: Path) -> bool:
    try:
        _check(document, value, schema, root, path)
    except UptakeError:
        return False
    return True


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"  # repr of a huge int can itself raise
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
