"""Full-Duplex-Bench version 1.5, timing: how long both talk, and how soon the answer comes, by category of overlap.

Source: arXiv 2507.23159 and `get_timing.py` of DanielLin94144/Full-Duplex-Bench (snapshot d7336bd). The script writes
intervals and has no aggregator; here each figure is their mean. The behaviour labels need a chat model and the acoustic
features its own libraries; neither is here. Categories that no event belongs to have no value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rewards.compat.controls import anywhere
from rewards.compat.evaluator import Evaluator
from rewards.compat.fdb_items import OVERLAPS, wanted
from rewards.compat.heard import Heard, Span, Spoken, overlap, sounding_at
from rewards.measures import Measure

CODE_GAPS = (0.6, 0.5)
"""Seconds that are bridged in the user's and in the agent's speech, by the code."""
COMMENT_GAPS = (0.3, 0.05)
"""And by its comments."""
CONTROL_STEP_SECONDS = 0.1

BUGS: Mapping[str, str] = {
    "user_stopped_is_stop": "an overlap that ends because the user stops counts as the agent's stop",
    "agent_began_is_stop": "an overlap that the agent begins counts as its stop",
    "wide_gaps": "gaps of 0.6 s and 0.5 s are bridged, where the comments say 0.3 s and 0.05 s",
    "any_later_start": "the next start of the agent answers, however late and after whatever the user says next",
}
CATEGORIES = ("user_interruption", "user_backchannel", "talking_to_other", "background_speech")
FIGURES: Mapping[str, Measure] = {
    **{
        name: figure
        for category in CATEGORIES
        for name, figure in {
            f"{category}_stop": Measure(-1 if category == "user_interruption" else 0, "s", "mean overlap"),
            f"{category}_stop_control": Measure(0, "s", "control: the same speech of the user at any other moment"),
            f"{category}_response": Measure(-1 if category == "user_interruption" else 0, "s", "mean answer latency"),
        }.items()
    }
}


def stop_intervals(user: Sequence[Spoken], agent: Sequence[Span], bugs: Collection[str]) -> list[tuple[Spoken, float]]:
    """The user's stretches and how long the agent talked into each; per end (to the millisecond) the shortest.

    With `user_stopped_is_stop` off, the longest.
    """
    found: dict[int, tuple[Spoken, float]] = {}
    for spoken in user:
        for span in agent:
            shared, begin = overlap(spoken, span), max(spoken.onset, span.onset)
            if shared <= 0.0:
                continue
            if span.onset > spoken.onset and "agent_began_is_stop" not in bugs:
                continue
            if span.offset > spoken.offset and "user_stopped_is_stop" not in bugs:
                shared = span.offset - begin  # it went on, and stopped here
            end = round(1000 * (begin + shared))
            # Timed to the agent's own stop, all stretches of a barge-in end there, and its first word counts.
            keep = min if "user_stopped_is_stop" in bugs else max
            found[end] = keep(found.get(end, (spoken, shared)), (spoken, shared), key=lambda pair: pair[1])
    return list(found.values())


def response_intervals(
    user: Sequence[Spoken], agent: Sequence[Span], bugs: Collection[str]
) -> list[tuple[Spoken, float]]:
    """The user's stretches and the gap to the agent's next start; per start the latest end of the user's."""
    found: dict[float, tuple[Spoken, float]] = {}
    for index, spoken in enumerate(user):
        limit = float("inf")
        if "any_later_start" not in bugs:
            limit = min((later.onset for later in user[index + 1 :]), default=limit)
        start = min((span.onset for span in agent if spoken.offset < span.onset < limit), default=None)
        if start is not None and (start not in found or spoken.offset > found[start][0].offset):
            found[start] = (spoken, start - spoken.offset)
    return list(found.values())


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode."""
    tally = dict.fromkeys(FIGURES, (0.0, 0.0))

    def add(name: str, value: float) -> None:
        tally[name] = (tally[name][0] + value, tally[name][1] + 1.0)

    user_gap, agent_gap = CODE_GAPS if "wide_gaps" in bugs else COMMENT_GAPS
    user, agent = heard.user(user_gap), heard.agent(agent_gap)
    for spoken, seconds in stop_intervals(user, agent, bugs):
        category = _category(heard, spoken)
        if category is not None:
            add(f"{category}_stop", seconds)
            length = spoken.offset - spoken.onset

            def talked_into(at: float, length: float = length) -> float:
                span = sounding_at(agent, at)
                left = span.offset - at if span else 0.0
                return min(left, length) if "user_stopped_is_stop" in bugs else left

            control = anywhere(agent, heard.busy, talked_into, CONTROL_STEP_SECONDS)
            if control is not None:
                add(f"{category}_stop_control", control)
    for spoken, seconds in response_intervals(user, agent, bugs):
        category = _category(heard, spoken)
        if category is not None:
            add(f"{category}_response", seconds)
    return tally


def _category(heard: Heard, spoken: Spoken) -> str | None:
    category = OVERLAPS.get(spoken.type)
    return category if category is not None and wanted(heard, f"v1.5/{category}") else None


FDB_V15 = Evaluator(
    name="fdb_v15",
    source="Full-Duplex-Bench v1.5, arXiv 2507.23159, DanielLin94144/Full-Duplex-Bench d7336bd",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
)
