"""Several rewards over one episode."""

from __future__ import annotations

import logging
import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Event, Word
from rewards.limits import TimeLimit, within
from rewards.registry import Reward, get
from rewards.verdict import Verdict
from rewards.view import EpisodeView

log = logging.getLogger(__name__)

LIMIT_SECONDS = 30.0
"""A term that has not judged an event after this long has failed; rules take milliseconds."""
STRIKES = 3
"""A term that ran out of time so often is not asked again: it would cost the run hours."""
LOGGED = 20
"""So many faults of a term are logged one by one; all are counted."""

OURS: Mapping[str, float] = {
    "pause_handling": 1.0,
    "turn_taking": 1.0,
    "backchannel": 1.0,
    "interruption": 1.0,
    "continue": 1.0,
    "quality": 1.0,
}
PUBLISHED: Mapping[str, float] = {
    "published_pause": 1.0,
    "published_turn": 1.0,
    "published_backchannel": 1.0,
    "published_interruption": 1.0,
}


def term_values(verdicts: Iterable[Verdict]) -> dict[str, float | None]:
    """Mean value of each term over its verdicts, masked ones left out; None for a term with nothing else."""
    values: dict[str, list[float]] = {}
    for verdict in verdicts:
        values.setdefault(verdict.term, []).extend([] if verdict.value is None else [verdict.value])
    return {term: sum(kept) / len(kept) if kept else None for term, kept in values.items()}


def weighted_mean(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """Mean of the terms that apply, in [-1, 1]; None when none does."""
    kept = {term: value for term, value in values.items() if value is not None}
    weight = sum(weights[term] for term in kept)
    return sum(weights[term] * value for term, value in kept.items()) / weight if kept else None


@dataclass(frozen=True)
class Composition:
    """Weighted terms. Weights apply in `total`, never inside a verdict, so a trainer may normalise each term alone.

    A weight of 0 leaves the term out. Raises `UptakeError` for an unknown term, for a negative or infinite weight and
    when nothing is left.
    """

    terms: Mapping[str, float]
    """Name (or `path/to/file.py:name`) -> weight."""
    faults: Counter[str] = field(default_factory=Counter, compare=False)
    """How often each term raised, ran out of time or gave something that is no verdict, since this object was made."""
    strikes: Counter[str] = field(init=False, default_factory=Counter, compare=False)
    """How often each term ran out of time."""
    rewards: tuple[Reward, ...] = field(init=False, compare=False)
    weights: dict[str, float] = field(init=False, compare=False)
    """By the reward's own name, which a path may spell otherwise."""

    def __post_init__(self) -> None:
        weights: dict[str, float] = {}
        rewards = []
        for name, weight in self.terms.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise UptakeError(
                    f"rewards: weight of {name!r} is {weight!r}; give a positive number, or 0 to leave it out"
                )
            found = get(name)
            if found.name in weights:
                raise UptakeError(f"rewards: {found.name!r} is named twice; keep one")
            weights[found.name] = float(weight)
            if weight:
                rewards.append(found)
        if not rewards:
            raise UptakeError("rewards: no terms; give at least one a weight, for instance {turn_taking: 1.0}")
        object.__setattr__(self, "rewards", tuple(rewards))
        object.__setattr__(self, "weights", {name: weight for name, weight in weights.items() if weight})

    def score(self, episode: Episode, transcript: Sequence[Word] | None = None) -> list[Verdict]:
        """Every term on every event of its types, in the order of events, then of terms.

        A verdict whose value is None does not apply and is to be masked. A term that raises, that takes longer than
        `LIMIT_SECONDS` or that gives no verdict costs that verdict only: it comes back as None with `raw["fault"] = 1`,
        is logged with the episode's id, and is counted in `faults`.

        Args:
            episode: a finished episode, or one so far: its events are those that are over.
            transcript: words to judge in place of the episode's own, for instance from speech recognition.
        """
        return self._grade(episode, transcript, -1, True)

    def due(self, episode: Episode, since: int, transcript: Sequence[Word] | None = None) -> list[Verdict]:
        """The verdicts of `score` that became final after the sample `since`: judgement online.

        A verdict is final when its window closes or the conversation ends. Asked after every frame, with the length
        that the record had the time before, this gives each verdict that `score` gives in the end, once, and as soon as
        it is known.

        Args:
            episode: a conversation so far (`DuplexVectorEnv.episode`).
            since: how many samples of it were judged before.
            transcript: as for `score`.
        """
        return self._grade(episode, transcript, since, episode.meta.get("ended") is not None)

    def _grade(
        self, episode: Episode, transcript: Sequence[Word] | None, since: int, to_the_end: bool
    ) -> list[Verdict]:
        """Verdicts whose window closes after `since`, and unless `to_the_end` before the episode does."""
        views: dict[int, EpisodeView] = {}
        verdicts = []
        for event in episode.events:
            for term in self.rewards:
                close = term.window_end(event, episode.clock)
                if not (term.applies(event) and since < close and (to_the_end or close <= episode.samples)):
                    continue
                end = min(close, episode.samples)
                if end not in views:
                    views[end] = EpisodeView(episode, end, transcript)
                verdicts.append(self._judge(term, views[end], event))
        return verdicts

    def _judge(self, term: Reward, view: EpisodeView, event: Event) -> Verdict:
        try:
            if self.strikes[term.name] >= STRIKES:
                raise TimeLimit(f"not asked any more after running out of time {STRIKES} times")
            return _signed(within(LIMIT_SECONDS, term, view, event), term, event)
        # A reward may be anybody's code: whatever it raises costs its verdict, and must not cost the run.
        except (Exception, SystemExit) as error:
            self.faults[term.name] += 1
            self.strikes[term.name] += isinstance(error, TimeLimit)
            if (count := self.faults[term.name]) <= LOGGED:
                log.warning(
                    "reward %s failed on event %s of %s: %s: %s%s",
                    term.name, event.id, view.episode_id, type(error).__name__, error,
                    "; more of its faults are counted and not logged" if count == LOGGED else "",
                )  # fmt: skip
            return Verdict(None, (0, view.end), {"fault": 1.0}, term.name, event.id)

    def total(self, verdicts: Iterable[Verdict]) -> float:
        """Weighted mean of the terms that apply, in [-1, 1]; 0 when none does."""
        mean = weighted_mean(term_values(verdicts), self.weights)
        return 0.0 if mean is None else mean

    def __call__(self, episode: Episode) -> float:
        """`total` of `score`: what an environment takes as its `score`."""
        return self.total(self.score(episode))


def _signed(said: object, term: Reward, event: Event) -> Verdict:
    """A verdict in plain numbers with its term and event; raises for what is none."""
    if not isinstance(said, Verdict):
        raise TypeError(f"returned {type(said).__name__}, not a Verdict")
    first, last = said.window
    return replace(
        said,
        value=None if said.value is None else float(said.value),
        window=(operator.index(first), operator.index(last)),
        raw={str(name): float(figure) for name, figure in said.raw.items()},
        term=term.name,
        event=event.id,
    )
