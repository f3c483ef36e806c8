"""τ-voice's interaction panel: latency, responsiveness, interruptions and selectivity, on ticks of 200 ms.

Source: arXiv 2603.13686 and `docs/interaction-metrics.md` of sierra-research/tau2-bench (2b80cb1). Its user events come
with the simulator's labels; here they are the event types: D1 a backchannel, D3 a vocal tic, D5 talk to somebody else.
Its leaderboard hides rates of fewer than 10 events.

A sentence of the agent that happens to end is a yield there. No record can tell the two apart, so the controls say how
often the agent falls silent where nobody says anything.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.compat.controls import anywhere
from rewards.compat.evaluator import Estimates, Evaluator
from rewards.compat.heard import Heard, Span, Spoken
from rewards.measures import Measure
from rewards.view import GAP_SECONDS

TICK_SECONDS = 0.2
FINE_SECONDS = 0.01
NO_YIELD_SECONDS = 2.0
"""A barge-in is yielded to when the agent is silent within this."""
SELECTIVE_SECONDS = 1.0
"""A backchannel, tic or aside is yielded to, wrongly, within this."""
RESPONSE_SECONDS = 2.0
"""A tic or an aside in silence is answered, wrongly, up to this long after its end."""
SELECTIVITY = {"D1": "selectivity_backchannel", "D3": "selectivity_vocal_tic", "D5": "selectivity_non_directed"}

BUGS: Mapping[str, str] = {
    "ticks_of_200_ms": "every time lies on a grid of 0.2 s",
    "one_silent_tick_ends_speech": "a breath of one tick is a yield; off: silences of up to 0.5 s are not",
    "pause_ends_turn": "a pause of one tick ends the user's turn, so waiting through it is a missing response",
    "last_unanswered_is_skipped": "a last turn that is never answered is left out of the response rate",
    "onsets_per_turn": "agent interruptions are onsets per turn and may exceed 1; off: the share of turns with any",
}
FIGURES: Mapping[str, Measure] = {
    "response_latency": Measure(-1, "s", "L_R: mean from the end of a user turn to the agent's start"),
    "response_rate": Measure(1, "share", "R_R: user turns answered before the user speaks again"),
    "yield_latency": Measure(-1, "s", "L_Y: mean from a barge-in to silence, of those yielded to"),
    "yield_rate": Measure(1, "share", "R_Y: barge-ins yielded to within 2 s"),
    "yield_rate_control": Measure(0, "share", "control: falls silent within 2 s of any other moment"),
    "agent_interruption": Measure(-1, "per turn", "I_A: the agent starts while the user speaks"),
    "selectivity_backchannel": Measure(1, "share", "S_BC: user backchannels talked through"),
    "selectivity_backchannel_control": Measure(0, "share", "control: talks on for 1 s after any other moment"),
    "selectivity_vocal_tic": Measure(1, "share", "S_VT: coughs ignored"),
    "selectivity_non_directed": Measure(1, "share", "S_ND: asides ignored"),
    "selectivity": Measure(1, "share", "mean of the three"),
}


@dataclass(frozen=True)
class _Segment:
    """Ticks [start, stop) of speech; the type of the user's event, empty for the agent."""

    start: int
    stop: int
    type: str = ""

    @property
    def turn(self) -> bool:
        """Whether it is speech that takes the floor."""
        return self.type[:1] in ("A", "C") or self.type == "B7"


def _ticks(pieces: Sequence[Span | Spoken], tick: float) -> list[_Segment]:
    """Runs of ticks in which there is any speech; pieces of one type that touch are one run."""
    found: list[_Segment] = []
    for piece in pieces:
        kind = piece.type if isinstance(piece, Spoken) else ""
        start, stop = math.floor(piece.onset / tick + 1e-6), math.ceil(piece.offset / tick - 1e-6)
        if found and found[-1].type == kind and start <= found[-1].stop:
            found[-1] = _Segment(found[-1].start, max(stop, found[-1].stop), kind)
        else:
            found.append(_Segment(start, stop, kind))
    return found


def _speaking(segments: Sequence[_Segment], tick: int) -> bool:
    return any(segment.start <= tick < segment.stop for segment in segments)


def _first_silent(agent: Sequence[_Segment], start: int, stop: int) -> int | None:
    """The first tick of [start, stop) in which the agent is silent."""
    while start < stop:
        segment = next((s for s in agent if s.start <= start < s.stop), None)
        if segment is None:
            return start
        start = segment.stop
    return None


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode."""
    tally = dict.fromkeys((name for name in FIGURES if name != "selectivity"), (0.0, 0.0))

    def add(name: str, value: float, weight: float = 1.0) -> None:
        tally[name] = (tally[name][0] + value, tally[name][1] + weight)

    tick = TICK_SECONDS if "ticks_of_200_ms" in bugs else FINE_SECONDS
    breath = FINE_SECONDS if "one_silent_tick_ends_speech" in bugs else GAP_SECONDS
    agent = _ticks(heard.agent(breath, FINE_SECONDS), tick)
    user = _ticks(heard.user(FINE_SECONDS if "pause_ends_turn" in bugs else math.inf), tick)
    last = math.ceil(heard.seconds / tick - 1e-6)

    def window(start: int, seconds: float) -> int:
        return min(last, start + round(seconds / tick))

    turns = [segment for segment in user if segment.turn]
    for index, turn in enumerate(turns):
        if _speaking(agent, turn.stop - 1):
            continue
        following = min((later.start for later in turns[index + 1 :]), default=None)
        start = min((s.start for s in agent if s.start >= turn.stop), default=None)
        if start is not None and (following is None or start <= following):
            add("response_latency", (start - turn.stop) * tick)
            add("response_rate", 1.0)
        elif following is not None or "last_unanswered_is_skipped" not in bugs:
            add("response_rate", 0.0)
    if "onsets_per_turn" in bugs:
        add("agent_interruption", sum(_speaking(user, s.start) for s in agent), tally["response_rate"][1])
    else:
        interrupted = sum(any(turn.start <= s.start < turn.stop for s in agent) for turn in turns)
        add("agent_interruption", interrupted, len(turns))

    for segment in user:
        talking = _speaking(agent, segment.start)
        if talking and segment.turn:
            silent = _first_silent(agent, segment.start, window(segment.start, NO_YIELD_SECONDS))
            add("yield_rate", silent is not None)
            if silent is not None:
                add("yield_latency", (silent - segment.start) * tick)
        elif segment.type in SELECTIVITY and talking:
            silent = _first_silent(agent, segment.start, window(segment.start, SELECTIVE_SECONDS))
            add(SELECTIVITY[segment.type], silent is None)
        elif segment.type in ("D3", "D5"):
            limit = segment.stop + round(RESPONSE_SECONDS / tick)
            add(SELECTIVITY[segment.type], not any(segment.start <= s.start <= limit for s in agent))

    spans = [Span(s.start * tick, s.stop * tick) for s in agent]
    for name, seconds in (("yield_rate", NO_YIELD_SECONDS), ("selectivity_backchannel", SELECTIVE_SECONDS)):
        cases = tally[name][1]

        def falls_silent(at: float, seconds: float = seconds) -> float:
            start = round(at / tick)
            return float(_first_silent(agent, start, window(start, seconds)) is not None)

        control = anywhere(spans, heard.busy, falls_silent, TICK_SECONDS) if cases else None
        if control is not None:
            expected = control if name == "yield_rate" else 1.0 - control
            add(f"{name}_control", expected * cases, cases)
    return tally


def derive(found: Estimates) -> dict[str, np.ndarray]:
    """The unweighted mean of the three selectivities, unknown when one is."""
    return {"selectivity": np.mean([found[name] for name in SELECTIVITY.values()], axis=0)}


TAU_VOICE = Evaluator(
    name="tau_voice",
    source="τ-voice, arXiv 2603.13686, sierra-research/tau2-bench 2b80cb1",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
    derive=derive,
)
