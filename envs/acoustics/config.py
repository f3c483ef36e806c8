"""The `acoustics:` section of a scenario, the presets, and what an environment takes as its default.

    acoustics: cafe                                # a preset
    acoustics:
      preset: cafe                                 # the same, but ...
      babble: {talkers: 3, snr_db: [10, 20]}       # ... this section replaces the preset's
      echo: {return_loss_db: 10, delay_ms: $delay, cancel_db: {dist: uniform, a: 10, b: 25}}

    acoustics:
      mix: {clean: 2, cafe: 1, street.yaml: 1}     # one of these for every conversation, drawn by weight

A quantity is a number, `[a, b]` (uniform), a distribution as under `vars`, or a `$variable`. Each is drawn from its own
child of one of the conversation's streams (`noise`, `room`, `channel`), so that turning one effect on shifts no other,
and a conversation that draws `cafe` from a mix sounds as it does in `cafe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from envs import located_yaml
from envs.acoustics.conditions import SECTIONS, Conditions
from envs.acoustics.packets import PACKET_MS, Network, most_bad
from envs.acoustics.room import Room, exists
from envs.acoustics.underrun import LATE_IN_BURST, Underrun
from envs.clock import CLOCK
from envs.errors import UptakeError, nearest
from envs.located_yaml import Document
from envs.schema import json_schema
from envs.seeding import Seeds
from envs.variables import Value, Var, check_number, check_span, known_variable, parse_var

PRESETS = Path(__file__).with_name("presets.yaml")
_STREAMS = {
    "noise": "noise", "bursts": "noise", "babble": "noise", "speaker": "noise", "room": "room", "echo": "room",
    "gain_db": "channel", "telephone": "channel", "network": "channel", "underrun": "channel",
    "clock_ppm": "channel",
}  # fmt: skip
_SCALARS = ("gain_db", "clock_ppm")

Quantity = Var | str
"""Something to draw, a `$variable`, or a word such as the name of a codec."""


@dataclass(frozen=True)
class Acoustics:
    """How conversations sound, nothing drawn yet."""

    preset: str = ""
    sections: Mapping[str, Mapping[str, Quantity]] = field(default_factory=dict)
    """Effect to its quantities; one that is not here is off. A lone quantity (`gain_db`) stands under its own name."""
    mix: tuple[tuple[float, Acoustics], ...] = ()
    """Weights and what they weigh: one of them is drawn, and `sections` are empty."""
    files: tuple[Path, ...] = ()
    """Where parts of the mix were read."""

    @property
    def effects(self) -> frozenset[str]:
        """What may be on in a conversation."""
        return frozenset(self.sections).union(*(one.effects for _, one in self.mix))

    def beside(self, section: str, quantities: Mapping[str, Quantity]) -> Acoustics:
        """These acoustics with a section more."""
        if self.mix:
            return replace(self, mix=tuple((weight, one.beside(section, quantities)) for weight, one in self.mix))
        return replace(self, sections={**self.sections, section: quantities})

    def draw(self, seeds: Seeds, values: Mapping[str, float]) -> Conditions:
        """Draw every quantity; `values` are the scenario's variables."""
        if self.mix:
            weights = np.array([weight for weight, _ in self.mix])
            drawn_of = seeds.rng("channel", "acoustics", "mix").choice(len(weights), p=weights / weights.sum())
            return self.mix[int(drawn_of)][1].draw(seeds, values)

        def draw(section: str, name: str, quantity: Quantity) -> Any:
            if isinstance(quantity, Var):
                return quantity.draw(seeds.rng(_STREAMS[section], "acoustics", section, name))
            return values[quantity[1:]] if quantity.startswith("$") else quantity

        drawn: dict[str, Any] = {}
        for section, quantities in self.sections.items():
            fields = {name: draw(section, name, quantity) for name, quantity in quantities.items()}
            drawn[section] = fields[section] if section in _SCALARS else SECTIONS[section](**fields)
        return Conditions(preset=self.preset, **drawn)


@cache
def presets() -> Mapping[str, Acoustics]:
    """The presets that ship with the package, by name."""
    (document,) = located_yaml.read(PRESETS.read_text(encoding="utf-8"), str(PRESETS))
    found: dict[str, Acoustics] = {}
    for name, spec in document.data.items():  # a mix stands below what it mixes
        found[name] = replace(_parse(document, spec, (name,), {}, found), preset=name)
    return found


def find_acoustics(what: str | Path | Mapping[str, Any] | Acoustics | None) -> Acoustics:
    """The default of an environment: a preset's name, the path of a YAML file, a mapping, or nothing.

    Raises:
        UptakeError: no such preset or file, or a mistake in it, with its line.
    """
    if what is None:
        return Acoustics()
    if isinstance(what, Acoustics):
        return what
    if isinstance(what, Mapping):
        document = Document("acoustics", dict(what), {})
    elif str(what) in presets():
        return presets()[str(what)]
    else:
        document = _read_file(Path(what))
    return _default(document)


def _default(document: Document) -> Acoustics:
    """What a document says that stands for itself."""
    if isinstance(document.data, Mapping) and "room_tone_db" in document.data:
        raise document.error("room_tone_db belongs to a scenario; remove it here", ("room_tone_db",))
    return _parse(document, document.data, (), {})


def _read_file(path: Path) -> Document:
    if not path.is_file():
        raise UptakeError(f"no acoustics {str(path)!r}: neither a preset nor a file{nearest(str(path), presets())}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UptakeError(f"{path}: cannot be read as UTF-8 text ({error}); check the file") from error
    documents = located_yaml.read(text, str(path))
    if len(documents) != 1:
        raise UptakeError(f"{path}: holds {len(documents)} documents; give one mapping of effects")
    return documents[0]


def parse_acoustics(
    document: Document, spec: Any, where: located_yaml.Path, variables: Mapping[str, Var]
) -> tuple[Acoustics | None, Value | None]:
    """A scenario's section: its acoustics (None where it has none of its own) and its room tone (None: the usual)."""
    if isinstance(spec, str):
        return presets()[spec], None
    tone = spec.get("room_tone_db")
    check_number(document, tone, json_schema()["$defs"]["room_tone_db"], variables, (*where, "room_tone_db"))
    if not set(spec) - {"room_tone_db"}:
        return None, tone
    return _parse(document, spec, where, variables), tone


Known = Mapping[str, Acoustics]
"""Presets by name."""


def _parse(
    document: Document,
    spec: Any,
    where: located_yaml.Path,
    variables: Mapping[str, Var],
    known: Known | None = None,
) -> Acoustics:
    schema = json_schema()
    located_yaml.check_part(document, spec, schema["$defs"]["acoustics"], schema, where)
    known = presets() if known is None else known
    base = known[spec["preset"]] if "preset" in spec else Acoustics()
    others = sorted(set(spec) - {"mix", "preset", "room_tone_db"})
    if "mix" in spec:
        if others or "preset" in spec:
            raise document.error(f"mix: stands alone, beside no {[*others, 'preset'][0]}", (*where, "mix"))
        return _mix(document, spec["mix"], (*where, "mix"), known)
    if base.mix:
        if others:
            raise document.error(f"{others[0]}: {base.preset} is a mix; mix files of your own", (*where, others[0]))
        return base
    sections = dict(base.sections)
    for name, given in spec.items():
        if name in _SCALARS:
            sections[name] = {name: _quantity(document, given, name, (*where, name), variables)}
        elif name in SECTIONS:
            sections[name] = {
                key: _quantity(document, value, f"{name}.{key}", (*where, name, key), variables)
                for key, value in given.items()
            }
    _check_together(document, sections, where, variables)
    return Acoustics(base.preset, sections)


def _mix(document: Document, weights: Mapping[str, float], where: located_yaml.Path, known: Known) -> Acoustics:
    """What one of is drawn: presets, and files whose place counts from the document's."""
    found, files = [], []
    for name, weight in weights.items():
        file = Path(document.source).parent / name
        if name in known:
            one = known[name]
        elif file.is_file():
            other = _read_file(file)
            if isinstance(other.data, Mapping) and "mix" in other.data:  # perhaps of itself
                raise document.error(f"mix: {name!r} is a mix itself; name what it mixes", (*where, name))
            one = _default(other)
            files.append(file)
        else:
            raise document.error(f"mix: {name!r} is neither a preset nor a file{nearest(name, known)}", (*where, name))
        if one.mix:
            raise document.error(f"mix: {name!r} is a mix itself; name what it mixes", (*where, name))
        found.append((float(weight), one))
    if not sum(weight for weight, _ in found):
        raise document.error("mix: no weight is above 0; give one", where)
    return Acoustics(mix=tuple(found), files=tuple(files))


def _quantity(
    document: Document, spec: Any, name: str, where: located_yaml.Path, variables: Mapping[str, Var]
) -> Quantity:
    limits = json_schema()["$defs"]["acoustics"]["properties"]
    for key in name.split("."):
        limits = limits[key] if key in limits else limits["properties"][key]
    if "enum" in limits:
        return str(spec)
    quantity: Quantity
    if isinstance(spec, str):
        known_variable(document, spec, variables, where)
        quantity, found = spec, variables[spec[1:]]
    elif isinstance(spec, Mapping):
        quantity = found = parse_var(document, name, spec, where)
    elif isinstance(spec, list):
        if spec[0] > spec[1]:
            raise document.error(f"{name} is {spec}: the lower bound is above the upper one; swap them", where)
        quantity = found = Var("uniform", (float(spec[0]), float(spec[1])))
    else:
        quantity = found = Var("choice", (float(spec),))
    check_span(document, name, found, limits, where)
    return quantity


def _check_together(
    document: Document,
    sections: Mapping[str, Mapping[str, Quantity]],
    where: located_yaml.Path,
    variables: Mapping[str, Var],
) -> None:
    """What depends on two quantities at once."""

    def bounds(section: str, name: str, default: float) -> tuple[float, float]:
        quantity = sections[section].get(name)
        if quantity is None:
            return default, default
        found = quantity if isinstance(quantity, Var) else variables[quantity[1:]]
        return found.least, found.most

    if "room" in sections:
        shortest, _ = bounds("room", "rt60_s", Room.rt60_s)
        _, farthest = bounds("room", "distance_m", Room.distance_m)
        if not exists(Room(shortest, farthest)):
            raise document.error(
                f"room: no room has rt60_s {shortest:g} with the user at {farthest:g} m; "
                "give a longer rt60_s or a shorter distance_m",
                (*where, "room"),
            )
    if "network" in sections:
        _, loss = bounds("network", "loss", Network.loss)
        dense, _ = bounds("network", "loss_in_burst", Network.loss_in_burst)
        if loss > 0.9 * dense:
            raise document.error(
                f"network: loss {loss:g} needs bad spells nearly all the time at loss_in_burst {dense:g}; "
                "raise loss_in_burst",
                (*where, "network"),
            )
        burst, _ = bounds("network", "burst_ms", Network.burst_ms)
        if loss / dense > (most := most_bad(burst / PACKET_MS)):
            raise document.error(
                f"network: in bad spells of {burst:g} ms a share of {most * dense:.2g} is lost at most, not {loss:g}; "
                "raise burst_ms or loss_in_burst",
                (*where, "network"),
            )
    if "underrun" in sections:
        _, share = bounds("underrun", "share", Underrun.share)
        burst, _ = bounds("underrun", "burst_ms", Underrun.burst_ms)
        if share > (most := LATE_IN_BURST * most_bad(burst / (1000.0 * CLOCK.frame_seconds))):
            raise document.error(
                f"underrun: in slow spells of {burst:g} ms a share of {most:.2g} is late at most, not {share:g}; "
                "raise burst_ms",
                (*where, "underrun"),
            )
