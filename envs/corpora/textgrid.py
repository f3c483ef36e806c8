"""Praat TextGrids, long and short form: one interval tier a speaker, speech where the label is not empty.

A parser of our own, because the packaged ones read a file that breaks off as a shorter one. The values of both forms
are the same sequence once keys, brackets and comments are passed over (Praat manual, "TextGrid file formats").
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.corpora.recording import Span
from envs.corpora.text import read_text
from envs.errors import UptakeError

SILENCE = frozenset({"", "sil", "sp", "spn", "silence", "silent", "<sil>", "<sp>", "{sl}", "#", "_", "pau", "<p:>"})
"""Labels of intervals without speech, as Praat and the common aligners write them."""

_WORDS = " - words"
# A value stands alone between white space; a key's number ("intervals [3]:") or a word ("xmin", "=") is none.
_TOKEN = re.compile(
    r'(?P<text>"(?:[^"]|"")*")(?=\s|$)|(?P<flag><\w+>)(?=\s|$)|(?P<other>\[\d*\]:?|![^\n]*)'
    r"|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)%?(?=\s|$)|(?P<word>[^\s\"]+)|(?P<quote>\")"
)


class _Values:
    """The values of a file in order, each asked for by its kind."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._found = (m for m in _TOKEN.finditer(text) if m.lastgroup not in ("other", "word"))

    def next(self, kind: str) -> str:
        match = next(self._found, None)
        if match is None:
            raise UptakeError(f"{self.name}: breaks off where a {kind} is due")
        if match.lastgroup != kind:
            line = match.string.count("\n", 0, match.start()) + 1
            raise UptakeError(f"{self.name}:{line}: {match[0][:30]!r} where a {kind} is due")
        return match[0]

    def text(self) -> str:
        return self.next("text")[1:-1].replace('""', '"')

    def seconds(self) -> float:
        value = float(self.next("number"))
        if not math.isfinite(value):
            raise UptakeError(f"{self.name}: {value} is not a time")
        return value

    def count(self) -> int:
        number = self.next("number")
        if not number.isdecimal() or len(number) > 9:
            raise UptakeError(f"{self.name}: {number} is not a number of items")
        return int(number)

    def end(self) -> None:
        match = next(self._found, None)
        if match is not None:
            line = match.string.count("\n", 0, match.start()) + 1
            raise UptakeError(f"{self.name}:{line}: {match[0][:30]!r} after the last tier")


def parse(text: str, name: str = "TextGrid") -> dict[str, list[tuple[float, float, str]]]:
    """Tier -> its intervals (onset, offset, label) in order. Point tiers are read and left out.

    Raises:
        UptakeError: it is no TextGrid, breaks off, has two tiers of one name or intervals that go backwards.
    """
    values = _Values(text, name)
    if values.text() != "ooTextFile" or values.text() != "TextGrid":
        raise UptakeError(f'{name}: does not begin with "ooTextFile" and "TextGrid"')
    values.seconds()
    values.seconds()
    if values.next("flag") != "<exists>":
        return {}
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    for _ in range(values.count()):
        kind, tier = values.text(), values.text()
        values.seconds()
        values.seconds()
        if kind not in ("IntervalTier", "TextTier"):
            raise UptakeError(f"{name}: tier {tier!r} is a {kind!r}; needs IntervalTier or TextTier")
        if tier in tiers:
            raise UptakeError(f"{name}: two tiers are called {tier!r}")
        rows, at = [], -math.inf
        for _ in range(values.count()):
            onset = values.seconds()
            offset = values.seconds() if kind == "IntervalTier" else onset
            label = values.text()
            if not at <= onset <= offset:
                raise UptakeError(f"{name}: tier {tier!r} goes backwards at {onset} s")
            rows.append((onset, offset, label))
            at = offset
        if kind == "IntervalTier":
            tiers[tier] = rows
    values.end()
    return tiers


def read(path: Path) -> Sequence[Span]:
    """Speech of the tiers, each named after its speaker; tiers without any speech say nothing.

    Where tiers are called "NAME - words" (Montreal Forced Aligner), the others of each speaker are left out.

    Raises:
        UptakeError: as `parse`.
    """
    return [
        Span(max(0.0, onset), max(0.0, offset), tier)
        for tier, rows in spoken(parse(read_text(path), str(path))).items()
        for onset, offset, _ in rows
    ]


def spoken(tiers: Mapping[str, list[tuple[float, float, str]]]) -> dict[str, list[tuple[float, float, str]]]:
    """Speaker -> intervals with speech, of the tiers of words where there are such."""
    words = {tier.removesuffix(_WORDS): rows for tier, rows in tiers.items() if tier.endswith(_WORDS)}
    return {
        tier: [row for row in rows if row[2].strip().lower() not in SILENCE] for tier, rows in (words or tiers).items()
    }
