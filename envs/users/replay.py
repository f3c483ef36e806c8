"""The `replay` user: one channel of a recording of two people, as it was. It reacts to nothing.

What happens is read from who spoke when (`envs.recording`):

* speech of the user with silences of at most 1.0 s in it is an utterance, and those of at least 0.2 s are pauses (B1).
  Where no words file says when they speak, their sound does, and that joins what is less than 0.32 s apart;
* an utterance of at most 1.0 s and two words while the other one spoke is a backchannel (D1), and any other of that
  length is nothing;
* a longer one is a turn (A1 if its text ends in a question mark, else A3), or a barge-in (C1) if the other one had
  talked for a second and talked on for 0.3 s;
* a turn of 5 s or more in which the other one said something of at most 1.0 s is also a monologue (B7), and where they
  said so are its opportunities: a person's choice, not a rule's (arXiv 2606.11167 takes them for the truth, too).
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.clock import CLOCK, Clock
from envs.corpora.utterances import utterances
from envs.episode import to_pcm16
from envs.event import Event, Word
from envs.pack import Pack
from envs.recording import Recording
from envs.scenario import Scenario
from envs.users.persona import EXPECTS
from envs.users.plan import Drawn, Line, Plan

TURN_GAP = CLOCK.samples(1.0)
"""A longer silence ends an utterance (arXiv 2606.11167)."""
SHORT = CLOCK.samples(1.0)
SHORTEST_PAUSE = CLOCK.samples(0.2)
MONOLOGUE = CLOCK.samples(5.0)
TERMINAL_OVERLAP = CLOCK.samples(0.3)


def bind_replay(
    pack: Pack,
    scenario: Scenario,
    drawn: Drawn,
    clock: Clock,
) -> Plan:
    """One line that holds the whole recording and begins with the conversation."""
    assert isinstance(scenario.user, Recording)
    pcm = to_pcm16(scenario.user.user)
    pcm.setflags(write=False)
    line = Line(
        id="recording",
        type="A3",
        source="user",
        pcm=pcm,
        events=find_events(scenario.user.units, scenario.user.spans, scenario.user.partner, scenario),
        at=0,
        after=None,
        gap=0,
        agent=None,
        hold=0,
        timeout=0,
        jitter=0,
        ends=len(pcm),
    )
    user = scenario.user
    told = {"file": user.file.name, "channel": user.channel, "from": user.start, "clipped": round(user.clipped, 6)}
    return Plan(**drawn, lines=(line,), voice=user.file.stem, notes={"recording": told})


def find_events(
    units: Sequence[tuple[int, int]], spans: Sequence[Word], partner: Sequence[tuple[int, int]], scenario: Scenario
) -> tuple[Event, ...]:
    """What somebody does in a conversation, in order of onset. Times are samples.

    Args:
        units: when they speak: inter-pausal units, in order.
        spans: what they say, as far as it is known: a word or a segment each.
        partner: when the other one speaks.
        scenario: says what is expected about each type.
    """
    found: list[Event] = []

    def event(name: str, code: str, on: int, off: int, anchors: dict[str, int] | None = None) -> None:
        within = [span for span in spans if on <= (span.onset + span.offset) // 2 < off and span.text]
        words = tuple(Word(*span) for span in within if len(span.text.split()) == 1)
        expects = tuple(e for c, e in scenario.expects if c == code) or EXPECTS.get(code, ())
        text = " ".join(span.text for span in within)
        found.append(Event(name, code, "user", on, off, anchors or {}, text, words, expects))

    for number, said in enumerate(utterances([list(units)], TURN_GAP)):
        on, off = said.onset, said.offset
        name = f"turn{number}"
        spoken = " ".join(span.text for span in spans if on <= (span.onset + span.offset) // 2 < off)
        talking = next(((a, b) for a, b in partner if a < on < b), None)
        if off - on <= SHORT and len(spoken.split()) <= 2:
            if talking:
                event(name, "D1", on, off)
            continue
        code = "A1" if spoken.rstrip().endswith("?") else "A3"
        if talking and on - talking[0] >= SHORT and talking[1] - on >= TERMINAL_OVERLAP:
            first = next((span.offset for span in spans if span.onset >= on and span.text), said.units[0][1])
            event(name, "C1", on, off, {"sem": min(first, off)})
            continue
        heard = [a for a, b in partner if on <= a and b <= off and b - a <= SHORT]
        if off - on >= MONOLOGUE and heard:
            event(name, "B7", on, off, {f"bc{i}": at for i, at in enumerate(heard)})
            event(f"{name}.turn", code, on, off)
        else:
            event(name, code, on, off)
        for i, (start, stop) in enumerate(said.pauses):
            if stop - start >= SHORTEST_PAUSE:
                event(f"{name}.pause{i}", "B1", start, stop)
    return tuple(sorted(found, key=lambda e: (e.onset, e.id)))
