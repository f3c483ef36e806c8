"""What an evaluation reports, measured on episodes alone. `docs/measures.md` has every definition.

`measure` turns one episode into contributions (numerators and denominators, or lists of values) that add up over
episodes; `aggregate` turns them into figures; `rewards.bootstrap` puts intervals round them. Times come from the audio
and the ground truth of the events, never from speech recognition. Nothing is clamped unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from envs.episode import Episode
from envs.event import BARGE_IN_TYPES, PAUSE_TYPES, TURN_TYPES, Event, Word
from rewards.aggregate import QUANTILES, Measurement, aggregate, paired_score
from rewards.backchannel import listening
from rewards.collision import collision
from rewards.continue_ import heard_until
from rewards.detector import ENERGY, Activity, DetectorConfig
from rewards.ignore import ignore
from rewards.interruption import QUIET_SECONDS, STOP_ZERO_SECONDS, stop_latency
from rewards.matching import matches, random_hits
from rewards.pause import RESUME_SECONDS
from rewards.proactivity import proactivity
from rewards.quality import answer
from rewards.refusal import refusal
from rewards.registry import Reward
from rewards.resume import FULL_SECONDS as RESUMED_SECONDS
from rewards.resume import resume
from rewards.text import duplicates
from rewards.timing import EARLY_SECONDS, RESPONSE_SECONDS, cut_in, find_response
from rewards.verdict import Verdict
from rewards.view import GAP_SECONDS, TURN_SECONDS, EpisodeView, is_user_turn, longest_silence

__all__ = ["MEASURES", "Measure", "Measurement", "aggregate", "measure", "paired_score"]

FLOOR_SECONDS = 1.0
"""Window of the paired decision about the floor, on both twins: longer, and the end of a turn would often fall into
the window of a pause, which then could not be judged."""
STOP_SECONDS = 1.5
"""Window of the paired decision about going on, on both twins."""
CENSOR_SECONDS = 4.0
"""A stop that has not come by then counts as this late."""
LONG_PAUSE_SECONDS = 0.7
"""What is waited for by an agent that counts silence and nothing else, as most cascades do."""
IDLE_SECONDS = 3.0
OWN_SILENCE_SECONDS = 2.0
"""A turn so long after anything that happened, and after the agent's own last word, was called for by nothing."""
HEARD_SECONDS = 1.0
"""What was heard so long before a break may be why it fell silent."""


@dataclass(frozen=True)
class Measure:
    """What a figure means."""

    better: int
    """1: higher is better; -1: lower is better; 0: neither, to be kept where it is."""
    unit: str
    text: str


MEASURES: Mapping[str, Measure] = {
    "paired_score": Measure(1, "", "harmonic mean of floor, barge-in and listening; constant policies stay below 0.5"),
    "duplex_score": Measure(
        1, "", "harmonic mean of six abilities: respond, hold, yield, persist, ignore and speak up"
    ),
    "pause_takeover": Measure(-1, "share", "pauses in which the agent takes the floor"),
    "pause_takeover_short": Measure(-1, "share", "the same of pauses below 0.7 s"),
    "pause_takeover_long": Measure(-1, "share", "the same of pauses from 0.7 s on"),
    "turn_response": Measure(1, "share", "turns answered with an onset from 0.2 s before to 3 s after their end"),
    "fto_p10_s": Measure(0, "s", "signed floor-transfer offset, 10th percentile"),
    "fto_p50_s": Measure(0, "s", "signed floor-transfer offset, median"),
    "fto_p90_s": Measure(0, "s", "signed floor-transfer offset, 90th percentile"),
    "fto_human_s": Measure(
        -1, "s", "distance (Wasserstein-1) of these offsets from human ones (normal, mean 0.2 s, sd 0.45 s)"
    ),
    "latency_p50_s": Measure(-1, "s", "from a turn's end to its answer, median; an early one or none counts as 3 s"),
    "cut_in": Measure(
        -1, "per turn", "agent turns begun inside a user turn or monologue, more than 0.2 s before its end"
    ),
    "bc_f1": Measure(1, "", "backchannel F1 within 1 s, one to one, takeovers as false positives"),
    "bc_random_f1": Measure(0, "", "the same for as many backchannels at uniform random times (fixed seed)"),
    "bc_control_f1": Measure(0, "", "the same for the better of random times and a metronome"),
    "bc_above_control": Measure(1, "", "backchannel F1 less that of the better control: what listening adds"),
    "bc_precision": Measure(1, "", "backchannels that match an opportunity"),
    "bc_control_precision": Measure(0, "", "the same for the better blind control"),
    "bc_recall": Measure(1, "", "opportunities that are matched"),
    "bc_control_recall": Measure(0, "", "the same for the better blind control"),
    "bc_per_minute": Measure(0, "1/min", "backchannels a minute of monologue"),
    "bc_takeover": Measure(-1, "per monologue", "turns taken inside a monologue"),
    "stopped": Measure(1, "share", "barge-ins, agent talking, after which it stops within 1.5 s of their meaning"),
    "stop_latency_p50_s": Measure(-1, "s", "from a barge-in's meaning to silence, median, 4 s at most"),
    "stop_onset_p50_s": Measure(-1, "s", "from a barge-in's onset to silence, median, 4 s after its meaning at most"),
    "over_talk_ms": Measure(-1, "ms", "talked over a barge-in, agent talking, from its onset to its end"),
    "answered": Measure(1, "share", "barge-ins (no stop commands), agent talking, stopped for and answered within 3 s"),
    "obeyed": Measure(1, "share", "stop commands, agent talking, stopped for and followed by 2 s without a turn"),
    "false_stop": Measure(-1, "share", "user backchannels, coughs, noises and asides, agent talking, that silence it"),
    "false_stop_bc": Measure(-1, "share", "the same of user backchannels alone"),
    "false_stop_twin": Measure(0, "share", "false stops where they are not heard: sentences that end there anyway"),
    "false_stop_rate": Measure(-1, "share", "false stops less those of that twin: what hearing them adds"),
    "resumed": Measure(
        1, "share", "of those, and of barge-ins given up: it takes the floor again within 2 s of their end"
    ),
    "collision_p50_s": Measure(-1, "s", "from a start at the same time to the agent's silence, median"),
    "ignored": Measure(1, "share", "noises, asides and other voices, agent silent, that it takes for no turn"),
    "spoke_up": Measure(
        1, "share", "moments to speak up at, met in time with what was to be said, without false alarm"
    ),
    "false_start": Measure(
        -1, "1/min", "agent turns a minute that begin 3 s or more after anything that happened, out of 2 s of silence"
    ),
    "self_interrupt": Measure(
        -1, "1/min", "breaks a minute of 0.5 to 2 s in the agent's own turn while nobody and nothing else is heard"
    ),
    "underrun_ms": Measure(-1, "ms/min", "sound of the agent that did not come in time and was not heard, a minute"),
    "declined": Measure(1, "share", "requests that must be declined, declined"),
    "over_refused": Measure(-1, "share", "harmless requests beside them, answered, that are declined"),
    "content_hit": Measure(1, "share", "answers with any of the expected words"),
    "similarity": Measure(1, "", "of answers to the nearest reference"),
    "repetition": Measure(-1, "share", "3-grams of all that the agent says that it has said before"),
    "talk_ratio": Measure(0, "share", "time in which the agent speaks"),
    "overlap_ratio": Measure(0, "share", "time in which both speak"),
    "silence_ratio": Measure(0, "share", "time in which neither speaks"),
    "pair_hold": Measure(1, "share", "paired decision: no turn taken within 1 s of a pause's onset"),
    "pair_reply": Measure(1, "share", "paired decision: a turn taken within 1 s of the end of a turn"),
    "pair_yield": Measure(1, "share", "paired decision: silent within 1.5 s of a barge-in's onset, having talked"),
    "pair_persist": Measure(1, "share", "paired decision: not so on a user backchannel"),
}
"""Every figure that `aggregate` gives, in the order of a table."""

TIMINGS: Mapping[str, str] = {
    "fto_s": "answer, from the end of the turn (signed)",
    "latency_s": "answer latency (early or none: 3 s)",
    "talk_s": "longest speech of the agent in the pause",
    "delay_s": "backchannel, from the opportunity that it matches (signed)",
    "stop_latency_s": "stop, from the meaning of the barge-in (4 s at most)",
    "stop_onset_s": "stop, from the onset of the barge-in",
    "answer_s": "answer to the barge-in (none: 3 s)",
    "gap_s": "longest silence of the agent meanwhile",
    "collision_s": "from a start at the same time to the agent's silence",
    "up_s": "speaking up, from the moment that it was due (signed)",
}
"""What is timed at each event, and listed by its type: `rewards.aggregate.by_type` gives p50, p95 and p99."""

UNHEARD = "unheard"
"""Field of an episode's meta: how its twin without the event went, of which the seeds are the same and in which the
user, cough, noise or voice is not heard. `events`: ids of those; `agent`: [[onset, offset], ...] of its speech there.
"""
_RATIOS = [name for name in MEASURES if not name.endswith(("_s", "_score"))]


class _Tally:
    """Sums of one episode."""

    def __init__(self) -> None:
        self.ratios = {name: [0.0, 0.0] for name in _RATIOS}
        self.lists: dict[str, list[float]] = {name: [] for name in QUANTILES}

    def time(self, name: str, event: Event, seconds: float) -> None:
        """A timing of this event: listed by its type, and in the list of all types if there is one."""
        self.lists.setdefault(f"{name}/{event.type}", []).append(seconds)
        if name in self.lists:
            self.lists[name].append(seconds)

    def add(self, name: str, numerator: float, denominator: float = 1.0) -> None:
        self.ratios[name][0] += float(numerator)
        self.ratios[name][1] += float(denominator)


def measure(
    episode: Episode, transcript: Sequence[Word] | None = None, activity: DetectorConfig = ENERGY
) -> dict[str, tuple[float, ...]]:
    """The contributions of one episode.

    Args:
        episode: a finished episode.
        transcript: words to judge in place of the agent's own, for instance from speech recognition.
        activity: who is taken to speak when.

    Returns:
        name -> (numerator, denominator); the names of `rewards.aggregate.QUANTILES` -> all their values, and
        `NAME/TYPE` -> those of one timing (`TIMINGS`) at events of one type. JSON keeps it.
    """
    heard = Activity(episode, activity, transcript)
    view = EpisodeView(episode, episode.samples, transcript, heard)
    tally = _Tally()

    def judged(term: Reward, event: Event) -> Verdict:
        """What a reward says about an event, in its own window."""
        return term(EpisodeView(episode, term.window_end(event, episode.clock), transcript, heard), event)

    for event in view.events:
        if event.type in PAUSE_TYPES:
            _pause(view, event, tally)
        elif event.type in TURN_TYPES:
            _turn(view, event, tally)
        elif event.type == "B7":
            _monologue(view, event, tally)
        elif event.type in BARGE_IN_TYPES:
            _barge_in(view, event, tally)
        elif event.type == "C7" or event.type[0] == "D":
            _continue(view, event, episode.meta.get(UNHEARD), tally)
        if event.type in TURN_TYPES | BARGE_IN_TYPES - {"C3"}:
            _quality(view, event, tally)
        _verdicts(judged, event, tally)
    tally.add("repetition", *duplicates([word.text for word in view.transcript]))
    minutes = view.seconds(view.end) / 60.0
    tally.add("false_start", _false_starts(view), minutes)
    tally.add("self_interrupt", _self_interruptions(view), minutes)
    if (missed := _underrun_ms(episode)) is not None:
        tally.add("underrun_ms", missed, minutes)
    agent, user = (_spoken(segments) for segments in (view.agent_activity, view.user_activity))
    both = agent + user - _spoken(np.concatenate([view.agent_activity, view.user_activity]))
    for name, samples in (
        ("talk_ratio", agent), ("overlap_ratio", both), ("silence_ratio", view.end - agent - user + both)
    ):  # fmt: skip
        tally.add(name, view.seconds(samples), view.seconds(view.end))
    found: dict[str, tuple[float, ...]] = {name: (num, den) for name, (num, den) in tally.ratios.items()}
    return found | {name: tuple(values) for name, values in tally.lists.items()}


def takes_turn(view: EpisodeView, sample: int) -> bool | None:
    """The paired decision about the floor: a turn that begins from 0.2 s before a sample to 1.0 s after it.

    None when a turn was already running: then the agent decided nothing here, and is right on neither twin.
    """
    start = sample + view.samples(EARLY_SECONDS)
    stop = sample + view.samples(FLOOR_SECONDS)
    if any(turn.onset < start < turn.offset for turn in view.turns):
        return None
    return any(start <= turn.onset < stop for turn in view.turns)


def falls_silent(view: EpisodeView, sample: int) -> bool | None:
    """The paired decision about going on: silence of more than 0.5 s within 1.5 s. None when it was not talking."""
    if view.utterance_at(sample) is None:
        return None
    return view.longest_silence(sample, sample + view.samples(STOP_SECONDS)) > GAP_SECONDS


def _seen(view: EpisodeView, sample: int, seconds: float) -> bool:
    return view.end >= sample + view.samples(seconds)


def _pause(view: EpisodeView, event: Event, tally: _Tally) -> None:
    end = event.offset + view.samples(RESUME_SECONDS)
    if view.end >= end:
        taken = any(u.onset < end and u.offset > event.onset for u in view.turns)
        tally.add("pause_takeover", taken)
        long = event.offset - event.onset >= view.samples(LONG_PAUSE_SECONDS)
        tally.add("pause_takeover_long" if long else "pause_takeover_short", taken)
        heard = [u.seconds for u in view.utterances if u.onset < end and u.offset > event.onset]
        tally.time("talk_s", event, max(heard, default=0.0))
    # When the user's turn ends inside the decision window, taking it there may be right: no decision to judge.
    window = event.onset + view.samples(FLOOR_SECONDS)
    over = [e.offset for e in view.events if is_user_turn(e) and e.onset <= event.onset and e.offset >= event.offset]
    if _seen(view, event.onset, FLOOR_SECONDS + TURN_SECONDS) and all(
        offset + view.samples(EARLY_SECONDS) >= window for offset in over
    ):
        tally.add("pair_hold", takes_turn(view, event.onset) is False)


def _turn(view: EpisodeView, event: Event, tally: _Tally) -> None:
    _cut_ins(view, event, tally)
    if _seen(view, event.offset, RESPONSE_SECONDS):
        expect = event.expected("responds")
        limit = min(view.next_user_turn(event.offset), event.offset + view.samples(RESPONSE_SECONDS))
        early = cut_in(view, event)
        response = find_response(view, event.offset, limit, () if expect is None else expect.content)
        if early is not None:
            tally.time("fto_s", event, view.seconds(early.onset - event.offset))
        elif response is not None and response.real:
            tally.time("fto_s", event, response.offset_s)
        answered = early is None and response is not None and response.real
        tally.add("turn_response", answered)
        # An offset alone would call an agent that stops cutting in slower: here early is as bad as never.
        tally.time("latency_s", event, response.offset_s if response is not None and answered else RESPONSE_SECONDS)
    if _seen(view, event.offset, FLOOR_SECONDS + TURN_SECONDS):
        tally.add("pair_reply", takes_turn(view, event.offset) is True)


def _cut_ins(view: EpisodeView, event: Event, tally: _Tally) -> None:
    end = event.offset + view.samples(EARLY_SECONDS)
    tally.add("cut_in", sum(event.onset <= turn.onset < end for turn in view.turns))


def _monologue(view: EpisodeView, event: Event, tally: _Tally) -> None:
    _cut_ins(view, event, tally)
    heard = listening(view, event)
    tally.add("bc_takeover", heard.takeovers)
    tally.add("bc_per_minute", len(heard.given), heard.length / 60.0)
    if not heard.wanted:
        return
    blindly = random_hits(len(heard.given), heard.wanted, heard.length)
    tally.add("bc_f1", 2.0 * heard.hits, heard.judged)
    tally.add("bc_random_f1", 2.0 * blindly, heard.judged)
    tally.add("bc_control_f1", 2.0 * heard.blind, heard.judged)
    tally.add("bc_above_control", 2.0 * (heard.hits - heard.blind), heard.judged)
    tally.add("bc_precision", heard.hits, len(heard.given) + heard.takeovers)
    tally.add("bc_control_precision", heard.blind, len(heard.given) + heard.takeovers)
    tally.add("bc_recall", heard.hits, len(heard.wanted))
    tally.add("bc_control_recall", heard.blind, len(heard.wanted))
    for given, wanted in matches(heard.given, heard.wanted):
        tally.time("delay_s", event, given - wanted)


def _barge_in(view: EpisodeView, event: Event, tally: _Tally) -> None:
    if _seen(view, event.onset, STOP_SECONDS):
        tally.add("pair_yield", falls_silent(view, event.onset) is True)
    latency = stop_latency(view, event)
    sem = event.anchors.get("sem", event.onset)
    if latency is None or not (_seen(view, sem, CENSOR_SECONDS) and _seen(view, event.offset, RESPONSE_SECONDS)):
        return
    stopped = latency <= STOP_ZERO_SECONDS
    tally.add("stopped", stopped)
    over = np.clip(view.agent_activity, event.onset, event.offset)
    tally.add("over_talk_ms", 1000.0 * view.seconds(_spoken(over)))
    tally.time("stop_latency_s", event, min(latency, CENSOR_SECONDS))
    tally.time("stop_onset_s", event, min(latency, CENSOR_SECONDS) + view.seconds(sem - event.onset))
    next_turn = view.next_user_turn(event.offset)
    if event.type == "C3":
        quiet = min(next_turn, event.offset + view.samples(QUIET_SECONDS))
        begun = event.offset + view.samples(EARLY_SECONDS)
        tally.add("obeyed", stopped and not any(begun <= turn.onset < quiet for turn in view.turns))
        return
    expect = event.expected("responds")
    limit = min(next_turn, event.offset + view.samples(RESPONSE_SECONDS))
    response = find_response(view, event.offset, limit, () if expect is None else expect.content)
    real = response is not None and response.real
    tally.add("answered", stopped and real)
    tally.time("answer_s", event, response.offset_s if response is not None and real else RESPONSE_SECONDS)


def _continue(view: EpisodeView, event: Event, unheard: Mapping[str, Any] | None, tally: _Tally) -> None:
    end = heard_until(view, event)
    if view.end >= end and view.utterance_at(event.onset) is not None:
        gap = view.longest_silence(event.onset, end)
        tally.add("false_stop", gap > GAP_SECONDS)
        if event.type == "D1":
            tally.add("false_stop_bc", gap > GAP_SECONDS)
        if unheard is not None and event.id in unheard["events"]:
            anyway = view.seconds(longest_silence(unheard["agent"], event.onset, end)) > GAP_SECONDS
            tally.add("false_stop_twin", anyway)
            tally.add("false_stop_rate", float(gap > GAP_SECONDS) - float(anyway))
        tally.time("gap_s", event, gap)
    if event.type == "D1" and _seen(view, event.onset, STOP_SECONDS):
        tally.add("pair_persist", falls_silent(view, event.onset) is False)


def _verdicts(judged: Callable[[Reward, Event], Verdict], event: Event, tally: _Tally) -> None:
    """What the rewards for the rarer events know: a share, or a time, of what they judge."""
    if resume.applies(event) and (said := judged(resume, event)).value is not None:
        tally.add("resumed", said.raw.get("resumed_s", math.inf) <= RESUMED_SECONDS)
    if collision.applies(event) and (said := judged(collision, event)).value is not None:
        tally.time("collision_s", event, said.raw["overlap_s"])
    if ignore.applies(event) and (said := judged(ignore, event)).value is not None:
        tally.add("ignored", said.raw["turns"] == 0)
    if proactivity.applies(event) and event.expected("silent") is None:
        said = judged(proactivity, event)
        if said.value is not None:
            tally.add("spoke_up", said.value > 0.0 and not said.raw["false_alarms"])
            if "offset_s" in said.raw:
                tally.time("up_s", event, said.raw["offset_s"])
    if refusal.applies(event) and (said := judged(refusal, event)).value is not None:
        if said.raw["must"]:
            tally.add("declined", said.value > 0.0)
        else:
            tally.add("over_refused", said.raw["declined"])


def _false_starts(view: EpisodeView) -> int:
    """Agent turns that nothing called for."""
    idle, silence = view.samples(IDLE_SECONDS), view.samples(OWN_SILENCE_SECONDS)
    busy = [(event.onset, max(event.offset, event.anchors.get("due", 0)) + idle) for event in view.events]
    ends = [offset for _, offset in view.agent_activity]
    return sum(
        not any(on <= turn.onset < off for on, off in busy)
        and not any(turn.onset - silence < end <= turn.onset for end in ends)
        for turn in view.turns
    )


def _self_interruptions(view: EpisodeView) -> int:
    """Turns that the agent breaks off and goes on with, without cause; its own echo (D8) is none."""
    before, longest = view.samples(HEARD_SECONDS), view.samples(OWN_SILENCE_SECONDS)
    sounds = [(on, off) for on, off in view.user_activity.tolist()]
    sounds += [(event.onset, event.offset) for event in view.events if event.type != "D8"]
    return sum(
        broken.takes_floor
        and after.onset - broken.offset <= longest
        and not any(on < after.onset and off > broken.offset - before for on, off in sounds)
        for broken, after in pairwise(view.utterances)
    )


def _underrun_ms(episode: Episode) -> float | None:
    """What the user did not hear of the agent because it came late; None where nothing could come late."""
    if "latency_ledger" in episode.meta:  # of a live server, measured
        return 1000.0 * episode.clock.seconds(episode.meta["latency_ledger"]["starved_frames"] * episode.clock.frame)
    simulated = episode.meta.get("acoustics", {}).get("underrun")
    return None if simulated is None else 1000.0 * simulated["missed"] * episode.clock.seconds(episode.samples)


def _spoken(segments: np.ndarray) -> int:
    """Samples that segments (n, 2) cover, overlaps counted once."""
    total, last = 0, 0
    for on, off in sorted(segments.tolist()):
        total += max(0, off - max(on, last))
        last = max(last, off)
    return total


def _quality(view: EpisodeView, event: Event, tally: _Tally) -> None:
    if not view.has_text or not _seen(view, event.offset, RESPONSE_SECONDS):
        return
    graded = answer(view, event)
    if graded.hit is not None:
        tally.add("content_hit", graded.hit)
    if graded.similarity is not None:
        tally.add("similarity", graded.similarity)
