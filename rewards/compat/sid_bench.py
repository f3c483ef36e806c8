"""SID-Bench: does a stop come at the moment that the user's speech becomes an interruption, and only then?

Source: arXiv 2603.24144, and `README.md` and `test.ipynb` of xkx-hub/SID-bench (0a9e500); code and README define two of
the three figures differently, and both are here. The benchmark feeds clips to a detector. Here a clip is what the user
says while the agent talks: barge-ins (C1-C3) break at their anchor `sem`, backchannels, coughs, noises and asides (D1,
D3-D5) do not break; the detection is the moment at which the agent stops, if it does so before the user has finished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from envs.event import BARGE_IN_TYPES
from rewards.compat.controls import anywhere
from rewards.compat.evaluator import Evaluator
from rewards.compat.heard import Heard, sounding_at
from rewards.measures import Measure
from rewards.view import GAP_SECONDS

TOLERANCE_SECONDS = 0.05
NON_BREAKING = ("D1", "D3", "D4", "D5")
CONTROL_STEP_SECONDS = 0.1

BUGS: Mapping[str, str] = {
    "early_costs_everything": "a stop more than 0.05 s before the break costs the whole clip, more than never stopping",
}
FIGURES: Mapping[str, Measure] = {
    "apt": Measure(-1, "s", "average penalty time"),
    "fir_code": Measure(-1, "share", "false interruptions over all clips (code)"),
    "fir_paper": Measure(-1, "share", "stops on clips without a break, over those clips (README)"),
    "fir_paper_control": Measure(0, "share", "control: stops within as long at any other moment"),
    "irl_code": Measure(-1, "s", "mean of the delays above zero (code)"),
    "irl_paper": Measure(-1, "s", "mean absolute error of the stops that are right (README)"),
}


class Clip(NamedTuple):
    """One line of the benchmark: seconds from the beginning of the user's speech."""

    duration: float
    breaks: float | None
    """When it becomes an interruption; None when it does not."""
    stop: float | None
    """When the agent stopped; None when it did not before the end."""


class Graded(NamedTuple):
    """What became of a clip."""

    penalty: float
    false_alarm: bool
    delay: float | None
    """stop - break of a stop that is right."""


def grade(clip: Clip, bugs: Collection[str]) -> Graded:
    """Penalty and class of one clip."""
    if clip.breaks is None:
        return Graded(0.0 if clip.stop is None else clip.duration, clip.stop is not None, None)
    if clip.stop is None:
        return Graded(clip.duration - clip.breaks, False, None)
    delay = clip.stop - clip.breaks
    if abs(delay) <= TOLERANCE_SECONDS:
        return Graded(0.0, False, delay)
    if delay > 0.0:
        return Graded(delay, False, delay)
    if "early_costs_everything" in bugs:
        return Graded(clip.duration, True, None)
    return Graded(-delay, False, delay)


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode."""
    tally = dict.fromkeys(FIGURES, (0.0, 0.0))

    def add(name: str, value: float) -> None:
        tally[name] = (tally[name][0] + value, tally[name][1] + 1.0)

    agent = heard.agent(GAP_SECONDS)
    for event in heard.events:
        onset, duration = heard.at(event.onset), heard.episode.clock.seconds(event.offset - event.onset)
        talking = sounding_at(agent, onset)
        if talking is None or not (event.type in BARGE_IN_TYPES or event.type in NON_BREAKING):
            continue
        stop = talking.offset - onset if talking.offset - onset <= duration else None
        sem = event.anchors.get("sem", event.onset)
        breaks = heard.at(sem) - onset if event.type in BARGE_IN_TYPES else None
        graded = grade(Clip(duration, breaks, stop), bugs)
        add("apt", graded.penalty)
        add("fir_code", graded.false_alarm)
        if breaks is None:
            add("fir_paper", graded.false_alarm)

            def stops(at: float, duration: float = duration) -> float:
                span = sounding_at(agent, at)
                return float(span is not None and span.offset - at <= duration)

            control = anywhere(agent, heard.busy, stops, CONTROL_STEP_SECONDS)
            if control is not None:
                add("fir_paper_control", control)
        if graded.delay is not None:
            add("irl_paper", abs(graded.delay))
            if graded.delay > TOLERANCE_SECONDS:
                add("irl_code", graded.delay)
    return tally


SID_BENCH = Evaluator(
    name="sid_bench",
    source="SID-Bench, arXiv 2603.24144, xkx-hub/SID-bench 0a9e500",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
)
