"""From what a composition says about finished conversations to credits on frames."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from align import curriculum
from align.advantages import Credit
from align.rollout import Rollout, action_frames, heard_after
from align.tally import Tally
from envs.errors import UptakeError
from rewards.registry import EPISODE, get

if TYPE_CHECKING:
    from align.policies.base import DuplexSpec
    from envs.episode import Episode
    from envs.scenario import Scenario
    from rewards.compose import Composition
    from rewards.verdict import Verdict

log = logging.getLogger(__name__)

Pending = Callable[[], "list[Verdict]"]
"""Gives the verdicts on one conversation, as soon as a judge that was asked about it has answered."""


def begin(composition: Composition, episodes: Sequence[Episode]) -> list[Pending]:
    """Put all questions about conversations to the judge, if there is one, and wait for none of them."""
    return [composition.start(episode) for episode in episodes]


def check_axes(composition: Composition, scenarios: Sequence[Scenario]) -> None:
    """Refuse a composition that has nothing to say about an axis of the training scenarios.

    Groups are drawn from every axis, so one that nothing applies to costs its share of every iteration and teaches
    nothing. Where the terms judge only what else is in an axis' scenarios (the question before a barge-in, say, and not
    the barge-in), a warning is logged.

    Raises:
        UptakeError: no term judges any event in the scenarios of an axis.
    """
    known = {scenario.id: scenario for scenario in scenarios}
    judged = {code for term in composition.rewards for code in term.events}
    safe = any(term.axis == curriculum.SAFETY for term in composition.rewards)
    for axis, ids in curriculum.by_axis(scenarios).items():
        there = frozenset[str]().union(*(known[name].types for name in ids))
        if not judged & (there | {EPISODE}):
            raise UptakeError(
                f"rewards: nothing applies to the {len(ids)} scenarios of axis {axis!r} (event types "
                f"{', '.join(sorted(there))}); add a term that judges one of these, or say the others in `axes`"
            )
        if axis == curriculum.SAFETY:
            if not safe:
                log.warning("rewards: no term judges what axis %r is about (refusal or safety_judge would)", axis)
            continue
        own = sorted(there & set(curriculum.AXES[axis]))
        if not judged & set(own):
            log.warning("rewards: no term judges what axis %r is about (event types %s)", axis, ", ".join(own))


def judge(
    composition: Composition,
    played: Rollout,
    drawn: Sequence[curriculum.Draw],
    spec: DuplexSpec,
    frames: int,
    tally: Tally,
    pending: Sequence[Pending] | None = None,
) -> list[Credit]:
    """Every verdict on every conversation, with the frames whose actions it is about.

    Args:
        composition: the terms and their weights.
        played: the rollout; `played.groups` indexes `drawn`.
        spec: the policy's `DuplexSpec`.
        frames: length of the conversations.
        tally: gets `reward`, `rewards/TERM/mean`, `axis/AXIS` and `faults/TERM`, the share of a term's verdicts that
            it raised instead of giving. A conversation's reward is `Composition.total`. Where a language model was
            asked: `judge/cached`, `judge/faults` and `judge/KIND` for each kind of fault, as shares of the questions.
            Where weights are scheduled: `weights/TERM`.
        pending: what `begin` gave for the conversations; None: it is done now.
    """
    pending = begin(composition, played.episodes) if pending is None else pending
    for name in composition.schedules:
        tally.add(f"weights/{get(name).name}", composition.weights[get(name).name])
    credits: list[Credit] = []
    outcomes: Counter[str] = Counter()
    for row, give in enumerate(pending):
        group = drawn[played.groups[row]]
        terms: dict[str, list[float]] = {}
        verdicts = give()
        for verdict in verdicts:
            if verdict.answer is not None:
                outcomes.update(["questions", *verdict.answer.outcomes])
            start, stop = action_frames(verdict.window, spec.frame, heard_after(spec), frames)
            weight = composition.weights[verdict.term]
            closes = verdict.window[1] if verdict.closes is None else verdict.closes
            final = action_frames((0, closes), spec.frame, heard_after(spec), frames)[1] - 1
            credits.append(
                Credit(row, group.group, verdict.term, verdict.event, verdict.value, weight, start, stop, final)
            )
            tally.add(f"faults/{verdict.term}", verdict.raw.get("fault", 0.0))
            if verdict.value is not None:
                terms.setdefault(verdict.term, []).append(verdict.value)
        for term, values in terms.items():
            tally.add(f"rewards/{term}/mean", sum(values) / len(values), spread=True)
        if terms:
            reward = composition.total(verdicts)
            tally.add("reward", reward, spread=True)
            tally.add(f"axis/{group.axis}", reward)
    questions = outcomes.pop("questions", 0)
    for outcome in {"cached", "faults", *outcomes} if questions else ():
        tally.add(f"judge/{outcome}", outcomes[outcome], questions)
    return credits


def ungrouped(credits: Sequence[Credit]) -> list[Credit]:
    """The same judgements as one group of all conversations, in which those of a term are comparable."""
    return [dataclasses.replace(item, group=0, event="") for item in credits]


def shuffled(credits: Sequence[Credit], seed: int, iteration: int) -> list[Credit]:
    """The same judgements, dealt out at random among the conversations of each group: a control without signal.

    Every permutation is equally likely, the identity too, so that the expected advantage of every conversation is
    exactly zero.
    """
    dealt = list(credits)
    places: dict[tuple[int, str, str], list[int]] = {}
    for place, item in enumerate(credits):
        places.setdefault((item.group, item.term, item.event), []).append(place)
    for (group, term, event), found in places.items():
        order = curriculum.permutation(seed, f"shuffle {term} {event}", len(found), iteration, group)
        for place, other in zip(found, order, strict=True):
            dealt[place] = dataclasses.replace(credits[place], value=credits[found[other]].value)
    return dealt
