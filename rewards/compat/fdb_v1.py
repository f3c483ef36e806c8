"""Full-Duplex-Bench version 1, timing: takeover rates, latencies, backchannel rate and its Jensen-Shannon distance.

Source: arXiv 2503.04721 and the scripts `eval_pause_handling`, `eval_smooth_turn_taking`, `eval_user_interruption` and
`eval_backchannel` of DanielLin94144/Full-Duplex-Bench (snapshot d7336bd), which differ from the paper. The relevance
score of interruptions needs a chat model and is not here.

The reference of the Jensen-Shannon distance is the listeners' of the ICC corpus, which may not be redistributed;
folders of the benchmark bring it along (`meta["fdb_listeners"]`). On our monologues it is their own opportunities: a
backchannel counts as likely anywhere within 1 s of one, as in the F1 of arXiv 2606.11167. So those distances cannot be
compared with published ones; agents on the same monologues can.

The paper lets fewer than two words pass for a backchannel, the code two or three. The published script divides by zero
when no turn is taken at all; here that latency has no value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.spatial.distance import jensenshannon

from rewards.compat.controls import metronome, random_placements
from rewards.compat.evaluator import Evaluator
from rewards.compat.fdb_items import Item, find_items
from rewards.compat.heard import Heard, Said, Span
from rewards.matching import MATCH_SECONDS
from rewards.measures import Measure
from rewards.timing import EARLY_SECONDS

TURN_SECONDS = 1.0
"""Speech at least this long is a turn."""
TURN_WORDS = 3
"""And so is more than this many words."""
BACKCHANNEL_WORDS = 2
LONG_SECONDS = 3.0
"""A stretch longer than this is formal speech: the backchannel script stops there."""
BIN_SECONDS = 0.2
EPSILON = 1e-10
SILERO_GAP_SECONDS, SILERO_SHORTEST_SECONDS = 0.1, 0.25
"""Silero's defaults: the shortest silence that splits, the shortest speech."""
READ_AS_RATE = 16_000
"""The rate that the backchannel script takes every file to have."""
STRETCH_GAP_SECONDS = 0.5
"""With `whole_output_span` off, words further apart than this belong to two stretches (the gap of v1.5's script)."""

BUGS: Mapping[str, str] = {
    "whole_output_span": "the turn spans first to last word of the whole output: two 'mm's far apart are a takeover",
    "anywhere_in_the_clip": "speech counts wherever it falls, not only in the pause or after the turn",
    "three_words_pass": "3 words in less than 1 s take no turn, where the backchannel task allows 2; off: 2 everywhere",
    "early_is_instant": "an answer before the end of the turn has latency 0, better than any real answer",
    "cropped_interruption": "the output is cropped at the interruption's end: never stopping is an instant answer",
    "last_segment_wins": "the takeover of a backchannel item is that of its last stretch",
    "stops_at_long_speech": "backchannels after a stretch of more than 3 s are not counted",
    "any_short_speech": "every stretch of up to 3 s is a backchannel for rate and distance, whatever it says",
    "not_resampled": "the file is taken for 16 kHz: at 24 kHz every time is 1.5 times too long (fixed upstream later)",
    "rounded_times": "stretches of speech are rounded to 0.1 s",
    "root_of_divergence": "the distance, the root of the divergence, is reported as the divergence",
    "silence_scores_one": "no backchannel scores 1, beyond the 0.83 that is the maximum of all others",
}

FIGURES: Mapping[str, Measure] = {
    "pause_tor": Measure(-1, "share", "takeover rate, pauses"),
    "turn_tor": Measure(1, "share", "takeover rate, ends of turns"),
    "turn_latency": Measure(-1, "s", "mean latency of the turns that were taken"),
    "backchannel_tor": Measure(-1, "share", "takeover rate, monologues"),
    "backchannel_rate": Measure(1, "1/s", "backchannels a second"),
    "backchannel_jsd": Measure(-1, "", "Jensen-Shannon distance to the listeners' backchannels"),
    "backchannel_jsd_random": Measure(0, "", "control: the same stretches at random times"),
    "backchannel_jsd_metronome": Measure(0, "", "control: the same stretches evenly spaced"),
    "interruption_tor": Measure(1, "share", "takeover rate, interruptions"),
    "interruption_latency": Measure(-1, "s", "mean latency of the interruptions that were answered"),
}


def takes_turn(words: Sequence[Said], most: int = TURN_WORDS) -> bool:
    """Whether words are a takeover: any, unless they span less than 1 s and are at most `most`."""
    if not words:
        return False
    return words[-1].offset - words[0].onset >= TURN_SECONDS or len(words) > most


def stretches(words: Sequence[Said]) -> list[list[Said]]:
    """Words grouped at gaps of more than 0.5 s."""
    found: list[list[Said]] = []
    for word in words:
        if found and word.onset - found[-1][-1].offset <= STRETCH_GAP_SECONDS:
            found[-1].append(word)
        else:
            found.append([word])
    return found


def measure(heard: Heard, bugs: Collection[str]) -> dict[str, tuple[float, float]]:
    """Contributions of one episode."""
    tally = dict.fromkeys(FIGURES, (0.0, 0.0))

    def add(name: str, value: float) -> None:
        tally[name] = (tally[name][0] + value, tally[name][1] + 1.0)

    for item in find_items(heard):
        part = heard.part(item.start, item.stop)
        if item.task == "backchannel":
            for name, value in _backchannel(part, item, bugs).items():
                add(name, value)
            continue
        onset = _taken(part, item, bugs)
        name = {"pause_handling": "pause", "smooth_turn_taking": "turn", "user_interruption": "interruption"}[item.task]
        add(f"{name}_tor", onset is not None)
        if onset is not None and name != "pause":
            latency = onset - part.at(item.event.offset)
            add(f"{name}_latency", max(0.0, latency) if "early_is_instant" in bugs else latency)
    return tally


def _taken(part: Heard, item: Item, bugs: Collection[str]) -> float | None:
    """Onset of the first word of the takeover, or None."""
    most = TURN_WORDS if "three_words_pass" in bugs else BACKCHANNEL_WORDS
    return next((group[0].onset for group in _groups(part, item, bugs) if takes_turn(group, most)), None)


def _groups(part: Heard, item: Item, bugs: Collection[str]) -> list[list[Said]]:
    """The words that count, in the groups that are judged as one."""
    over = part.at(item.event.offset)
    words = list(part.words)
    if item.task == "user_interruption" and "cropped_interruption" in bugs:
        groups = stretches([word for word in words if word.onset >= over])
    else:
        groups = stretches(words)
        if item.task == "pause_handling" and "anywhere_in_the_clip" not in bugs:
            pauses = [Span(part.at(pause.onset), part.at(pause.offset)) for pause in item.marks]
            groups = [g for g in groups if any(g[0].onset < p.offset and g[-1].offset > p.onset for p in pauses)]
        elif item.task == "user_interruption" or (
            item.task == "smooth_turn_taking" and "anywhere_in_the_clip" not in bugs
        ):
            groups = [g for g in groups if g[0].onset >= over + EARLY_SECONDS]
    return [[word for group in groups for word in group]] if "whole_output_span" in bugs and groups else groups


def _backchannel(part: Heard, item: Item, bugs: Collection[str]) -> dict[str, float]:
    takeover, given = judge_stretches(_speech(part, bugs), part.words, bugs)
    found = {"backchannel_tor": float(takeover), "backchannel_rate": len(given) / part.seconds}
    wanted = [part.at(at) for name, at in sorted(item.event.anchors.items()) if name.startswith("bc")]
    known = part.episode.meta.get("fdb_listeners")
    if known is None and not wanted:
        return found
    reference = np.asarray(known, float) if known is not None else listeners(wanted, part.seconds)

    def mean(placements: Sequence[Sequence[Span]]) -> float:
        return float(np.mean([distance(placed, reference, part.seconds, bugs) for placed in placements]))

    return found | {
        "backchannel_jsd": distance(given, reference, part.seconds, bugs),
        "backchannel_jsd_random": mean(random_placements(given, part.seconds)),
        "backchannel_jsd_metronome": mean(metronome(given, part.seconds)),
    }


def _speech(part: Heard, bugs: Collection[str]) -> list[Span]:
    slow = part.episode.clock.sample_rate / READ_AS_RATE if "not_resampled" in bugs else 1.0
    spans = part.agent(SILERO_GAP_SECONDS / slow, SILERO_SHORTEST_SECONDS / slow)
    digits = 1 if "rounded_times" in bugs else 6
    return [Span(round(span.onset * slow, digits), round(span.offset * slow, digits)) for span in spans]


def judge_stretches(
    speech: Sequence[Span], words: Sequence[Said], bugs: Collection[str]
) -> tuple[bool, tuple[Span, ...]]:
    """Whether a backchannel item was taken over, and the stretches that count as backchannels."""
    verdicts: list[bool] = []
    given: list[Span] = []
    for span in speech:
        if span.seconds > LONG_SECONDS:
            if "stops_at_long_speech" in bugs:
                return True, tuple(given)
            verdicts.append(True)
            continue
        said = sum(word.onset <= span.offset and word.offset > span.onset for word in words)
        verdicts.append(span.seconds >= TURN_SECONDS or said > BACKCHANNEL_WORDS)
        if "any_short_speech" in bugs or not verdicts[-1]:
            given.append(span)
    long = any(span.seconds > LONG_SECONDS for span in speech)
    takeover = bool(verdicts) and (verdicts[-1] or long if "last_segment_wins" in bugs else any(verdicts))
    return takeover, tuple(given)


def listeners(wanted: Sequence[float], seconds: float) -> np.ndarray:
    """The reference (bins,): how likely a listener backchannels in each 0.2 s, sums to 1."""
    return histogram([Span(max(0.0, at - MATCH_SECONDS), at + MATCH_SECONDS) for at in wanted], seconds)


def histogram(spans: Sequence[Span], seconds: float) -> np.ndarray:
    """(bins,) share of the stretches in each 0.2 s; a stretch counts in the first and last bin that it touches."""
    bins = np.zeros(int(seconds / BIN_SECONDS + 1e-9) + 1)
    for span in spans:
        bins[int(span.onset / BIN_SECONDS + 1e-9) : int(span.offset / BIN_SECONDS + 1e-9) + 1] += 1.0
    bins += EPSILON
    return bins / bins.sum()


def distance(given: Sequence[Span], reference: np.ndarray, seconds: float, bugs: Collection[str]) -> float:
    """Jensen-Shannon distance (nats) of backchannels to the reference, which is stretched to their bins.

    Stretches that `not_resampled` moves beyond the end are left out; the script fails there.
    """
    given = [span for span in given if span.onset < seconds]
    if not given:
        if "silence_scores_one" in bugs:
            return 1.0
        return float(np.sqrt(np.log(2.0))) if "root_of_divergence" in bugs else float(np.log(2.0))
    bins = histogram(given, seconds)
    stretched = np.interp(np.linspace(0.0, 1.0, bins.size), np.linspace(0.0, 1.0, reference.size), reference)
    root = float(jensenshannon(bins, stretched))
    return root if "root_of_divergence" in bugs else root * root


FDB_V1 = Evaluator(
    name="fdb_v1",
    source="Full-Duplex-Bench v1, arXiv 2503.04721, DanielLin94144/Full-Duplex-Bench d7336bd",
    figures=FIGURES,
    bugs=BUGS,
    measure=measure,
    counts_words=True,
)
