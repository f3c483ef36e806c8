"""When a listener who hears nothing but the beginning of a story would best say "mm-hm"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.clock import CLOCK
from envs.pack import Clip, Pack
from envs.scenario import ScriptItem
from rewards.matching import blind_hits, match_one_to_one

STEP_SECONDS = 0.2


@dataclass(frozen=True)
class Story:
    """A monologue; seconds from its onset."""

    wanted: tuple[float, ...]
    """Where a listener would say something short."""
    length: float

    def skill(self, beats: Sequence[float]) -> float:
        """F1 of backchannels at these times above that of the best blind control, as in `rewards.backchannel`."""
        given = [beat for beat in beats if beat < self.length]
        hits = match_one_to_one(given, self.wanted) - blind_hits(len(given), self.wanted, self.length)
        return 2.0 * hits / (len(given) + len(self.wanted))


def stories(pack: Pack, split: str) -> list[Story]:
    """The monologues of the scripted scenarios of a split, one for each clip that may be said."""
    return [
        _story(item, clip)
        for scenario in pack.scenarios(split)
        for item in scenario.script
        if item.type == "B7"
        for clip in pack.candidates(scenario, item)
    ]


def _story(item: ScriptItem, clip: Clip) -> Story:
    onset = clip.words[0].onset
    places = [clip.words[i].offset for i in item.opportunities] or [on for on, _ in clip.pauses]
    return Story(tuple(CLOCK.seconds(place - onset) for place in places), CLOCK.seconds(clip.words[-1].offset - onset))


def skill(told: Sequence[Story], beats: Sequence[float]) -> float:
    """Mean over stories of what one schedule earns in all of them."""
    return float(np.mean([story.skill(beats) for story in told]))


def schedule(told: Sequence[Story]) -> tuple[float, ...]:
    """Times from the onset that earn most in these stories: the best is added, until none helps; sorted."""
    beats: tuple[float, ...] = ()
    grid = np.arange(STEP_SECONDS, max((story.length for story in told), default=0.0), STEP_SECONDS).tolist()
    earned = 0.0
    while told:
        best = max(grid, key=lambda beat: skill(told, (*beats, beat)))
        found = skill(told, (*beats, best))
        if found <= earned + 1e-9:
            break
        beats, earned = (*beats, best), found
    return tuple(sorted(beats))
