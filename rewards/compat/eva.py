"""EVA's turn-taking score: one number in [0, 1] a user turn, from latency, overlap or yield.

Source: `src/eva/metrics/experience/turn_taking.py` of ServiceNow/eva (6ff857c), turns without tool calls. A turn is the
user's (A types, monologues, barge-ins); the agent's speech that begins between its onset and the next turn's belongs to
it. The agent interrupts when its speech begins inside the turn; the user interrupts when the agent is speaking at the
turn's onset. User backchannels, coughs and asides are no turns. The scores of a record are pooled over all its turns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rewards.compat.evaluator import Evaluator
from rewards.compat.heard import Heard, Span, overlap, sounding_at
from rewards.measures import Measure
from rewards.view import GAP_SECONDS, is_user_turn

HARD_EARLY, SWEET_LOW, SWEET_HIGH, HARD_LATE = -0.5, 0.5, 2.0, 5.0
"""Seconds: the score of a latency rises from 0 to 1 between the first two and falls to 0 between the last two."""
EARLY_SECONDS, LATE_SECONDS = 0.2, 4.0
OVERLAP_SECONDS = 2.0
OVERLAP_CAP = 0.5
YIELD_SECONDS = 2.0

BUGS: Mapping[str, str] = {
    "unanswered_left_out": "a turn without any speech of the agent is not scored; off: it scores 0",
    "yield_alone": "a turn that interrupts the agent is scored by the yield alone, answered or not",
    "overlap_alone": "an agent that talks on over the end of the turn is not asked for a latency",
}
FIGURES: Mapping[str, Measure] = {
    "turn_taking": Measure(1, "", "mean score of the turns"),
    "latency": Measure(-1, "s", "mean latency of the turns that nobody interrupts"),
    "early_rate": Measure(-1, "share", "latencies below 0.2 s"),
    "late_rate": Measure(-1, "share", "latencies of 4 s and more"),
    "agent_interruption": Measure(-1, "share", "turns that the agent interrupts"),
    "user_interruption": Measure(0, "share", "turns that interrupt the agent"),
    "yield": Measure(-1, "s", "mean time that it talks on then"),
}


def latency_score(seconds: float) -> float:
    """0 up to -0.5 s, 1 from 0.5 to 2 s, 0 from 5 s on, linear between."""
    if not HARD_EARLY < seconds < HARD_LATE:
        return 0.0
    return min(1.0, (seconds - HARD_EARLY) / (SWEET_LOW - HARD_EARLY), (HARD_LATE - seconds) / (HARD_LATE - SWEET_HIGH))


def overlap_score(seconds: float) -> float:
    """Half at most, 0 from 2 s of overlap on."""
    return OVERLAP_CAP * max(0.0, 1.0 - seconds / OVERLAP_SECONDS)


def yield_score(seconds: float) -> float:
    """1 for an instant yield, 0 from 2 s on."""
    return max(0.0, 1.0 - seconds / YIELD_SECONDS)


def score_turn(turn: Span, agent: Sequence[Span], talking: Span | None, bugs: Collection[str]) -> float | None:
    """The score of one turn; None when it is left out.

    Args:
        turn: the user's turn.
        agent: the agent's speech that begins in or after it.
        talking: what the agent was saying when the turn began.
        bugs: names of those that are on.
    """
    if not agent and talking is None:
        return None if "unanswered_left_out" in bugs else 0.0
    settled = next((span.onset - turn.offset for span in agent if span.onset >= turn.offset), None)
    scores = []
    shared = sum(overlap(turn, span) for span in agent)
    if shared > 0.0:
        scores.append(overlap_score(shared))
        through = any(span.onset <= turn.offset < span.offset for span in agent)
        if settled is not None and not (through and "overlap_alone" in bugs):
            scores.append(latency_score(settled))
    if talking is not None:
        scores.append(yield_score(max(0.0, talking.offset - turn.onset)))
        if "yield_alone" not in bugs and not shared:
            scores.append(0.0 if settled is None else latency_score(settled))
    if not scores:
        scores.append(latency_score(agent[0].onset - turn.offset))
    return min(scores)


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode."""
    tally = dict.fromkeys(FIGURES, (0.0, 0.0))

    def add(name: str, value: float) -> None:
        tally[name] = (tally[name][0] + value, tally[name][1] + 1.0)

    spans = heard.agent(GAP_SECONDS)
    turns = [Span(heard.at(act.onset), heard.at(min(act.offset, heard.end))) for act in heard.acts if is_user_turn(act)]
    for index, turn in enumerate(turns):
        following = turns[index + 1].onset if index + 1 < len(turns) else heard.seconds
        agent = [span for span in spans if turn.onset < span.onset < following]
        talking = sounding_at(spans, turn.onset)
        score = score_turn(turn, agent, talking, bugs)
        if score is None:
            continue
        add("turn_taking", score)
        interrupts = any(overlap(turn, span) for span in agent)
        add("agent_interruption", interrupts)
        add("user_interruption", talking is not None)
        if talking is not None:
            add("yield", talking.offset - turn.onset)
        elif not interrupts and agent:
            latency = agent[0].onset - turn.offset
            add("latency", latency)
            add("early_rate", latency < EARLY_SECONDS)
            add("late_rate", latency >= LATE_SECONDS)
    return tally


EVA = Evaluator(
    name="eva",
    source="EVA, ServiceNow/eva 6ff857c",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
)
