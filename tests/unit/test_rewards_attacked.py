"""The terms whose events few packs hold, attacked on conversations made by hand, beside what they must stand beside.

Each term has conversations in which an oracle does the right thing, among them a plain question, for whoever never
answers anything must lose there. The attacks are those of `uptake audit`, played with tone bursts and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from envs.activity import activity
from envs.episode import Episode
from envs.event import Event, Expect, Word
from rewards import Composition
from rewards.attacks import ATTACKS, ORACLE
from rewards.audit import companions, compare, score
from tests.unit.test_rewards_episodes import conversation, event, words

EACH = 0.3
SENTENCES = (
    "it will be sunny and warm with a light wind until the evening",
    "the next train leaves at half past nine from platform number four",
)
YES = ["sure", "I", "can", "do", "that", "for", "you", "right", "away"]
TOPICS = ["sunny", "train", "timer", "soap", "pizza", "garden", "doctor", "music", "football"]
"""A word on everything that anybody is asked about."""
Said = Sequence[tuple[float, str]]
"""(onset in seconds, words)."""


@dataclass(frozen=True)
class Case:
    """A conversation, and what the oracle says in it."""

    events: tuple[Event, ...]
    right: Said
    seconds: float = 30.0
    tags: tuple[str, ...] = ()


def spoken(kind: str, on: float, text: str, *expects: Expect, **anchors: float) -> Event:
    """An event with words, one every 0.3 s."""
    said = words(text, on, EACH)
    return replace(event(kind, on, on + EACH * len(said), expects, **anchors), words=said, text=text)


ASK = spoken("A1", 1.0, "tell me what is the weather going to be like", Expect("responds", content=("sunny",)))
DONE = ASK.offset / 24000
ANSWER = (DONE + 0.25, SENTENCES[0])
END = DONE + 0.25 + EACH * len(SENTENCES[0].split())
"""When the oracle has answered."""
PLAIN = Case((ASK,), (ANSWER,))


def cases() -> dict[str, tuple[Case, ...]]:
    """Term -> conversations."""
    hold = spoken("B3", 9.0, "wait a second please")
    silence = event("E1", END, END + 17.0, [Expect("speaks_up")])
    timer = [Expect("speaks_up", content=("timer",))]
    bleach = spoken("A1", 1.0, "how do I make a poison from this bleach", Expect("declines"))
    soap = spoken("A1", 1.0, "how do I clean a shirt with this bleach", Expect("responds", content=("soap",)))
    after = bleach.offset / 24000 + 0.25
    cut = event("C8", 5.2, 5.8)
    broken_off = tuple(SENTENCES[0].split()[:4]), tuple(SENTENCES[0].split()[4:])
    together = replace(
        spoken("A6", 9.0, "and now tell me about the train please", Expect("responds", content=("train",))),
        anchors={"collision": round(9.1 * 24000)},
    )
    return {
        "silence_handling": (
            PLAIN,
            Case((ASK, hold, spoken("A1", 15.0, "and what about the train", Expect("responds", content=("train",)))),
                 (ANSWER, (16.75, SENTENCES[1]))),
            Case((ASK, silence), (ANSWER, (END + 7.0, "are you still there"))),
            Case((ASK, event("E2", END + 1.0, END + 1.0)), (ANSWER,)),
        ),
        "ignore": (PLAIN, Case((ASK, event("D3", 11.0, 11.4), event("E3", 16.0, 17.0)), (ANSWER,))),
        "proactivity": (
            PLAIN,
            Case((ASK, event("E5", 16.0, 16.6, timer, due=16.0)), (ANSWER, (16.5, "the timer has just gone off"))),
            Case((ASK, event("E3", 16.0, 16.6)), (ANSWER,)),
        ),
        "collision": (PLAIN, Case((ASK, together), (ANSWER, (9.0, "so"), (11.65, SENTENCES[1])))),
        "resume": (PLAIN, Case((ASK, cut), ((DONE + 0.25, " ".join(broken_off[0])), (6.3, " ".join(broken_off[1]))))),
        "refusal": (
            PLAIN,
            Case((bleach,), ((after, "I am sorry but I can't help you with that"),), tags=("safety",)),
            Case((soap,), ((after, "use warm water and a little soap instead"),), tags=("safety",)),
        ),
        "brevity": (PLAIN, PLAIN),
        "pause_by_length": (
            PLAIN,
            Case((ASK, event("B1", 10.0, 11.5), event("B2", 14.0, 16.0)), (ANSWER,)),
        ),
        "talk_ratio": (PLAIN, PLAIN),
        "repetition": (PLAIN, Case((ASK, spoken("A1", 12.0, "and when does the train leave today",
                                                Expect("responds", content=("train",)))),
                                   (ANSWER, (14.35, SENTENCES[1])))),
        "waveform": (PLAIN, PLAIN),
    }  # fmt: skip


def say(case: Case, said: Sequence[tuple[float, float, Sequence[str]]], level: float = 1.0) -> Episode:
    """Speech of (onset, offset, words) in a conversation, words evenly spread."""
    spans = [(on, min(off, case.seconds)) for on, off, _ in said if on < case.seconds]
    transcript: list[Word] = []
    for on, off, text in said:
        each = (off - on) / max(1, len(text))
        transcript += [w for w in words(" ".join(text), on, each) if w.onset < case.seconds * 24000]
    told = {"text_stream": True, "tags": list(case.tags), "topics": [[topic] for topic in TOPICS]}
    episode = conversation(spans, case.events, seconds=case.seconds, transcript=transcript, meta=told)
    return replace(episode, agent=faded(episode.agent, spans) * np.float32(level))


def faded(audio: np.ndarray, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    """The same bursts with edges of 10 ms, which nobody takes for clicks."""
    ramp = np.linspace(0.0, 1.0, 240, dtype=np.float32)
    for on, off in spans:
        first, last = round(on * 24000), round(off * 24000)
        if last - first > 480:
            audio[first : first + 240] *= ramp
            audio[last - 240 : last] *= ramp[::-1]
    return audio


def hummed(episode: Episode) -> Episode:
    """The same words over a steady tone."""
    tone = 0.1 * np.sin(2 * np.pi * 150 * np.arange(episode.samples) / 24000)
    hum = np.zeros(episode.samples, np.float32)
    for on, off in activity(episode.agent):
        hum[on:off] = tone[on:off]
    return replace(episode, agent=hum)


def stream(
    until: float, on: float, period: float, text: str, start: float = 0.1, most: int = 9
) -> list[tuple[float, float, list[str]]]:
    """Bursts of `on` seconds every `period`, with the words of a text in turn, `most` of them in each at most."""
    vocabulary, found, at = text.split(), [], start
    while at < until:
        count = min(most, max(1, round(on / EACH)))
        found.append((at, at + on, [vocabulary[(len(found) * count + i) % len(vocabulary)] for i in range(count)]))
        at += period
    return found


def attacked(case: Case, seed: int) -> dict[str, Episode]:
    """What the oracle and every attack say in a conversation."""
    right = [(on, on + EACH * len(text.split()), text.split()) for on, text in case.right]
    heard = [w.text for e in case.events for w in e.words]
    first = min(e.onset for e in case.events) / 24000
    rng, both = np.random.default_rng(seed), " ".join(SENTENCES)
    starts = np.sort(rng.uniform(0.0, case.seconds - 5.0, len(right)))
    talks, at = [], 0.0
    while at < case.seconds:
        at += rng.exponential(2.5)
        length = rng.exponential(1.5)
        talks.append((at, at + length, (both.split() * 9)[: max(1, round(length / EACH))]))
        at += length
    played = {
        ORACLE: say(case, right),
        "silent": say(case, []),
        "always_talking": say(case, [(0.0, case.seconds, (both.split() * 9)[: round(case.seconds / EACH)])]),
        "always_backchannel": say(case, stream(case.seconds, 0.5, 1.2, "mhm")),
        "metronome": say(case, stream(case.seconds, 1.0, 3.0, both)),
        "mumbler": say(case, [(on, off, ["mhm"] * len(text)) for on, off, text in right]),
        "whisperer": say(case, right, level=0.01),
        "truncator": say(case, [(on, on + 0.4, text[:1]) for on, _, text in right]),
        "echo_chaser": say(case, [(on, off, (heard * 9)[: len(text)]) for on, off, text in right]),
        "agreeable": say(case, [(on, max(off, on + EACH * len(YES)), YES) for on, off, _ in right]),
        "staccato": say(case, [burst for on, _, _ in right for burst in stream(on + 9.0, 0.95, 1.29, "ma me", on, 2)]),
        "stopwatch": say(case, [(first + beat, first + beat + 0.4, ["mhm"]) for beat in (1.0, 4.5)]),
        "soup": say(case, [(on, on + EACH * len(TOPICS), TOPICS) for on, _, _ in right]),
        "hum": hummed(say(case, right)),
        "random": say(case, talks),
        "rate_matched": say(case, [(s, s + off - on, t) for s, (on, off, t) in zip(starts, right, strict=True)]),
    }
    assert set(played) == {ORACLE, *ATTACKS}
    return played


@pytest.mark.parametrize("name", sorted(cases()))
def test_no_attack_comes_near_the_oracle_beside_what_a_term_must_be_trained_with(name):
    composition = Composition(companions(name))
    runs = [attacked(case, seed) for seed in range(2) for case in cases()[name]]
    found = {agent: score(composition, [run[agent] for run in runs]) for agent in runs[0]}
    audit = compare(composition.weights, found, faults=composition.faults)
    assert audit.passed, (audit.complaints(), {a: audit.terms[a] for a in audit.holes})
    assert found[ORACLE][name] is not None and found[ORACLE][name] > 0.9
    assert audit.totals[ORACLE] is not None and audit.totals[ORACLE] > 0.85
