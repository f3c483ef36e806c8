"""Quantities of a scenario that are drawn anew for each conversation: distributions, and names that stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs import located_yaml
from envs.errors import nearest
from envs.located_yaml import Document
from envs.schema import json_schema

Value = float | str
"""A number, or ``$name`` of a variable."""


@dataclass(frozen=True)
class Var:
    """A domain-randomised quantity."""

    kind: str
    """`lognormal` (median, sigma), `uniform` (a, b) or `choice` (the numbers)."""
    params: tuple[float, ...]
    clip: tuple[float, float] = (-np.inf, np.inf)

    @property
    def least(self) -> float:
        """A lower bound of every draw."""
        lowest = 0.0 if self.kind == "lognormal" else min(self.params)
        return min(max(lowest, self.clip[0]), self.clip[1])

    @property
    def most(self) -> float:
        """An upper bound of every draw."""
        highest = np.inf if self.kind == "lognormal" else max(self.params)
        return max(min(highest, self.clip[1]), self.clip[0])

    def draw(self, rng: np.random.Generator) -> float:
        """One draw, clipped."""
        if self.kind == "choice":
            value = self.params[int(rng.integers(len(self.params)))]
        elif self.kind == "uniform":
            value = float(rng.uniform(self.params[0], self.params[1]))
        else:
            value = float(self.params[0] * np.exp(self.params[1] * rng.standard_normal()))
        return float(np.clip(value, *self.clip))


def parse_var(document: Document, name: str, spec: Mapping[str, Any], where: located_yaml.Path) -> Var:
    """A variable as the grammar has it; what the grammar cannot say is checked here."""
    kind = spec.get("dist", "choice")
    keys = {"lognormal": ("median", "sigma"), "uniform": ("a", "b"), "choice": ("choice",)}[kind]
    missing = [key for key in keys if key not in spec]
    extra = [key for key in spec if key not in (*keys, "dist", "clip")]
    if missing or extra:
        wrong = f"needs {missing[0]!r}" if missing else f"has {extra[0]!r}"
        raise document.error(f"variable {name!r} ({kind}) {wrong}; give {', '.join(keys)} and perhaps clip", where)
    low, high = spec.get("clip", (-np.inf, np.inf))
    if low > high or (kind == "uniform" and spec["a"] > spec["b"]):
        raise document.error(f"variable {name!r}: the lower bound is above the upper one; swap them", where)
    params = spec["choice"] if kind == "choice" else [spec[key] for key in keys]
    return Var(kind, tuple(float(p) for p in params), (float(low), float(high)))


def known_variable(document: Document, value: Any, variables: Mapping[str, Var], where: located_yaml.Path) -> None:
    """Raise an error if `value` names a variable that is not declared."""
    if isinstance(value, str) and value[1:] not in variables:
        hint = nearest(value[1:], variables) or "; there are no vars"
        raise document.error(f"no variable {value!r}{hint}", where)


def check_span(document: Document, name: str, var: Var, limits: Mapping[str, Any], where: located_yaml.Path) -> None:
    """Raise an error if a draw may leave the `minimum` and `maximum` of a part of the grammar."""
    if var.least < limits["minimum"] or var.most > limits["maximum"]:
        span = f"{limits['minimum']} to {limits['maximum']}"
        raise document.error(
            f"{name} can be {var.least:g} to {var.most:g}; it must stay within {span}, perhaps by clip", where
        )


def check_number(
    document: Document, value: Any, part: Mapping[str, Any], variables: Mapping[str, Var], where: located_yaml.Path
) -> None:
    """Raise an error if `value` names a variable that is not declared, or that may come out as no such number.

    Args:
        part: of the grammar, to which a plain `value` has been held already.
    """
    known_variable(document, value, variables, where)
    if isinstance(value, str):
        part = json_schema()["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        check_span(document, f"{where[-1]}: {value}", variables[value[1:]], part["anyOf"][0], where)
