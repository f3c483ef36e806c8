"""Lhotse manifests: `*recordings*.jsonl[.gz]` and, for who speaks when, `*supervisions*.jsonl[.gz]` beside it.

Read as JSON, so that lhotse need not be installed. A supervision with a word alignment gives its words; one without
gives its whole span, pauses included: where supervisions are whole turns, measure on the audio instead
(`--activity energy`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from envs.corpora.files import relative
from envs.corpora.recording import Recording, Refusal, Span, Track
from envs.corpora.text import read_json_lines
from envs.corpora.words import SpokenWord
from envs.errors import UptakeError


def manifests(root: Path) -> list[Path]:
    """The manifests of recordings in a folder."""
    return sorted(p for p in root.glob("*recordings*") if p.is_file() and p.name.endswith((".jsonl", ".jsonl.gz")))


def find(root: Path) -> Iterator[Recording | Refusal]:
    """Every recording of every manifest in the folder.

    Raises:
        UptakeError: a manifest cannot be read, or a line of it is no recording or no supervision.
    """
    for manifest in manifests(root):
        beside = manifest.with_name(manifest.name.replace("recordings", "supervisions"))
        said = _supervisions(beside) if beside.is_file() else {}
        for number, record in read_json_lines(manifest):
            try:
                yield _recording(record, root, said, beside)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UptakeError(f"{manifest}:{number}: not a recording of lhotse ({error!r})") from error


def _recording(
    record: Mapping[str, Any], root: Path, said: Mapping[str, list[Span]], beside: Path
) -> Recording | Refusal:
    name, tracks = str(record["id"]), {}
    for source in record["sources"]:
        if source["type"] != "file":
            return Refusal(name, "source_type", f"its audio is of type {source['type']!r}, not a file")
        path = relative(root / source["source"], root)  # an absolute source stays one
        for place, channel in enumerate(source["channels"]):
            tracks[int(channel)] = Track(path, place if len(source["channels"]) > 1 else None)
    if len(tracks) != 2:
        return Refusal(name, "mono" if len(tracks) < 2 else "channels", f"{len(tracks)} channels in its sources")
    order = sorted(tracks)
    both = (tracks[order[0]], tracks[order[1]])
    spans = [span._replace(channel=order.index(span.channel)) for span in said.get(name, ()) if span.channel in order]
    people = [next((span.speaker for span in spans if span.channel == side), str(side)) for side in (0, 1)]
    if name not in said:
        return Recording(name, both, (people[0], people[1]))
    return Recording(name, both, (people[0], people[1]), partial(_given, spans), "supervisions", (str(beside),))


def spoken(root: Path) -> dict[str, list[SpokenWord]]:
    """Recording -> its aligned words, of the recordings whose supervisions all have a word alignment.

    Raises:
        UptakeError: as `find`.
    """
    found: dict[str, list[SpokenWord]] = {}
    for manifest in manifests(root):
        beside = manifest.with_name(manifest.name.replace("recordings", "supervisions"))
        if not beside.is_file():
            continue
        order = {
            str(record["id"]): sorted(int(channel) for source in record["sources"] for channel in source["channels"])
            for _, record in read_json_lines(manifest)
        }
        without = set()
        for number, record in read_json_lines(beside):
            name = str(record.get("recording_id"))
            if name not in order:
                continue
            try:
                channel = record["channel"]
                side = order[name].index(int(channel[0] if isinstance(channel, list) else channel))
                alignment = (record.get("alignment") or {}).get("word")
                if alignment is None:
                    without.add(name)
                    continue
                own = [SpokenWord(str(w[0]), float(w[1]), float(w[1]) + float(w[2]), channel=side) for w in alignment]
                found.setdefault(name, []).extend(word for word in own if word.text.strip())
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise UptakeError(f"{beside}:{number}: not a supervision of lhotse ({error!r})") from error
        for name in without:
            found.pop(name, None)
    return {name: sorted(said, key=lambda word: word.onset) for name, said in found.items()}


def _given(spans: list[Span]) -> list[Span]:
    return spans


def _supervisions(path: Path) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for number, record in read_json_lines(path):
        try:
            channel = record["channel"]
            channel = channel[0] if isinstance(channel, list) else channel
            speaker = str(record.get("speaker") or channel)
            words = (record.get("alignment") or {}).get("word")
            spans = (
                [(w[1], w[1] + w[2]) for w in words]
                if words
                else [(record["start"], record["start"] + record["duration"])]
            )
            found[str(record["recording_id"])] += [Span(float(a), float(b), speaker, int(channel)) for a, b in spans]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UptakeError(f"{path}:{number}: not a supervision of lhotse ({error!r})") from error
    return found
