"""Laws of timing: what distribution a gap, a pause or an overlap of the reactive user comes from, as data.

    laws = load_laws("human")                    # laws.yaml beside this file, or the path of another one
    laws["fto"].at(0.5)                          # seconds: the median

A law is a distribution over all conversations. `dyad` is the share of its variance (on the scale where it is normal)
that two people keep through their conversation: fast pairs stay fast (Cavalcanti and Skantze 2025, arXiv 2505.24736).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

from envs import located_yaml
from envs.errors import UptakeError, nearest
from envs.located_yaml import Document

SCHEMA = "duplex.laws/1"
BUILTIN = Path(__file__).with_name("laws.yaml")
NAMES = ("fto", "pause", "overlap", "backchannel_lag", "interval", "opening", "entry", "patience")
"""Every law that a reactive user needs."""

_PARAMETERS = {
    "normal": ("mean", "sd"),
    "lognormal": ("median", "sigma"),
    "uniform": ("a", "b"),
    "exponential": ("mean",),
}
_NORMAL = NormalDist()
_EDGE = 1e-12

_NUMBER = {"type": "number", "minimum": -1e6, "maximum": 1e6}
_FILE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema", "name", "laws"],
    "properties": {
        "schema": {"enum": [SCHEMA]},
        "name": {"type": "string", "minLength": 1},
        "laws": {
            "type": "object",
            "required": list(NAMES),
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["dist", "dyad", "source"],
                "properties": {
                    "dist": {"enum": sorted(_PARAMETERS)},
                    **{name: _NUMBER for names in _PARAMETERS.values() for name in names},
                    "clip": {"type": "array", "minItems": 2, "maxItems": 2, "items": _NUMBER},
                    "dyad": {"type": "number", "minimum": 0, "maximum": 0.99},
                    "source": {"type": "string", "minLength": 1},
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Law:
    """One distribution of a time in seconds (or in the unit that its source says)."""

    name: str
    dist: str
    """`normal` (mean, sd), `lognormal` (median, sigma), `uniform` (a, b) or `exponential` (mean)."""
    params: tuple[float, ...]
    clip: tuple[float, float] = (-math.inf, math.inf)
    dyad: float = 0.0
    """Share of the variance between conversations."""
    source: str = ""

    def quantile(self, p: float) -> float:
        """The value below which a share `p` in [0, 1] of all draws lies, clipped."""
        p = _open(p)
        if self.dist == "uniform":
            value = self.params[0] + p * (self.params[1] - self.params[0])
        elif self.dist == "exponential":
            value = -self.params[0] * math.log1p(-p)
        elif self.dist == "normal":
            value = self.params[0] + self.params[1] * _NORMAL.inv_cdf(p)
        else:
            value = self.params[0] * math.exp(self.params[1] * _NORMAL.inv_cdf(p))
        return min(max(value, self.clip[0]), self.clip[1])

    def below(self, value: float) -> float:
        """The share of draws below a value, before clipping."""
        first, last = self.params[0], self.params[-1]
        if self.dist == "uniform":
            return min(max((value - first) / (last - first), 0.0), 1.0) if last > first else float(value > first)
        if self.dist == "exponential":
            return -math.expm1(-max(value, 0.0) / first)
        if self.dist == "normal":
            return _NORMAL.cdf((value - first) / last)
        return _NORMAL.cdf(math.log(value / first) / last) if value > 0 else 0.0

    def at(self, own: float, pair: float = 0.5) -> float:
        """The value that two uniform draws in [0, 1) stand for.

        Args:
            own: of this occasion.
            pair: of the two people, the same throughout their conversation.
        """
        between, within = math.sqrt(self.dyad), math.sqrt(1.0 - self.dyad)
        shift = between * _NORMAL.inv_cdf(_open(pair))
        return self.quantile(_NORMAL.cdf(shift + within * _NORMAL.inv_cdf(_open(own))) if self.dyad else own)


def _open(p: float) -> float:
    """Inside (0, 1): quantiles of exactly 0 and 1 are infinite."""
    return min(max(p, _EDGE), 1.0 - _EDGE)


@cache
def load_laws(name: str = "human") -> Mapping[str, Law]:
    """The laws of a file, by name: `human` for those that ship, else a path.

    Raises:
        UptakeError: naming file and line for a file that cannot be read, a law that is missing, or a bad parameter.
    """
    path = BUILTIN if name == "human" else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UptakeError(f"laws {name!r}: {path} cannot be read ({error}); give `human` or a laws file") from error
    documents = located_yaml.read(text, str(path))
    if len(documents) != 1:
        raise UptakeError(f"{path}:1: holds {len(documents)} documents; a laws file is one")
    (document,) = documents
    located_yaml.check(document, _FILE)
    return {key: _law(document, key, spec) for key, spec in document.data["laws"].items()}


def _law(document: Document, name: str, spec: Mapping[str, Any]) -> Law:
    where = ("laws", name)
    if name not in NAMES:
        raise document.error(f"no law {name!r} is used{nearest(name, NAMES)}", where)
    wanted = _PARAMETERS[spec["dist"]]
    for key in spec:
        if key not in (*wanted, "dist", "clip", "dyad", "source"):
            raise document.error(
                f"law {name!r} ({spec['dist']}) has {key!r}; it takes {', '.join(wanted)}", (*where, key)
            )
    for key in wanted:
        if key not in spec:
            raise document.error(f"law {name!r} ({spec['dist']}) needs {key!r}", where)
        if (key in ("sd", "sigma", "median") or spec["dist"] == "exponential") and spec[key] <= 0:
            raise document.error(f"law {name!r}: {key} is {spec[key]}; it must be above 0", (*where, key))
    low, high = (float(bound) for bound in spec.get("clip", (-math.inf, math.inf)))
    if low > high or (spec["dist"] == "uniform" and spec["a"] > spec["b"]):
        raise document.error(f"law {name!r}: the lower bound is above the upper one; swap them", where)
    params = tuple(float(spec[key]) for key in wanted)
    return Law(name, spec["dist"], params, (low, high), float(spec["dyad"]), spec["source"])


def to_json(laws: Mapping[str, Law], name: str) -> dict[str, Any]:
    """The content of a laws file; JSON is YAML, so that `load_laws` reads what it is written to."""
    content = {}
    for key, law in laws.items():
        params = dict(zip(_PARAMETERS[law.dist], law.params, strict=True))
        clip = {"clip": list(law.clip)} if all(map(math.isfinite, law.clip)) else {}
        content[key] = {"dist": law.dist, **params, **clip, "dyad": law.dyad, "source": law.source}
    return {"schema": SCHEMA, "name": name, "laws": content}
