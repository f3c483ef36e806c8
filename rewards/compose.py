"""Several rewards over one episode."""

from __future__ import annotations

import copy
import logging
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Event, Word
from rewards.detector import CODE_ACTIVITY, ENERGY, Activity, DetectorConfig
from rewards.judge.answer import Answer
from rewards.judge.rubric import Rubric
from rewards.limits import TimeLimit, within
from rewards.meaning import Meaning
from rewards.registry import Reward, get, whole
from rewards.schedule import Schedule, check, factor
from rewards.verdict import Verdict
from rewards.view import EpisodeView

if TYPE_CHECKING:
    from rewards.judge.judge import Judge

_Place = tuple[int, int]
"""The numbers of an event and of a term, by which verdicts are ordered."""
_Open = tuple[_Place, Verdict, "Future[Answer] | None"]
"""A verdict of a judged term, and what it waits for."""

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
    """Mean of the terms that apply, in [-1, 1]; None when none does, or none with a weight."""
    kept = {term: value for term, value in values.items() if value is not None}
    weight = sum(weights[term] for term in kept)
    return sum(weights[term] * value for term, value in kept.items()) / weight if weight else None


@dataclass(frozen=True)
class Composition:
    """Weighted terms. Weights apply in `total`, never inside a verdict, so a trainer may normalise each term alone.

    A weight of 0 leaves the term out. Raises `UptakeError` for an unknown term, for a negative or infinite weight,
    when nothing is left, for a term that asks a language model where there is no judge, for one that compares meanings
    where there is no encoder, and for a detector that cannot work.
    """

    terms: Mapping[str, float]
    """Name (or `path/to/file.py:name`) -> weight."""
    faults: Counter[str] = field(default_factory=Counter, compare=False)
    """How often each term raised, ran out of time or gave something that is no verdict, since this object was made."""
    judge: Judge | None = field(default=None, compare=False)
    """Who answers the terms that ask a language model."""
    activity: DetectorConfig = ENERGY
    """Who is taken to speak when, in every view."""
    meaning: Meaning | None = field(default=None, compare=False)
    """What the terms that compare meanings compare them with."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """Term, as `terms` names it -> how its weight changes in the course of a run (`at`)."""
    strikes: Counter[str] = field(init=False, default_factory=Counter, compare=False)
    """How often each term ran out of time."""
    rewards: tuple[Reward, ...] = field(init=False, compare=False)
    weights: dict[str, float] = field(init=False, compare=False)
    """By the reward's own name, which a path may spell otherwise."""

    def __post_init__(self) -> None:
        self.activity.check()
        check(self.schedules, [name for name, weight in self.terms.items() if weight])
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
            if found.rubric and weight and self.judge is None:
                raise UptakeError(
                    f"rewards: {found.name!r} asks a language model; name one in the section `judge` (docs/judge.md)"
                )
            if found.meaning and weight and self.meaning is None:
                raise UptakeError(
                    f"rewards: {found.name!r} compares meanings and needs a sentence encoder; give its folder, "
                    "embedding=FOLDER or --embedding FOLDER (docs/judge.md)"
                )
            weights[found.name] = float(weight)
            if weight:
                rewards.append(found)
        if not rewards:
            raise UptakeError("rewards: no terms; give at least one a weight, for instance {turn_taking: 1.0}")
        object.__setattr__(self, "rewards", tuple(rewards))
        object.__setattr__(self, "weights", {name: weight for name, weight in weights.items() if weight})

    def at(self, iteration: int) -> Composition:
        """The same composition with the weights of an iteration; a term whose weight is 0 by then is judged all the
        same. Faults are counted together."""
        if not self.schedules:
            return self
        factors = {get(name).name: factor(schedule, iteration) for name, schedule in self.schedules.items()}
        found = copy.copy(self)
        weights = {name: weight * factors.get(name, 1.0) for name, weight in self.weights.items()}
        object.__setattr__(found, "weights", weights)
        return found

    @property
    def rubrics(self) -> tuple[Rubric, ...]:
        """What language models are told, for the terms that ask one."""
        return tuple(dict.fromkeys(term.rubric for term in self.rewards if term.rubric is not None))

    def score(self, episode: Episode, transcript: Sequence[Word] | None = None) -> list[Verdict]:
        """Every term on every event of its types, in the order of events, then of terms; whole conversations last.

        A verdict whose value is None does not apply and is to be masked. A term that raises, that takes longer than
        `LIMIT_SECONDS` or that gives no verdict costs that verdict only: it comes back as None with `raw["fault"] = 1`,
        is logged with the episode's id, and is counted in `faults`. So does a verdict for which the judge has no score.

        Args:
            episode: a finished episode, or one so far: its events are those that are over.
            transcript: words to judge in place of the episode's own, for instance from speech recognition.
        """
        return self.start(episode, transcript)()

    def start(self, episode: Episode, transcript: Sequence[Word] | None = None) -> Callable[[], list[Verdict]]:
        """Put the judge's questions about an episode, and return what gives its verdicts (see `score`).

        Nothing waits here: a caller who starts many episodes first has the judge answer them side by side, while it
        does something else. Without a judge, all the work is done when the verdicts are called for.
        """
        terms = list(enumerate(self.rewards))
        if self.judge is None:
            return lambda: [verdict for _, verdict in self._grade(episode, transcript, terms)]
        judge = self.judge
        rules = [(place, term) for place, term in terms if term.rubric is None]
        judged = [(place, term) for place, term in terms if term.rubric is not None]

        def put(words: Sequence[Word] | None) -> list[_Open]:
            graded = self._grade(episode, words, judged)
            return [(where, v, judge.ask(v.question) if v.question else None) for where, v in graded]

        hearing = None if transcript is not None else judge.heard(episode, put)
        opened = put(transcript) if hearing is None else []

        def finish() -> list[Verdict]:
            found = dict(self._grade(episode, transcript, rules))
            heard = opened if hearing is None else judge.wait(hearing)
            if isinstance(heard, Answer):  # a fault: nobody knows what was said
                for where, verdict in self._grade(episode, None, judged):
                    found[where] = self._answered(replace(verdict, value=None, raw={}, question=None), heard, episode)
                return [found[where] for where in sorted(found)]
            for where, verdict, asked in heard:
                found[where] = verdict if asked is None else self._answered(verdict, asked.result(), episode)
            return [found[where] for where in sorted(found)]

        return finish

    def due(self, episode: Episode, since: int, transcript: Sequence[Word] | None = None) -> list[Verdict]:
        """The verdicts of `score` that became final after the sample `since`: judgement online.

        A verdict is final when its window closes or the conversation ends. Asked after every frame, with the length
        that the record had the time before, this gives each verdict that `score` gives in the end, once, and as soon as
        it is known. Terms that ask a language model are not among them: their verdicts are final when it has answered.

        What the agent says must be handed over as it will stand in the record: a word that is still being spelled is
        left out, or ends after the record so far.

        Args:
            episode: a conversation so far (`DuplexVectorEnv.episode`).
            since: how many samples of it were judged before.
            transcript: as for `score`.

        Raises:
            UptakeError: activity is that of the agent's codes, and the record has none yet.
        """
        if self.activity.detector == "codec" and CODE_ACTIVITY not in episode.meta:
            raise UptakeError(
                f"{episode.id}: activity.detector = codec hears the agent's codes, which are recorded when a "
                "conversation is over; judge online by energy, silero or text"
            )
        rules = [(place, term) for place, term in enumerate(self.rewards) if term.rubric is None]
        ended = episode.meta.get("ended") is not None
        return [verdict for _, verdict in self._grade(episode, transcript, rules, since, ended)]

    def _grade(
        self,
        episode: Episode,
        transcript: Sequence[Word] | None,
        terms: Sequence[tuple[int, Reward]],
        since: int = -1,
        to_the_end: bool = True,
    ) -> list[tuple[_Place, Verdict]]:
        """Some of the terms on every event; windows that close after `since`, and unless `to_the_end` before the
        episode does."""
        views: dict[int, EpisodeView] = {}
        activity = Activity(episode, self.activity, transcript)
        verdicts = []
        events = [*episode.events, *([whole(episode)] if to_the_end else [])]
        for number, event in enumerate(events):
            for place, term in terms:
                close = term.window_end(event, episode.clock)
                if not (term.applies(event) and since < close and (to_the_end or close <= episode.samples)):
                    continue
                end = min(close, episode.samples)
                if end not in views:
                    views[end] = EpisodeView(episode, end, transcript, activity, self.meaning)
                verdicts.append(((number, place), self._judge(term, views[end], event)))
        return verdicts

    def _answered(self, verdict: Verdict, answer: Answer, episode: Episode) -> Verdict:
        """A verdict that has been waiting for the judge, with what it said."""
        assert self.judge is not None
        self.judge.note(episode.id, verdict.event, verdict.term, answer)
        if answer.score is None or verdict.question is None:
            self.faults[verdict.term] += 1
            return replace(verdict, raw={**verdict.raw, "fault": 1.0}, question=None, answer=answer)
        raw = {**verdict.raw, "score": float(answer.score)}
        return replace(
            verdict, value=verdict.question.rubric.value(answer.score), raw=raw, question=None, answer=answer
        )

    def _judge(self, term: Reward, view: EpisodeView, event: Event) -> Verdict:
        try:
            if self.strikes[term.name] >= STRIKES:
                raise TimeLimit(f"not asked any more after running out of time {STRIKES} times")
            return _signed(within(LIMIT_SECONDS, term, view, event), term, event, view)
        # A reward may be anybody's code: whatever it raises costs its verdict, and must not cost the run.
        except Exception as error:
            self.faults[term.name] += 1
            self.strikes[term.name] += isinstance(error, TimeLimit)
            if (count := self.faults[term.name]) <= LOGGED:
                log.warning(
                    "reward %s failed on event %s of %s: %s: %s%s",
                    term.name, event.id, view.episode_id, type(error).__name__, error,
                    "; more of its faults are counted and not logged" if count == LOGGED else "",
                )  # fmt: skip
            return Verdict(None, (0, view.end), {"fault": 1.0}, term.name, event.id, view.end)

    def total(self, verdicts: Iterable[Verdict]) -> float:
        """Weighted mean of the terms that apply, in [-1, 1]; 0 when none does."""
        mean = weighted_mean(term_values(verdicts), self.weights)
        return 0.0 if mean is None else mean

    def __call__(self, episode: Episode) -> float:
        """`total` of `score`: what an environment takes as its `score`."""
        return self.total(self.score(episode))


def _signed(said: object, term: Reward, event: Event, view: EpisodeView) -> Verdict:
    """A verdict in plain numbers with its term, its event and where its view ended; raises for what is none."""
    if not isinstance(said, Verdict):
        raise TypeError(f"returned {type(said).__name__}, not a Verdict")
    if said.question is not None and said.question.rubric != term.rubric:
        raise TypeError("asks a language model by a rubric that is not the `rubric=` of its decorator")
    first, last = said.window
    if last > view.end:
        raise ValueError(f"verdict window {said.window} ends after {view.end}, the end of what the reward may see")
    raw = {str(name): float(figure) for name, figure in said.raw.items()}
    for name, figure in raw.items():
        if not math.isfinite(figure):
            raise ValueError(f"raw figure {name!r} is {figure}; leave out what is not known")
    if "fault" in raw:
        raise ValueError("raw figure 'fault' is how faults are counted; give it another name")
    return replace(
        said,
        value=None if said.value is None else float(said.value),
        window=(operator.index(first), operator.index(last)),
        raw=raw,
        term=term.name,
        event=event.id,
        closes=view.end,
    )
