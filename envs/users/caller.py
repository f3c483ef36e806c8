"""Bind an `llm` scenario: who calls, in which voice, and what can be said; and how each of it sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from envs.acoustics.conditions import Conditions
from envs.clock import Clock
from envs.event import Word
from envs.pack import Clip, Pack
from envs.scenario import Cut, Scenario, ScriptItem, Trigger
from envs.seeding import Seeds
from envs.users.character import LONGEST_HEAD, Speech, expectation, head_length, meaning, words_before
from envs.users.llm_user import LlmUser
from envs.users.persona import ASIDE, COUGH, INTENTS, TURNS, TurnKind
from envs.users.plan import Drawn, render

INTERRUPTS = ("new_topic", "correction", "stop", "repetition", "follow_up", "dissatisfaction")
"""Why an llm user may barge in (`INTENTS`)."""
_INTERRUPTING = ("barge_in", "correction", "stop")
_KINDS = {kind: taken for taken in TURNS.values() for kind in taken.kinds[:1]}


@dataclass(frozen=True)
class Offer:
    """Something that can be said."""

    text: str
    clip: Clip
    head: bool = False
    """Only what lies before the clip's first pause."""


@dataclass(frozen=True, eq=False)
class Caller:
    """One llm user of one conversation."""

    pack: Pack
    scenario: Scenario
    seeds: Seeds
    values: dict[str, float]
    user: LlmUser
    voice: str
    offers: Mapping[str, Offer]
    """Name (t1, b1, a1: turns, backchannels, asides) to what it says; empty where speech is synthesised."""
    room_tone_db: float
    conditions: Conditions
    after_script: int
    longest: int
    clock: Clock
    _made: dict[tuple[object, ...], Speech] = field(default_factory=dict, repr=False)

    @property
    def seed(self) -> int:
        """For the model's sampling: its own for each conversation."""
        return int(self.seeds.rng("user", "llm").integers(2**31))

    def jitter(self, number: int) -> int:
        """Samples after a frame's edge at which the n-th thing is said: people know no frames."""
        return int(self.seeds.rng("user", "jitter", number).integers(self.clock.frame))

    def item(self, name: str, act: str, intent: str, offer: Offer, over: bool) -> ScriptItem:
        """What an act is, as an item of a script; `over`: it begins while the agent speaks."""
        if act == "backchannel":
            return ScriptItem(name, "D1", Trigger())
        if act == "aside":
            return ScriptItem(name, "D3" if offer.clip.said_as == COUGH else "D5", Trigger())
        if act == "hang_up":
            return ScriptItem(name, "A8", Trigger())
        if over:
            return ScriptItem(name, INTENTS[intent].type, Trigger(), anchors=meaning(offer.clip))
        kind = _KINDS.get(offer.clip.said_as) or TurnKind("A1" if offer.text.rstrip().endswith("?") else "A3", ())
        bars = tuple(words_before(offer.clip, on) - 1 for on, _ in offer.clip.pauses) if kind.type == "B7" else ()
        return ScriptItem(name, kind.type, Trigger(), pause_type=kind.pause_type, turn=kind.turn, opportunities=bars)

    def speech(self, item: ScriptItem, offer: Offer, over: bool) -> Speech:
        """The audio and the events of an item; the agent is to go on over something only if it speaks."""
        key = (item.id, item.type, offer.clip.id, offer.head, over)
        if key not in self._made:
            if offer.head and offer.clip.pauses:
                item = ScriptItem(item.id, item.type, item.trigger, until=Cut(at_pause=0))
            expected = expectation(self.scenario, item, self.pack.wanted(offer.clip))
            beside = item.type in ("D1", "D3", "D5") and not over
            pcm, events = render(
                item, offer.clip, (), 0.0, (lambda name: ()) if beside else expected, self.scenario.twin, self.clock
            )
            self._made[key] = Speech(pcm, events)
        return self._made[key]


def bind_llm(
    pack: Pack,
    scenario: Scenario,
    drawn: Drawn,
    clock: Clock,
) -> Caller:
    """Draw an llm user's voice; the same arguments give the same one everywhere."""
    user = scenario.user
    assert isinstance(user, LlmUser)
    if user.speech is not None:
        voice, offers = user.speech.voice, {}
    else:
        spoken = pack.spoken(scenario.split)
        voices = sorted({clip.voice for clips in spoken.values() for clip in clips if clip.words and clip.voice})
        voice = voices[int(drawn["seeds"].rng("voice").integers(len(voices)))]
        offers = _offers([c for clips in spoken.values() for c in clips if c.voice == voice or not c.words], clock)
    return Caller(**drawn, pack=pack, user=user, voice=voice, offers=offers, clock=clock)


def _offers(clips: list[Clip], clock: Clock) -> dict[str, Offer]:
    found: dict[str, Offer] = {}

    def add(letter: str, offer: Offer) -> None:
        if all(offer.text != other.text for name, other in found.items() if name[0] == letter):
            found[f"{letter}{sum(name[0] == letter for name in found) + 1}"] = offer

    for clip in sorted(clips, key=lambda clip: clip.said_as in _INTERRUPTING):
        beside = clip.said_as in (ASIDE, COUGH) or not clip.words
        text = clip.text or clip.said_as.replace("_", " ")
        if clip.said_as == "backchannel":
            add("b", Offer(text, clip))
            continue
        add("a" if beside else "t", Offer(f"({text})" if not clip.words else text, clip))
        nods = clip.said_as in _INTERRUPTING and clip.pauses  # the "yeah" that it begins with
        if nods and head_length(clip) <= clock.samples(LONGEST_HEAD):
            head = clip.words[: words_before(clip, clip.pauses[0][0])]
            add("b", Offer(" ".join(word.text for word in head), clip, head=True))
    return found


def synthesised(text: str, pcm: np.ndarray, voice: str) -> Offer:
    """A text that was just spoken, (n,) int16: its words share the time by their letters."""
    pcm = pcm.copy()
    pcm.setflags(write=False)
    words = text.split()
    edges = np.rint(np.cumsum([0, *(len(word) + 1 for word in words)]) * len(pcm) / (len(text.strip()) + 1)).astype(int)
    spans = zip(words, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    timed = tuple(Word(word, on, min(off, len(pcm))) for word, on, off in spans)
    clip = Clip(f"said/{text}", Path(), len(pcm), text, timed, voice)
    vars(clip)["pcm"] = pcm  # there is no file to decode it from
    return Offer(text, clip)
