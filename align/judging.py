"""From what a composition says about finished conversations to credits on frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align import curriculum
from align.advantages import Credit
from align.rollout import Rollout, action_frames, heard_after
from align.tally import Tally

if TYPE_CHECKING:
    from align.policies.base import DuplexSpec
    from rewards.compose import Composition


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
