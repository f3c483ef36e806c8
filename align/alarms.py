"""Alarms: signs that a policy earns its reward by a trick, and the end of a run that gets no better.

A reward is a proxy, and what a policy does to please it shows in four plain figures of its conversations that no term
needs to measure: it talks all the time or never, says the same again, says nothing at all, or answers worse than it did
at the start. Each iteration has them in `metrics.jsonl` (`behaviour/...`); a figure that stays beyond its threshold
for `patience` iterations raises an alarm, once until it comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align.tally import Tally
from envs.activity import levels, segments
from envs.episode import Episode
from envs.errors import UptakeError
from rewards.text import duplicates


@dataclass
class AlarmConfig:
    """Thresholds; null turns one off."""

    talk_ratio_above: float | None = 0.9
    """Share of the time in which the agent speaks. A conversation of two is near a half."""
    talk_ratio_below: float | None = 0.01
    """The same, too low: silence is the commonest way out of being punished."""
    repetition_above: float | None = 0.5
    """Share of the 3-grams of a conversation's words that the agent has said before in it."""
    empty_above: float | None = 0.8
    """Share of conversations in which the agent says no word."""
    quality_drop: float | None = 0.5
    """How far the mean of the term `quality_term` may fall below that of the first iteration."""
    quality_term: str = "quality"
    """The reward term that measures what is said; without it in `rewards` nothing can drop."""
    kl_above: float | None = None
    """Nats a frame from the policy that training started from."""
    patience: int = 3
    """Iterations in a row before an alarm is raised."""
    stop: bool = False
    """Whether an alarm ends the run, with a checkpoint, and exit status 2."""
    no_better_for: int = 0
    """End the run, as if it were done, after so many iterations in which the mean reward of the last ten was no better
    than its best; 0: never."""

    def check(self, section: str) -> None:
        """Raise UptakeError for a threshold that means nothing."""
        for name in ("talk_ratio_above", "talk_ratio_below", "repetition_above", "empty_above"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UptakeError(f"{section}.alarms.{name} = {value!r}: a share, from 0 to 1, or null for none")
        for name, least in (("quality_drop", 0), ("kl_above", 0), ("patience", 1), ("no_better_for", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                problem = "must be finite, or null for none" if value > least else f"must be at least {least}"
                raise UptakeError(f"{section}.alarms.{name} = {value!r}: {problem}")


def observe(episodes: Sequence[Episode], tally: Tally) -> None:
    """Add what the agent did in some conversations: `behaviour/talk_ratio`, `/repetition`, `/empty`."""
    for episode in episodes:
        spoken = segments(levels(episode.agent), len(episode.agent))  # (n, 2) samples
        tally.add("behaviour/talk_ratio", float((spoken[:, 1] - spoken[:, 0]).sum()), len(episode.agent))
        words = [word.text for word in episode.transcript]
        repeated, total = duplicates(words)
        tally.add("behaviour/repetition", repeated, total)
        tally.add("behaviour/empty", float(not words))


_WINDOW = 10  # iterations that the reward is a mean of, for `no_better_for`


@dataclass
class Alarms:
    """What has been seen so far; `state` goes into the checkpoints."""

    config: AlarmConfig
    raised: dict[str, int] = field(default_factory=dict)
    """Alarm -> iterations in a row."""
    quality: float | None = None
    """Of the first iteration."""
    rewards: list[float] = field(default_factory=list)
    """Of the last iterations."""
    best: float | None = None
    worse: int = 0
    """Iterations since the best."""

    def update(self, metrics: Mapping[str, float]) -> list[str]:
        """Take one iteration's metrics; returns a line for each alarm that begins with it."""
        config, lines = self.config, []
        quality = metrics.get(f"rewards/{config.quality_term}/mean")
        self.quality = quality if self.quality is None else self.quality
        drop = None if quality is None or self.quality is None else self.quality - quality
        checks = (
            ("behaviour/talk_ratio", metrics.get("behaviour/talk_ratio"), "above", config.talk_ratio_above,
             "it talks all the time"),
            ("behaviour/talk_ratio", metrics.get("behaviour/talk_ratio"), "below", config.talk_ratio_below,
             "it has fallen silent"),
            ("behaviour/repetition", metrics.get("behaviour/repetition"), "above", config.repetition_above,
             "it says the same again and again"),
            ("behaviour/empty", metrics.get("behaviour/empty"), "above", config.empty_above,
             "it answers nothing"),
            ("quality drop", drop, "above", config.quality_drop, "it answers worse than at the start"),
            ("kl", metrics.get("kl"), "above", config.kl_above, "it is far from where it started"),
        )  # fmt: skip
        for name, value, side, limit, meaning in checks:
            if value is None or limit is None:
                continue
            key = f"{name} {side}"
            beyond = value > limit if side == "above" else value < limit
            self.raised[key] = self.raised.get(key, 0) + 1 if beyond else 0
            if self.raised[key] == config.patience:
                lines.append(f"{name} = {value:.3g}, {side} {limit:g} for {config.patience} iterations: {meaning}")
        self._better(metrics.get("reward"))
        return lines

    @property
    def count(self) -> int:
        """Alarms that are on."""
        return sum(times >= self.config.patience for times in self.raised.values())

    @property
    def no_better(self) -> bool:
        """Whether the reward has not risen for as long as the configuration waits."""
        return bool(self.config.no_better_for) and self.worse >= self.config.no_better_for

    def _better(self, reward: float | None) -> None:
        if reward is None:
            return
        self.rewards = [*self.rewards, reward][-_WINDOW:]
        if len(self.rewards) < _WINDOW:  # a lucky first iteration is no best to measure the others by
            return
        mean = sum(self.rewards) / len(self.rewards)
        if self.best is None or mean > self.best:
            self.best, self.worse = mean, 0
        else:
            self.worse += 1

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "raised": dict(self.raised), "quality": self.quality, "rewards": self.rewards, "best": self.best,
            "worse": self.worse,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what `state` returned."""
        self.raised, self.rewards = dict(state["raised"]), list(state["rewards"])
        self.quality, self.best, self.worse = state["quality"], state["best"], state["worse"]
