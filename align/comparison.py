"""Compare two evaluations of the same conversations: differences, paired intervals, verdicts, as JSON for tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.evaluation import VERSION, Evaluation
from envs.errors import UptakeError
from envs.event import EVENT_TYPES
from rewards.aggregate import by_type
from rewards.bootstrap import Comparison, bootstrap, paired_bootstrap
from rewards.measures import MEASURES, TIMINGS, Measure

LABELS: Mapping[str, str] = {
    "paired_score": "paired score",
    "duplex_score": "duplex score, six abilities",
    "pause_takeover": "pause takeover",
    "pause_takeover_short": "– pauses below 0.7 s",
    "pause_takeover_long": "– pauses from 0.7 s on",
    "turn_response": "turn response",
    "fto_p10_s": "floor-transfer offset p10",
    "fto_p50_s": "floor-transfer offset p50",
    "fto_p90_s": "floor-transfer offset p90",
    "fto_human_s": "– distance from human offsets",
    "latency_p50_s": "answer latency p50",
    "cut_in": "cut-ins",
    "bc_f1": "backchannel F1",
    "bc_random_f1": "– random control",
    "bc_control_f1": "– best blind control",
    "bc_above_control": "– above that control",
    "bc_precision": "backchannel precision",
    "bc_control_precision": "– best blind control, precision",
    "bc_recall": "backchannel recall",
    "bc_control_recall": "– best blind control, recall",
    "bc_per_minute": "backchannels a minute",
    "bc_takeover": "monologue takeovers",
    "stopped": "stops when interrupted",
    "stop_latency_p50_s": "stop latency p50",
    "stop_onset_p50_s": "– from the barge-in's onset",
    "over_talk_ms": "talks over a barge-in, ms",
    "answered": "interruption answered",
    "obeyed": "stop command obeyed",
    "false_stop": "false stops",
    "false_stop_bc": "– at user backchannels",
    "false_stop_twin": "– of its twin without the sound",
    "false_stop_rate": "– above that twin",
    "resumed": "– speaks again after one",
    "collision_p50_s": "collision resolved p50",
    "ignored": "noise and asides ignored",
    "spoke_up": "spoke up when due",
    "false_start": "uncalled turns a minute",
    "self_interrupt": "breaks in its own turn a minute",
    "underrun_ms": "late and unheard, ms a minute",
    "declined": "declined what must be",
    "over_refused": "declined what is harmless",
    "content_hit": "quality: expected content",
    "similarity": "quality: similarity",
    "repetition": "repetition",
    "talk_ratio": "talk ratio",
    "overlap_ratio": "overlap ratio",
    "silence_ratio": "silence ratio",
}
"""What tables call a measure; `rewards.measures.MEASURES` says what it is."""
HEADLINE = (
    "paired_score", "pause_takeover", "turn_response", "latency_p50_s", "bc_f1", "stopped", "answered", "false_stop",
)  # fmt: skip


CONSTANT = ("silent", "always_talking", "always_backchannel", "metronome")
"""Scripted agents that do the same whatever they hear: no score that is worth anything ranks one above a policy."""


def compare(
    before: Evaluation,
    after: Evaluation,
    scripted: Sequence[Evaluation] = (),
    *,
    run: Mapping[str, Any],
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Before against after, with paired 95 % intervals, and the scripted agents beside them.

    Returns:
        JSON: `run`, `rows` (one a measure), `systems` (one a scripted agent), `ranking`, `conversations`, `timing`.

    Raises:
        UptakeError: the evaluations are not of the same conversations.
    """
    for other in (after, *scripted):
        for what in ("split", "variants", "frames", "seed", "pack_hash", "acoustics"):
            if getattr(other, what) != getattr(before, what):
                raise UptakeError(
                    f"'{before.name}' and '{other.name}' cannot be compared: {what} is {getattr(before, what)} and "
                    f"{getattr(other, what)}; measure both alike"
                )
    compared = paired_bootstrap(before.units, after.units, resamples, seed)
    return {
        "version": VERSION,
        "run": {
            **run, "pack": before.pack, "pack_hash": before.pack_hash, "split": before.split,
            "scenarios": len(before.scenarios), "texts": len(before.units), "variants": before.variants,
            "episodes": before.episodes,
            "frames": before.frames, "evaluation_seed": before.seed, "resamples": resamples,
            "acoustics": before.acoustics,
        },
        "rows": [_row(name, found) for name, found in compared.items() if name in LABELS],
        "systems": [
            {
                "name": one.name,
                "label": one.name.replace("_", " "),
                "values": {name: plain(value) for name, value in one.figures().items()},
            }
            for one in scripted
        ],
        "ranking": ranking(before, after, scripted),
        "conversations": [
            {"scenario": e.key[0], "variant": e.key[1], "folder": e.folder, "title": e.title} for e in before.examples
        ],
        "timing": {one.name: round(one.seconds, 2) for one in (before, after, *scripted)},
    }  # fmt: skip


def ranking(before: Evaluation, after: Evaluation, scripted: Sequence[Evaluation]) -> dict[str, Any]:
    """Whether the paired score puts the scripted agents where they belong.

    Returns:
        JSON: `scores` (name -> paired score), `constant_below` (every agent of `CONSTANT` that was measured is below
        both checkpoints), `oracle_above` (the oracle is above both). None where there is nothing to compare.
    """
    scores = {one.name: plain(one.figures()["paired_score"]) for one in (before, after, *scripted)}
    known = {name: score for name, score in scores.items() if score is not None}
    pair = [known[one.name] for one in (before, after) if one.name in known]
    constant = [known[name] for name in CONSTANT if name in known]
    oracle = known.get("oracle")
    return {
        "measure": "paired_score",
        "scores": scores,
        "constant_below": max(constant) < min(pair) if constant and pair else None,
        "oracle_above": oracle > max(pair) if oracle is not None and pair else None,
    }


def single(evaluation: Evaluation, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """One evaluation's figures with their intervals, as JSON."""
    found = bootstrap(evaluation.units, resamples, seed)
    return {
        "version": VERSION,
        "name": evaluation.name,
        "split": evaluation.split,
        "pack": evaluation.pack,
        "pack_hash": evaluation.pack_hash,
        "variants": evaluation.variants,
        "frames": evaluation.frames,
        "seed": evaluation.seed,
        "acoustics": evaluation.acoustics,
        "rows": [
            {
                "measure": name,
                "label": LABELS[name],
                "unit": unit_of(name),
                "value": plain(one.estimate),
                "low": plain(one.low),
                "high": plain(one.high),
            }
            for name, one in found.items()
            if name in LABELS
        ],
        "by_type": [
            {"type": kind, "event": EVENT_TYPES[kind], "timing": name, "text": TIMINGS[name], **quantiles}
            for (kind, name), quantiles in by_type(
                [one for rows in evaluation.scenarios.values() for one in rows]
            ).items()
        ],
    }


def unit_of(name: str) -> str:
    """How a measure is printed: `%`, `s`, or as a bare number."""
    return unit_of_measure(MEASURES[name])


def unit_of_measure(measure: Measure) -> str:
    """How a measure is printed: `%`, `s`, or as a bare number."""
    return {"share": "%", "s": "s"}.get(measure.unit, "")


def _row(name: str, found: Comparison) -> dict[str, Any]:
    verdict = {"unclear": "unchanged", "moved": "moved"}.get(found.verdict, found.verdict)
    delta = plain(found.difference.estimate)
    return {
        "measure": name,
        "label": LABELS[name],
        "text": MEASURES[name].text,
        "unit": unit_of(name),
        "better": {1: "higher", -1: "lower", 0: ""}[MEASURES[name].better],
        "headline": name in HEADLINE,
        "before": plain(found.before.estimate),
        "after": plain(found.after.estimate),
        "delta": delta,
        "low": plain(found.difference.low),
        "high": plain(found.difference.high),
        "verdict": verdict if delta is not None else "",
        "n": found.cases,
    }


def plain(value: float) -> float | None:
    """A figure as JSON has it: None for what does not apply."""
    return float(value) if math.isfinite(value) else None
