"""Episodes as folders of Full-Duplex-Bench, and such folders as episodes.

    v1.0/pause_handling/0/          input.wav output.wav output.json transcription.json pause.json
    v1.0/smooth_turn_taking/0/      ... turn_taking.json
    v1.0/backchannel/0/             ... opportunities.json
    v1.0/user_interruption/0/       ... interrupt.json
    v1.0/icc_gt_distribution.json   how likely a listener backchannels, by item of `backchannel`
    v1.5/user_backchannel/0/        input.wav output.wav output.json metadata.json

Source of the layout: the data set's README and the scripts of DanielLin94144/Full-Duplex-Bench (d7336bd). Two files are
not from there: `opportunities.json`, from which our reader knows where a listener would backchannel, and a
`icc_gt_distribution.json` of our own monologues. `output.json` holds the agent's own text with its times; run the
benchmark's speech recognition to replace it. `clean_input.wav`, which v1.5 wants for its acoustic comparison and not
for its timing, needs a conversation without the event and is not written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from envs.clock import CLOCK
from envs.episode import Episode, to_pcm16
from envs.errors import UptakeError
from envs.event import Event, Word
from rewards.compat.fdb_items import OVERLAPS, TASKS, Item, find_items
from rewards.compat.fdb_v1 import listeners
from rewards.compat.heard import Heard
from rewards.view import is_user_turn

ANNOTATIONS = {
    "pause_handling": "pause.json",
    "smooth_turn_taking": "turn_taking.json",
    "backchannel": "opportunities.json",
    "user_interruption": "interrupt.json",
}
REFERENCE = "icc_gt_distribution.json"
_TYPES = {"user_interruption": "C1", "user_backchannel": "D1", "talking_to_other": "D5", "background_speech": "D6"}


def export_episodes(episodes: Iterable[tuple[Episode, Sequence[Word] | None]], root: Path, rate: int) -> dict[str, int]:
    """Write every item of every episode.

    Args:
        episodes: with the words to write in place of the agent's own, if any.
        root: a folder that does not exist or is empty.
        rate: of the files, Hz. At 16,000 the benchmark's scripts agree before and after the fix of their sample rate;
            at the episodes' own rate nothing is resampled and our figures stay the same to the last digit.

    Returns:
        Items by `VERSION/TASK`.

    Raises:
        UptakeError: the folder has something in it.
    """
    if root.is_dir() and any(root.iterdir()):
        raise UptakeError(f"{root} is not empty; give a new folder")
    counts: dict[str, int] = {}
    reference: dict[str, list[float]] = {}

    def folder(version: str, task: str) -> Path:
        number = counts.get(f"{version}/{task}", 0)
        counts[f"{version}/{task}"] = number + 1
        return root / version / task / str(number)

    for episode, transcript in episodes:
        heard = Heard(episode, transcript)
        for item in find_items(heard):
            place = folder("v1.0", item.task)
            part = heard.part(item.start, item.stop)
            _write_audio(part, place, rate)
            _write_item(part, item, place)
            if item.task == "backchannel":
                reference[place.name] = [float(v) for v in listeners(_opportunities(part, item.event), part.seconds)]
        for act in heard.acts:
            if act.type in OVERLAPS:
                place = folder("v1.5", OVERLAPS[act.type])
                before = [a for a in heard.acts if is_user_turn(a) and a.offset <= act.onset]
                after = [a.onset for a in heard.acts if is_user_turn(a) and a.onset >= act.offset]
                part = heard.part(before[-1].onset if before else 0, min(after, default=heard.end))
                _write_audio(part, place, rate)
                metadata = {
                    "context_text": before[-1].text if before else "",
                    "current_turn_text": act.text,
                    "timestamps": _times(part, act),
                }
                _write(place / "metadata.json", metadata)
    if reference:
        _write(root / "v1.0" / REFERENCE, reference)
    return counts


def read_folders(root: Path) -> list[Episode]:
    """The items below a folder as episodes, each with its one task in `meta["fdb_task"]`.

    Reads what `export_episodes` writes and the data set itself with a system's `output.wav` beside each `input.wav`;
    folders named after the data set's parts (`candor_turn_taking`, ...) are known too. The listeners of backchannel
    items are read from the scripts' `icc_gt_distribution.json` if it lies in the folder above the task's, or in `root`.
    What an item does not say is not made up: without `output.json` there are no words, and without the listeners no
    distance to them.

    Raises:
        UptakeError: no item in the folder, a folder that names no task, or a file that is missing or malformed.
    """
    places = sorted(path.parent for path in root.rglob("input.wav") if (path.parent / "output.wav").is_file())
    if not places:
        raise UptakeError(f"{root}: no folder below it has an input.wav and an output.wav; nothing to read")
    places.sort(key=lambda place: (place.parent, int(place.name) if place.name.isdigit() else 0, place.name))
    listeners_of = {path.parent: _read_reference(path) for path in root.rglob(REFERENCE)}
    return [_read_item(place, listeners_of.get(place.parent.parent, listeners_of.get(root, {}))) for place in places]


def _write_item(part: Heard, item: Item, place: Path) -> None:
    words = [word for act in part.acts for word in act.words if word.onset < part.end]
    chunks = [{"text": word.text, "timestamp": _times(part, word)} for word in words]
    _write(place / "transcription.json", {"text": " ".join(word.text for word in words), "chunks": chunks})
    event = item.event
    if item.task == "pause_handling":
        annotation = [{"text": "[PAUSE]", "timestamp": _times(part, pause)} for pause in item.marks]
    elif item.task == "smooth_turn_taking":
        over = part.at(event.offset)
        annotation = [{"text": event.text, "timestamp": [over, over]}]
    elif item.task == "backchannel":
        annotation = [{"text": "", "timestamp": [at, at]} for at in _opportunities(part, event)]
    else:
        before = [act.text for act in part.acts if act.offset <= event.onset]
        told = {"context": " ".join(before), "interrupt": event.text}
        annotation = [{**told, "timestamp": _times(part, event)}]
    _write(place / ANNOTATIONS[item.task], annotation)


def _write_audio(part: Heard, place: Path, rate: int) -> None:
    place.mkdir(parents=True)
    own = part.episode.clock.sample_rate
    for name, track in (("input", part.episode.mic), ("output", part.episode.agent)):
        audio = track[part.start : part.end]
        pcm = to_pcm16(audio if rate == own else soxr.resample(audio, own, rate))
        soundfile.write(place / f"{name}.wav", pcm, rate, subtype="PCM_16")
    chunks = [{"text": word.text, "timestamp": [word.onset, word.offset]} for word in part.words]
    _write(place / "output.json", {"text": " ".join(word.text for word in part.words), "chunks": chunks})


def _times(part: Heard, what: Event | Word) -> list[float]:
    return [part.at(what.onset), part.at(min(what.offset, part.end))]


def _opportunities(part: Heard, event: Event) -> list[float]:
    return [part.at(at) for name, at in sorted(event.anchors.items()) if name.startswith("bc")]


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_item(place: Path, reference: Mapping[str, list[float]]) -> Episode:
    overlapping = (place / "metadata.json").is_file()
    task = _task(place, _TYPES if overlapping else TASKS)
    tracks = [_read_audio(place / f"{name}.wav") for name in ("input", "output")]
    length = max(track.size for track in tracks)
    mic, agent = (np.pad(track, (0, length - track.size)) for track in tracks)
    said = _read_words(place / "output.json") if (place / "output.json").is_file() else None
    events = _overlap(place, task) if overlapping else _events(place, task, length)
    return Episode(
        mic=mic,
        user=mic.copy(),
        agent=agent,
        events=events,
        transcript=said or (),
        meta={
            "scenario": f"{place.parent.name}/{place.name}",
            "variant": 0,
            "fdb_task": f"v1.5/{task}" if overlapping else f"v1.0/{task}",
            **({} if said is None else {"text_stream": True}),
            **({"fdb_listeners": reference[place.name]} if task == "backchannel" and place.name in reference else {}),
        },
    )


def _task(place: Path, known: Iterable[str]) -> str:
    names = {name: name for name in known} | {"turn_taking": "smooth_turn_taking"}
    found = [task for name, task in names.items() if place.parent.name.endswith(name) and task in known]
    if not found:
        raise UptakeError(
            f"{place}: '{place.parent.name}' names no task; the folder above an item is one of {list(known)}"
        )
    return found[0]


def _events(place: Path, task: str, length: int) -> list[Event]:
    spans = [
        (_sample(r["timestamp"][0]), _sample(r["timestamp"][1])) for r in _read_list(place / ANNOTATIONS[task], task)
    ]
    told = place / "transcription.json"
    words = _read_words(told) if told.is_file() else ()
    began = words[0].onset if words else 0
    if task == "pause_handling":
        turn = Event("turn", "A1", "user", min(began, spans[0][0]), length, words=words)
        return [turn, *(Event(f"turn.pause{i}", "B1", "user", on, off) for i, (on, off) in enumerate(spans))]
    if task == "smooth_turn_taking":
        over = spans[0][0]
        return [Event("turn", "A1", "user", min(began, over), over, words=tuple(w for w in words if w.offset <= over))]
    if task == "backchannel":
        return [Event("story", "B7", "user", 0, length, {f"bc{i}": on for i, (on, _) in enumerate(spans)}, words=words)]
    return [Event("interrupt", "C1", "user", *spans[0])]


def _overlap(place: Path, task: str) -> list[Event]:
    try:
        record = json.loads((place / "metadata.json").read_text(encoding="utf-8"))
        on, off = (_sample(second) for second in record["timestamps"])
        return [Event(task, _TYPES[task], "user", on, off, text=str(record["current_turn_text"]))]
    except (ValueError, KeyError, TypeError) as error:
        raise UptakeError(f"{place / 'metadata.json'}: not as the benchmark has it ({error}); restore it") from error


def _read_list(path: Path, task: str) -> list[dict[str, Any]]:
    if not path.is_file():
        if task == "backchannel":  # the data set has none
            return []
        raise UptakeError(f"{path}: no such file; an item of {task} needs it")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if not records and task != "backchannel":
            raise ValueError("it is empty")
        for record in records:
            _ = [float(second) for second in record["timestamp"][:2]][1]
        return list(records)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UptakeError(f"{path}: no list of marks with a timestamp ({error}); restore it") from error


def _read_words(path: Path) -> tuple[Word, ...]:
    try:
        chunks = json.loads(path.read_text(encoding="utf-8"))["chunks"]
        spans = [(str(chunk["text"]).strip(), *chunk["timestamp"]) for chunk in chunks]
        # A recogniser may leave the end of the last word open: it is then taken for its start, as the scripts do.
        return tuple(
            Word(text, _sample(on), _sample(on if off is None else off)) for text, on, off in spans if on is not None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UptakeError(f"{path}: no words with their times ({error}); restore it") from error


def _read_reference(path: Path) -> dict[str, list[float]]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [float(value) for value in values] for name, values in record.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UptakeError(f"{path}: no lists of numbers by item ({error}); restore it") from error


def _read_audio(path: Path) -> np.ndarray:
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UptakeError(f"{path}: cannot be decoded ({error}); restore the file") from error
    mono = audio.mean(axis=1)
    return mono if rate == CLOCK.sample_rate else soxr.resample(mono, rate, CLOCK.sample_rate)


def _sample(second: float) -> int:
    return CLOCK.nearest_sample(float(second))
