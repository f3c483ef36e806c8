"""What `uptake eval` and `uptake regrade` say about conversations: our figures, and those of published evaluators.

Both go through one `Grader`, conversation by conversation, so that a stored evaluation graded again gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from align.comparison import plain, single, unit_of_measure
from align.evaluation import Evaluation, Key
from align.hearing import word_errors
from align.report import change, number
from envs.activity import activity
from envs.episode import Episode
from envs.errors import UptakeError, nearest
from envs.event import Word
from launch.terminal import compat_table, single_table, type_table
from rewards.aggregate import Measurement
from rewards.bootstrap import units
from rewards.chance import Answer, answer_accuracy, find_answers
from rewards.compat import EVALUATORS, Evaluator
from rewards.detector import ENERGY, DetectorConfig

ALL = "all"
CODED, FIXED = "as coded", "bugs off"


def parse_compat(specs: Sequence[str]) -> dict[str, dict[str, frozenset[str]]]:
    """What `--compat` asks for: evaluator -> column -> the bugs that are on in it.

    `fdb_v1` gives two columns, as coded and with every bug off; `fdb_v1:BUG,BUG` a third with exactly these on; `all`
    every evaluator.

    Raises:
        UptakeError: no such evaluator, or no such bug.
    """
    found: dict[str, dict[str, frozenset[str]]] = {}
    for spec in specs:
        name, _, chosen = spec.partition(":")
        if name != ALL and name not in EVALUATORS:
            raise UptakeError(f"--compat: no evaluator {name!r}{nearest(name, [*EVALUATORS, ALL])}")
        if name == ALL and chosen:
            raise UptakeError(f"--compat {spec}: bugs belong to one evaluator; give its name in place of '{ALL}'")
        for one in EVALUATORS.values() if name == ALL else [EVALUATORS[name]]:
            columns = found.setdefault(one.name, {CODED: frozenset(one.bugs), FIXED: frozenset()})
            if chosen:
                bugs = [bug.strip() for bug in chosen.split(",")]
                for bug in bugs:
                    if bug not in one.bugs:
                        raise UptakeError(f"--compat {spec}: {one.name} has no bug {bug!r}{nearest(bug, one.bugs)}")
                columns[f"with {', '.join(bugs)}"] = frozenset(bugs)
    return found


@dataclass
class Grader:
    """Collects what every conversation contributes beside our own measures."""

    compat: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    activity: DetectorConfig = ENERGY
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    _compat: dict[tuple[str, str], dict[str, list[Measurement]]] = field(default_factory=dict, init=False)
    """(evaluator, column) -> scenario -> measurements."""
    _sounds: bool = field(default=False, init=False)
    _words: bool = field(default=False, init=False)
    _heard: tuple[int, int] | None = field(default=None, init=False)
    """Word errors and words, when speech recognition was used."""

    def add(self, key: Key, episode: Episode, words: Sequence[Word] | None) -> None:
        """One conversation, in the order of the evaluation; `words` are those of speech recognition, if any."""
        self.answers.setdefault(key[0], []).extend(find_answers(episode, words, self.activity))
        self._words |= bool(episode.transcript if words is None else words)
        self._sounds |= bool(self.compat) and bool(len(activity(episode.agent)))
        if words is not None:
            texts = (" ".join(word.text for word in said) for said in (episode.transcript, words))
            errors, count = word_errors(*texts)
            before = self._heard or (0, 0)
            self._heard = (before[0] + errors, before[1] + count)
        for name, columns in self.compat.items():
            for column, bugs in columns.items():
                run = self._compat.setdefault((name, column), {})
                run.setdefault(key[0], []).append(EVALUATORS[name].measurement(episode, words, bugs, self.activity))

    def result(self, evaluation: Evaluation) -> dict[str, Any]:
        """Every figure of the evaluation as JSON."""
        accuracy = answer_accuracy(units(self.answers, evaluation.shares))
        found = single(evaluation) | {"answers": _finite(asdict(accuracy)) if accuracy else None}
        if self._heard is not None:
            errors, count = self._heard
            found |= {"word_error_rate": errors / count if count else None, "words": count}
        if self.compat:
            found["compat"] = {name: self._compat_result(EVALUATORS[name], evaluation) for name in self.compat}
        return found

    def _compat_result(self, evaluator: Evaluator, evaluation: Evaluation) -> dict[str, Any]:
        if evaluator.counts_words and self._sounds and not self._words:
            note = "it counts words, and the agent has no text; --asr hears its words"
            return {"source": evaluator.source, "bugs": {}, "rows": [], "note": note}
        columns = {column: self._compat[evaluator.name, column] for column in self.compat[evaluator.name]}
        intervals = {column: evaluator.intervals(units(run, evaluation.shares)) for column, run in columns.items()}
        rows = []
        for name, figure in evaluator.figures.items():
            cells = {}
            for column, run in columns.items():
                one = intervals[column][name]
                cases = sum(m[name][1] for group in run.values() for m in group if name in m)
                cells[column] = {
                    "value": plain(one.estimate), "low": plain(one.low), "high": plain(one.high), "cases": cases
                }  # fmt: skip
            better = {1: "higher", -1: "lower", 0: ""}[figure.better]
            told = {"figure": name, "text": figure.text, "unit": unit_of_measure(figure), "better": better}
            rows.append({**told, "columns": cells})
        return {
            "source": evaluator.source,
            "bugs": {column: sorted(bugs) for column, bugs in self.compat[evaluator.name].items()},
            "rows": rows,
            "note": "",
        }


def _finite(accuracy: dict[str, Any]) -> dict[str, Any]:
    """As JSON: a bound that there is none of is None."""
    bounds = {name: {k: plain(v) for k, v in one.items()} for name, one in accuracy.items() if isinstance(one, dict)}
    return accuracy | bounds


def print_result(console: Console, result: Mapping[str, Any]) -> None:
    """The tables of a result."""
    console.print(single_table(result["name"], result["rows"]))
    if result["by_type"]:
        console.print(type_table(result["by_type"]))
    accuracy = result["answers"]
    if accuracy:
        low, high = (change(accuracy["margin"][bound], "%") for bound in ("low", "high"))
        console.print(
            f"{accuracy['answered']} of {accuracy['asked']} questions answered, "
            f"{number(accuracy['hit']['estimate'], '%')} with an expected word; by chance (what other questions "
            f"expect) {number(accuracy['chance']['estimate'], '%')}: {change(accuracy['margin']['estimate'], '%')} "
            f"\\[{low}, {high}]",
            highlight=False,
        )
    if "word_error_rate" in result:
        rate = number(result["word_error_rate"], "%")
        console.print(f"speech recognition against the agent's own text: {rate} wrong of {result['words']} words")
    for name, found in result.get("compat", {}).items():
        if found["note"]:
            console.print(f"{name} has no figures: {found['note']}", highlight=False)
        else:
            console.print(compat_table(name, found))
