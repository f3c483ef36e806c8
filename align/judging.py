"""From what a composition says about finished conversations to credits on frames."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align import curriculum
from align.advantages import Credit
from align.rollout import Rollout, action_frames, heard_after
from align.tally import Tally
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.policies.base import DuplexSpec
    from envs.scenario import Scenario
    from rewards.compose import Composition

log = logging.getLogger(__name__)


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
    for axis, ids in curriculum.by_axis(scenarios).items():
        there = frozenset[str]().union(*(known[name].types for name in ids))
        own = sorted(there & set(curriculum.AXES[axis]))
        if not judged & there:
            raise UptakeError(
                f"rewards: nothing applies to the {len(ids)} scenarios of axis {axis!r} (event types "
                f"{', '.join(sorted(there))}); add a term that judges one of these, or train on a pack without them"
            )
        if not judged & set(own):
            log.warning("rewards: no term judges what axis %r is about (event types %s)", axis, ", ".join(own))


def judge(
    composition: Composition,
    played: Rollout,
    drawn: Sequence[curriculum.Draw],
    spec: DuplexSpec,
    frames: int,
    tally: Tally,
) -> list[Credit]:
    """Every verdict on every conversation, with the frames whose actions it is about.

    Args:
        composition: the terms and their weights.
        played: the rollout; `played.groups` indexes `drawn`.
        spec: the policy's `DuplexSpec`.
        frames: length of the conversations.
        tally: gets `reward`, `rewards/TERM/mean`, `axis/AXIS` and `faults/TERM`, the share of a term's verdicts that
            it raised instead of giving. A conversation's reward is `Composition.total`.
    """
    credits: list[Credit] = []
    for row, episode in enumerate(played.episodes):
        group = drawn[played.groups[row]]
        terms: dict[str, list[float]] = {}
        verdicts = composition.score(episode)
        for verdict in verdicts:
            start, stop = action_frames(verdict.window, spec.frame, heard_after(spec), frames)
            weight = composition.weights[verdict.term]
            credits.append(Credit(row, group.group, verdict.term, verdict.event, verdict.value, weight, start, stop))
            tally.add(f"faults/{verdict.term}", verdict.raw.get("fault", 0.0))
            if verdict.value is not None:
                terms.setdefault(verdict.term, []).append(verdict.value)
        for term, values in terms.items():
            tally.add(f"rewards/{term}/mean", sum(values) / len(values), spread=True)
        if terms:
            reward = composition.total(verdicts)
            tally.add("reward", reward, spread=True)
            tally.add(f"axis/{group.axis}", reward)
    return credits


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
