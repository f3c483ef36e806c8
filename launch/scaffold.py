"""`uptake new reward NAME`: a reward that works, its test, and what to do next."""

from __future__ import annotations

import keyword
from pathlib import Path

from rich.console import Console

from envs.errors import UptakeError
from launch.terminal import make_console
from rewards import registry

MODULE = '''\
"""{name}: answer soon after the user's turn. Change this into what you want to pay for."""

from __future__ import annotations

from envs.event import Event
from rewards import EpisodeView, Verdict, reward

FULL_SECONDS = 0.8
"""An answer up to this long after the turn earns everything."""
ZERO_SECONDS = 2.0
"""One at this time earns nothing any more."""


@reward("{name}", axis="turn", events=["A1", "A3"], horizon_s=4.0, beside=["quality"])
def {name}(view: EpisodeView, event: Event) -> Verdict:
    """Answer a question (A1) or a statement (A3) soon, and never while the user is still talking.

    Window: from the user's onset to 4 s after the turn. The view ends there: whatever comes later is not seen.

    Value: 1 for a turn of the agent that begins up to 0.8 s after the user's, then linear through 0 at 2.0 s to -1 at
    3.2 s; -1 for none and for one that begins before the user has finished. None when the episode ends before the
    window does: masked, and no zero.

    Raw: `after_s`, the signed time from the user's end to the agent's onset, absent without an answer.
    """
    window = view.credit(event.offset, event.offset + view.samples(ZERO_SECONDS))
    if view.end < event.offset + view.samples(4.0):
        return Verdict(None, window)
    # `turns` are utterances of more than a second or two words; shorter ones may be backchannels and are no answer.
    begun = [view.seconds(turn.onset - event.offset) for turn in view.turns if turn.offset > event.onset]
    if not begun:
        return Verdict(-1.0, window)
    late = max(0.0, begun[0] - FULL_SECONDS) / (ZERO_SECONDS - FULL_SECONDS)
    return Verdict(-1.0 if begun[0] < 0.0 else max(-1.0, 1.0 - late), window, {{"after_s": begun[0]}})
'''

TEST = '''\
"""What {name} pays for, and what it does not. Run: python -m pytest test_{name}.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.clock import CLOCK
from envs.episode import Episode
from envs.event import Event
from rewards import get

REWARD = get(f"{{Path(__file__).with_name('{name}.py')}}:{name}")
QUESTION = Event("ask", "A1", "user", onset=CLOCK.samples(1.0), offset=CLOCK.samples(3.0))


def conversation(*agent: tuple[float, float], seconds: float = 8.0) -> Episode:
    """Eight seconds in which the agent speaks in the given spans (seconds): a tone is speech enough."""
    time = np.arange(CLOCK.samples(seconds)) / CLOCK.sample_rate
    speaking = np.any([(on <= time) & (time < off) for on, off in agent] or [time < 0], axis=0)
    audio = np.where(speaking, 0.2 * np.sin(2 * np.pi * 220 * time), 0.0).astype(np.float32)
    return Episode(np.zeros_like(audio), np.zeros_like(audio), audio, [QUESTION])


def value(episode: Episode) -> float | None:
    return REWARD.judge(episode, QUESTION).value


def test_a_prompt_answer_earns_everything() -> None:
    assert value(conversation((3.4, 6.0))) == 1.0


def test_a_later_answer_never_earns_more() -> None:
    values = [value(conversation((3.0 + after, 7.8))) for after in (0.5, 1.2, 2.0, 3.5)]
    assert values == sorted(values, reverse=True)
    assert values[2] == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("agent", [[], [(3.4, 3.8)], [(2.0, 5.0)], [(0.0, 8.0)]])
def test_silence_a_mere_sound_and_talking_over_the_user_earn_the_least(agent: list[tuple[float, float]]) -> None:
    assert value(conversation(*agent)) == -1.0


def test_an_episode_that_ends_too_early_is_not_judged() -> None:
    assert value(conversation((3.4, 5.0), seconds=6.0)) is None
'''


def run_new_reward(name: str, folder: Path = Path(), console: Console | None = None) -> None:
    """Write NAME.py and test_NAME.py.

    Raises:
        UptakeError: NAME is no Python name, a reward has it already, or one of the files exists.
    """
    console = console or make_console()
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise UptakeError(
            f"new reward: {name!r} is no Python name; use letters, digits and _, for instance calm_answer"
        )
    if name in registry.names():
        raise UptakeError(f"new reward: {name!r} is a reward already; choose another name")
    files = {folder / f"{name}.py": MODULE, folder / f"test_{name}.py": TEST}
    for path in files:
        if path.exists():
            raise UptakeError(f"{path} exists; choose another name, or move it away")
    for path, template in files.items():
        path.write_text(template.format(name=name), encoding="utf-8")
        console.print(f"written: {path}", highlight=False)
    for what, command in (
        ("test it", f"python -m pytest test_{name}.py"),
        ("attack it", f"uptake audit ./{name}.py:{name}"),
        ("train with it", f"uptake train quickstart name={name} rewards.{name}.py:{name}=1"),
    ):
        console.print(f"{what + ':':15s}{command}", highlight=False, soft_wrap=True)
