"""Reads a whole corpus and writes its segments: in parallel, resumable, every recording and candidate accounted for.

    OUT/recordings.jsonl   what was read: a line of settings, then one a recording (its units, or why it was left out)
    OUT/segments.jsonl     the segments drawn, one a line
    OUT/summary.json       counts; written last, so that it is there exactly when the other two are whole

Nothing in them depends on the number of processes, the order of reading or an interruption.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from envs.clock import CLOCK
from envs.corpora import journal
from envs.corpora.axes import AXES, PUBLISHED, REASONS, Rejections, Segment, Thresholds, find, segment
from envs.corpora.layouts import recordings
from envs.corpora.pool import spread
from envs.corpora.recording import Recording, Refusal, Rejected, Track
from envs.corpora.speech import ENERGY, UNIT_GAP_SECONDS, units
from envs.corpora.utterances import utterances
from envs.errors import UptakeError

PER_AXIS = 2000
"""Segments drawn an axis (arXiv 2606.11167: "up to 2,000 per corpus")."""
CLIPPED_SHARE = 0.001
"""A recording with a greater share of clipped samples is counted as clipped; it is used all the same."""
MAY_PASS = ("unreadable", "reader_died")
"""Reasons that lie with the machine as often as with the file: such recordings are tried again by the next run."""
ACTIVITIES = ("auto", "energy")
"""Segment files where there are any; or measured in every recording."""


def extract(
    root: Path,
    out: Path,
    *,
    layout: str | None = None,
    activity: str = "auto",
    per_axis: int = PER_AXIS,
    seed: int = 0,
    jobs: int = 1,
    thresholds: Thresholds = PUBLISHED,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Read a corpus and write its segments to `out`; returns the summary.

    A second call with the same settings goes on where the first stopped, and reads a recording again only when one of
    its files has changed.

    Args:
        root: the corpus folder.
        out: the folder to write.
        layout: one of `layouts.READERS`; None: found out.
        activity: one of `ACTIVITIES`.
        per_axis: how many segments of each axis are drawn.
        seed: of the draw.
        jobs: processes.
        thresholds: of the recipe.
        report: told how many recordings are done, of how many.

    Raises:
        UptakeError: nothing to read, other settings than those that `out` was begun with, or `out` is being written.
    """
    if activity not in ACTIVITIES:
        raise UptakeError(f"activity {activity!r} is none of {', '.join(ACTIVITIES)}")
    root = root.resolve()
    if out.exists() and (not out.is_dir() or out.resolve() == root):
        raise UptakeError(
            f"{out}: is {'the corpus itself' if out.is_dir() else 'a file'}; give another folder to write"
        )
    layout, found = recordings(root, layout)
    settings = {
        "v": 1,
        "corpus": str(root),
        "layout": layout,
        "activity": activity,
        "energy": {name: value for name, value in asdict(ENERGY).items() if name != "clock"},
        "unit_gap": UNIT_GAP_SECONDS,
        "sample_rate": CLOCK.sample_rate,
    }
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UptakeError(f"{out}: another run is writing it; wait for it or give another folder") from error
        (out / "summary.json").unlink(missing_ok=True)
        _read_all(root, out / journal.NAME, settings, found, activity == "energy", jobs, report)
        return _finish(out, per_axis, seed, thresholds)


def _read_all(
    root: Path,
    path: Path,
    settings: Mapping[str, Any],
    found: Sequence[Recording | Refusal],
    measured: bool,
    jobs: int,
    report: Callable[[int, int], None],
) -> None:
    """Write the journal: a line for every recording, in order of the corpus."""
    stamps = {one.id: _stamp(root, one) for one in found}
    done: dict[str, str] = {}  # lines as text: the units of a large corpus do not fit as objects
    if path.exists():
        known = journal.read(path)
        begun = next(known, settings)
        for name in settings:
            if begun.get(name) != settings[name]:
                raise UptakeError(
                    f"{path}: was begun with {name} {begun.get(name)!r}, not {settings[name]!r}; "
                    "give another folder, or delete it"
                )
        for record in known:
            if record.get("rejected") not in MAY_PASS and stamps.get(record["recording"]) == record["stamp"]:
                done[record["recording"]] = journal.line(record)
    waiting = [one for one in found if one.id not in done]
    report(len(done), len(found))
    begin = journal.line({"settings": settings})
    journal.replace(path, [begin, *done.values()])
    with path.open("a", encoding="utf-8") as file:
        for one, record in spread(partial(read_one, root, measured), waiting, jobs, _died):
            done[one.id] = journal.line(record | {"stamp": stamps[one.id]})
            file.write(done[one.id])
            file.flush()
            report(len(done), len(found))
    journal.replace(path, itertools.chain([begin], (done[one.id] for one in found)))


def read_one(root: Path, measured: bool, one: Recording | Refusal) -> dict[str, Any]:
    """The journal's line for one recording: its units in samples of the clock, or the reason why there are none."""
    if isinstance(one, Refusal):
        return {"recording": one.id, "rejected": one.reason, "detail": one.detail}
    try:
        both, heard = units(root, one, measured)
    except Rejected as fault:
        return {"recording": one.id, "rejected": fault.reason, "detail": fault.detail}
    return {
        "recording": one.id,
        "tracks": [list(track) for track in one.tracks],
        "speakers": list(one.speakers),
        "activity": "energy" if measured or one.spans is None else one.kind,
        "samples": heard.samples,
        "clipped": round(heard.clipped, 6),
        "units": both,
    }


def _died(one: Recording | Refusal) -> dict[str, Any]:
    return {"recording": one.id, "rejected": "reader_died", "detail": "its process died twice"}


def _stamp(root: Path, one: Recording | Refusal) -> list[list[Any]]:
    """Size and time of every file that the recording is read from; what is missing has neither."""
    if isinstance(one, Refusal):
        return [[one.reason, one.detail]]
    stamps: list[list[Any]] = []
    for name in dict.fromkeys([*(track.path for track in one.tracks), *one.files]):
        try:
            status = os.stat(root / name)
            stamps.append([status.st_size, status.st_mtime_ns])
        except OSError:
            stamps.append([-1, -1])
    return stamps


def _finish(out: Path, per_axis: int, seed: int, thresholds: Thresholds) -> dict[str, Any]:
    """Find the segments in what was read, draw, write them and the summary."""
    drawn: dict[str, list[tuple[int, int, Segment]]] = {axis: [] for axis in AXES}  # heaps, the greatest key on top
    accepted, left_out, activities = Counter[str](), Counter[str](), Counter[str]()
    rejected = Rejections()
    boundary = CLOCK.nearest_sample(thresholds.boundary)
    lines = journal.read(out / journal.NAME)
    settings = next(lines)
    samples = clipped = total = number = 0
    for line in lines:
        total += 1
        if "rejected" in line:
            left_out[line["rejected"]] += 1
            continue
        activities[line["activity"]] += 1
        samples += line["samples"]
        clipped += line["clipped"] > CLIPPED_SHARE
        patterns, reasons = find(utterances(line["units"], boundary), thresholds)
        rejected += reasons
        first, second = (Track(path, channel) for path, channel in line["tracks"])
        for pattern in patterns:
            accepted[pattern[0]] += 1
            number += 1
            one = segment(line["recording"], (first, second), tuple(line["speakers"]), pattern, thresholds)
            key = int.from_bytes(hashlib.sha256(f"{seed}:{one.id}".encode("utf-8", "surrogatepass")).digest()[:8])
            heapq.heappush(drawn[one.axis], (-key, number, one))
            if len(drawn[one.axis]) > per_axis:
                heapq.heappop(drawn[one.axis])
    chosen = [one for axis in AXES for _, _, one in sorted(drawn[axis], key=lambda entry: entry[1])]
    journal.replace(out / "segments.jsonl", (journal.line(one.to_json()) for one in chosen))
    summary = {
        **settings,
        "thresholds": {"version": thresholds.version, **asdict(thresholds)},
        "per_axis": per_axis,
        "seed": seed,
        "recordings": {
            "found": total,
            "read": total - left_out.total(),
            "hours": round(CLOCK.seconds(samples) / 3600, 4),
            "clipped": clipped,
            "activity": dict(sorted(activities.items())),
            "rejected": dict(sorted(left_out.items())),
        },
        "axes": {
            axis: {
                "candidates": accepted[axis] + sum(rejected[axis, reason] for reason in REASONS[axis]),
                "accepted": accepted[axis],
                "drawn": len(drawn[axis]),
                "minutes": round(sum(CLOCK.seconds(s.offset - s.onset) for _, _, s in drawn[axis]) / 60, 3),
                "rejected": {reason: rejected[axis, reason] for reason in REASONS[axis]},
            }
            for axis in AXES
        },
    }
    journal.replace(out / "summary.json", [json.dumps(summary, indent=1) + "\n"])
    return summary
