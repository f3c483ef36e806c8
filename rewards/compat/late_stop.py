"""Late-stop segments: what the agent still says after it should have stopped for a barge-in.

Source: the constants of DuplexPO (arXiv 2607.07148): an interruption has a grace of 0.16 s and a stop a tolerance of
0.24 s, counted from the user's onset. A late-stop segment runs from there to the end of what the agent was saying. The
paper uses them inside its reward and reports no such figure; nobody else whose definition we could read does either,
so the figures' names are ours. NVIDIA's script calls a barge-in failed after 1.5 s; that share is here as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from envs.event import BARGE_IN_TYPES
from rewards.compat.controls import anywhere
from rewards.compat.evaluator import Evaluator
from rewards.compat.heard import Heard, Span, sounding_at
from rewards.measures import Measure
from rewards.view import GAP_SECONDS

ALLOWED_SECONDS = 0.16 + 0.24
FAILED_SECONDS = 1.5
CONTROL_STEP_SECONDS = 0.1

BUGS: Mapping[str, str] = {
    "from_onset": "the clock runs from the user's onset, before anybody could know that it is a barge-in",
}
FIGURES: Mapping[str, Measure] = {
    "late_share": Measure(-1, "share", "barge-ins with a late-stop segment"),
    "late_share_control": Measure(0, "share", "control: talks on for 0.4 s after any other moment"),
    "late_seconds": Measure(-1, "s", "mean length of a late-stop segment"),
    "late_per_barge_in": Measure(-1, "s", "seconds of late-stop segments a barge-in"),
    "failed_share": Measure(-1, "share", "barge-ins after which the agent talks on for 1.5 s or more"),
}


def late_segments(heard: Heard, bugs: Collection[str]) -> list[tuple[float, Span | None]]:
    """For each barge-in on a talking agent: how long it talked on, and the late-stop segment if there is one."""
    agent = heard.agent(GAP_SECONDS)
    found: list[tuple[float, Span | None]] = []
    for event in heard.events:
        talking = sounding_at(agent, heard.at(event.onset))
        if event.type not in BARGE_IN_TYPES or talking is None:
            continue
        clear = event.onset if "from_onset" in bugs else event.anchors.get("sem", event.onset)
        due = heard.at(clear) + ALLOWED_SECONDS
        late = Span(due, talking.offset) if talking.offset > due else None
        found.append((talking.offset - heard.at(clear), late))
    return found


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode."""
    segments = late_segments(heard, bugs)
    count = float(len(segments))
    late = [segment for _, segment in segments if segment is not None]
    seconds = sum(segment.seconds for segment in late)
    agent = heard.agent(GAP_SECONDS)

    def talks_on(at: float) -> float:
        span = sounding_at(agent, at)
        return float(span is not None and span.offset - at > ALLOWED_SECONDS)

    control = anywhere(agent, heard.busy, talks_on, CONTROL_STEP_SECONDS) if segments else None
    return {
        "late_share": (float(len(late)), count),
        "late_share_control": (0.0, 0.0) if control is None else (control * count, count),
        "late_seconds": (seconds, float(len(late))),
        "late_per_barge_in": (seconds, count),
        "failed_share": (float(sum(stop >= FAILED_SECONDS for stop, _ in segments)), count),
    }


LATE_STOP = Evaluator(
    name="late_stop",
    source="DuplexPO's constants, arXiv 2607.07148",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
)
