"""NVIDIA's script for duplex speech-to-speech models: turn-taking precision and recall, barge-in, backchannels.

Source: the conversation-behaviour evaluation beside NVIDIA NeMo (described in "End2end Evaluation of the Duplex
Speech2Speech Model Based on Nemo-Skills"): latency threshold 1.5 s, buffers 0.5 s, barge-in threshold 1.5 s, Silero
with a minimum silence of 1.5 s. Its figures are means over conversations, not over turns, and so are these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rewards.compat.controls import anywhere
from rewards.compat.evaluator import Evaluator
from rewards.compat.heard import Heard, Span, sounding_at
from rewards.measures import Measure
from rewards.timing import EARLY_SECONDS
from rewards.view import GAP_SECONDS

LATENCY_SECONDS = 1.5
BUFFER_SECONDS = 0.5
BARGE_IN_SECONDS = 1.5
SILENCE_SECONDS = 1.5
SHORTEST_SECONDS = 0.25
CONTROL_STEP_SECONDS = 0.1

BUGS: Mapping[str, str] = {
    "silence_of_1500_ms": "a silence of less than 1.5 s splits no speech: answers to each other merge; off: 0.5 s",
    "every_sound_is_a_turn": "the user's backchannels, coughs and asides are turns that want an answer",
    "early_is_right": "an agent that starts up to 0.5 s before the user ends is right; off: 0.2 s",
    "early_is_instant": "such a start has latency 0",
    "one_hit_for_all": "recall is hits of the agent's turns over those and the missed turns of the user",
    "slow_stops_left_out": "the barge-in latency is the mean of the stops below 1.5 s only",
    "silent_agent_passes": "a backchannel while the agent is silent counts as talked through",
    "no_backchannel_scores_zero": "a conversation without a backchannel scores 0 in the mean",
}
FIGURES: Mapping[str, Measure] = {
    "precision": Measure(1, "share", "agent turns that begin from 0.5 s before to 1.5 s after the end of a user turn"),
    "recall": Measure(1, "share", "user turns with such an agent turn"),
    "f1": Measure(1, "", "of the two, a conversation"),
    "latency": Measure(-1, "s", "mean latency of the right agent turns"),
    "barge_in_success": Measure(1, "share", "barge-ins after which the agent's turn ends within 1.5 s"),
    "barge_in_latency": Measure(-1, "s", "mean time to that end"),
    "backchannel_accuracy": Measure(1, "share", "still speaking 1.5 s after the end of a user's backchannel"),
    "backchannel_accuracy_control": Measure(0, "share", "control: still speaking 1.5 s after any other moment"),
}


def user_turns(heard: Heard, bugs: Collection[str]) -> list[Span]:
    """What a voice activity detector with the script's gap takes for turns of the user."""
    gap = SILENCE_SECONDS if "silence_of_1500_ms" in bugs else GAP_SECONDS
    found: list[Span] = []
    for spoken in heard.user(gap):
        if "every_sound_is_a_turn" not in bugs and not (spoken.type[:1] in ("A", "C") or spoken.type == "B7"):
            continue
        if found and spoken.onset - found[-1].offset < gap:
            found[-1] = Span(found[-1].onset, max(found[-1].offset, spoken.offset))
        else:
            found.append(Span(spoken.onset, spoken.offset))
    return found


def turn_taking(user: Sequence[Span], agent: Sequence[Span], bugs: Collection[str]) -> dict[str, float]:
    """Precision, recall and F1 of one conversation, and the latency when there is any."""
    early = BUFFER_SECONDS if "early_is_right" in bugs else -EARLY_SECONDS
    if not user or not agent:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}

    def answers(span: Span, turn: Span) -> bool:
        return -early <= span.onset - turn.offset <= LATENCY_SECONDS

    latencies = []
    for span in agent:
        gaps = [span.onset - turn.offset for turn in user if answers(span, turn) and span.onset >= turn.onset]
        if gaps:
            latencies.append(min(max(0.0, gap) if "early_is_instant" in bugs else gap for gap in gaps))
    missed = sum(not any(answers(span, turn) for span in agent) for turn in user)
    hits = len(latencies)
    precision = hits / len(agent)
    found = hits if "one_hit_for_all" in bugs else len(user) - missed
    recall = found / (found + missed) if found + missed else 0.0
    f1 = 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0
    figures = {"precision": precision, "recall": recall, "f1": f1}
    return figures | {"latency": sum(latencies) / hits} if hits else figures


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode: every figure of one conversation once."""
    tally = dict.fromkeys(FIGURES, (0.0, 0.0))
    agent = heard.agent(SILENCE_SECONDS if "silence_of_1500_ms" in bugs else GAP_SECONDS, SHORTEST_SECONDS)
    user = user_turns(heard, bugs)
    found = turn_taking(user, agent, bugs)

    stops = [span.offset - turn.onset for turn in user for span in agent if span.onset < turn.onset < span.offset]
    if stops:
        found["barge_in_success"] = sum(stop < BARGE_IN_SECONDS for stop in stops) / len(stops)
        counted = [stop for stop in stops if stop < BARGE_IN_SECONDS or "slow_stops_left_out" not in bugs]
        if counted:
            found["barge_in_latency"] = sum(counted) / len(counted)

    heard_ends = [heard.at(act.offset) for act in heard.acts if act.type == "D1"]
    ends = [end for end in heard_ends if "silent_agent_passes" in bugs or sounding_at(agent, end)]

    def goes_on(at: float) -> float:
        return float(sounding_at(agent, at) is None or sounding_at(agent, at + BARGE_IN_SECONDS) is not None)

    if ends:
        found["backchannel_accuracy"] = sum(goes_on(end) for end in ends) / len(ends)
        control = anywhere(agent, heard.busy, goes_on, CONTROL_STEP_SECONDS)
        if control is not None:
            found["backchannel_accuracy_control"] = control
    elif not heard_ends and "no_backchannel_scores_zero" in bugs:
        found["backchannel_accuracy"] = 0.0
    return tally | {name: (float(value), 1.0) for name, value in found.items()}


NVIDIA_DUPLEX = Evaluator(
    name="nvidia_duplex",
    source="NVIDIA's conversation-behaviour script for duplex speech-to-speech models",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
)
