"""Conversations to learn from: both tracks, which of them is the agent's, and what it said when.

A source is a folder in one of the layouts (`layouts`), or a manifest: a JSON Lines file with an object a recording,

    {"path": "calls/17.wav", "words": "calls/17.json", "agent": "first"}

`path` is a two-channel file, or a list of two files, relative to the manifest. `words` is a file of word times for
both, or a list of two (`envs.corpora.words`); left out, it is the file of the same name beside the audio. `agent` is
which of the two is the agent; left out, the configuration says it. A manifest of moshi-finetune is one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.activity import active_hops, segments
from envs.clock import CLOCK
from envs.corpora import audio, lhotse, words
from envs.corpora.layouts import recordings
from envs.corpora.recording import Recording, Refusal, Rejected, Span, Track
from envs.corpora.speech import ENERGY, tracks_of
from envs.corpora.text import read_json_lines
from envs.corpora.words import SpokenWord
from envs.errors import UptakeError
from envs.event import Word

AGENTS: Mapping[str, tuple[int, ...]] = {"first": (0,), "second": (1,), "both": (0, 1)}
"""Which track is the agent's; with `both` each recording is learned from twice, once from either side."""
_LEAST_SECONDS = 1.0  # an agent that is heard for longer has said a word
_FIT = 0.5  # the least share of an agent's words that lie where its track is not silent


@dataclass(frozen=True)
class Dialogue:
    """One conversation, seen from one of its two sides."""

    recording: Recording
    agent: int
    """The agent's track: 0 or 1."""
    said: tuple[SpokenWord, ...]
    """Of both speakers, as far as they are known, in order of their onsets."""
    said_in: str
    """The file that says so."""

    @property
    def id(self) -> str:
        """The recording's name and the agent's side."""
        return f"{self.recording.id}#{self.agent}"


def find(source: Path, layout: str | None = None, agent: str = "first") -> tuple[Path, list[Dialogue | Refusal]]:
    """The root folder and every conversation of a source, checked as far as headers and word times go.

    Args:
        source: a folder, or a manifest.
        layout: of a folder; None: found out.
        agent: one of `AGENTS`, where the manifest does not say it.

    Raises:
        UptakeError: no such source, nothing in it, a malformed manifest.
    """
    if agent not in AGENTS:
        raise UptakeError(f"agent = {agent!r}: must be one of {', '.join(AGENTS)}")
    if source.is_dir():
        name, found = recordings(source, layout)
        given = lhotse.spoken(source) if name == "lhotse" else {}
        rows = [(one, agent, given.get(one.id), None) for one in found]
        return source, [side for row in rows for side in _sides(source, *row)]
    if not source.is_file():
        raise UptakeError(f"{source}: no such folder or manifest; give the recordings to learn from")
    manifest = [_row(source, number, record, agent) for number, record in read_json_lines(source)]
    if not manifest:
        raise UptakeError(f"{source}: an empty manifest; a line is an object with 'path'")
    root = source.parent
    return root, [side for one, own, files in manifest for side in _sides(root, one, own, None, files)]


def _row(source: Path, number: int, record: Mapping[str, Any], agent: str) -> tuple[Recording, str, list[str] | None]:
    """A line of a manifest: the recording, which side is the agent, and its files of words."""
    paths, said = record.get("path"), record.get("words")
    chosen = record.get("agent", agent)
    if not isinstance(chosen, str) or chosen not in AGENTS:
        raise UptakeError(f"{source}:{number}: agent = {chosen!r}; must be one of {', '.join(AGENTS)}")
    listed: Any = [paths] if isinstance(paths, str) else paths
    if not _one_or_two(listed):
        raise UptakeError(f"{source}:{number}: path = {paths!r}; give a two-channel file, or a list of two files")
    files = [said] if isinstance(said, str) else said
    if files is not None and not _one_or_two(files):
        raise UptakeError(f"{source}:{number}: words = {said!r}; give a file, or a list of two")
    first, second = listed[0], listed[-1]
    tracks = (Track(first, 0), Track(first, 1)) if len(listed) == 1 else (Track(first, None), Track(second, None))
    return Recording(f"{number:05d} {first}", tracks, ("0", "1")), chosen, files


def _one_or_two(names: Any) -> bool:
    return isinstance(names, list) and len(names) in (1, 2) and all(isinstance(name, str) for name in names)


def _sides(
    root: Path,
    recording: Recording | Refusal,
    agent: str,
    said: Sequence[SpokenWord] | None,
    files: Sequence[str] | None,
) -> Iterator[Dialogue | Refusal]:
    """A recording from the sides that are learned from, or why it cannot be used."""
    if isinstance(recording, Refusal):
        yield recording
        return
    try:
        length = audio.length(root, recording)
        if said is None:
            said, name = _read(root, recording, files)
        else:
            name = "the supervisions"
        for word in said:
            if CLOCK.nearest_sample(word.onset) >= length or CLOCK.nearest_sample(word.offset) > length + CLOCK.frame:
                raise Rejected(
                    "words",
                    f"{name}: {word.text!r} from {word.onset:g} to {word.offset:g} s, and {recording.tracks[0].path} "
                    f"is over at {CLOCK.seconds(length):.2f} s",
                )
    except Rejected as fault:
        yield Refusal(recording.id, fault.reason, fault.detail)
        return
    for side in AGENTS[agent]:
        yield Dialogue(recording, side, tuple(said), name)


def _read(root: Path, recording: Recording, files: Sequence[str] | None) -> tuple[list[SpokenWord], str]:
    """The words of a recording and the name of the file that has them."""
    tracks = recording.tracks
    alone = tracks[0].path != tracks[1].path
    found = [words.beside(root / track.path) for track in tracks] if files is None else [root / name for name in files]
    paths = [path for path in found if path is not None]
    if len(paths) < len(found) or (alone and len(paths) < 2):
        missing = root / tracks[next((n for n, path in enumerate(found) if path is None), 1)].path
        raise Rejected(
            "words",
            f"{missing}: no word times beside it ({' or '.join(missing.with_suffix(s).name for s in words.SUFFIXES)}); "
            "align its transcript, or name the file in a manifest",
        )
    try:
        if alone or len(set(paths)) == 2:
            each = [[word._replace(channel=side) for word in words.read(path)] for side, path in enumerate(paths)]
            said = sorted((word for own in each for word in own), key=lambda word: word.onset)
        else:
            said = words.read(paths[0])
    except UptakeError as error:
        raise Rejected("words", str(error)) from error
    return said, str(paths[0])


def agent_words(dialogue: Dialogue, heard: audio.Heard) -> list[Word]:
    """What the agent said, in samples, as far as it fits to what is heard.

    Raises:
        Rejected: the agent is heard and no word is known of it, or its words lie where it is silent.
    """
    said, agent, recording = dialogue.said, dialogue.agent, dialogue.recording
    spans = [Span(word.onset, word.offset, word.speaker, word.channel) for word in said]
    whose = tracks_of(recording, spans, heard)
    own = [word for word, track in zip(said, whose, strict=True) if track == agent]
    samples = [(CLOCK.nearest_sample(word.onset), CLOCK.nearest_sample(word.offset)) for word in own]
    side = list(AGENTS)[agent]
    sounding = CLOCK.seconds(sum(int(off - on) for on, off in segments(heard.power[agent], heard.samples, ENERGY)))
    if not own and sounding > _LEAST_SECONDS:
        theirs = f"; its {len(said)} words are the other's" if said else ""
        raise Rejected(
            "words",
            f"{dialogue.said_in}: no word of the agent, who is heard for {sounding:.1f} s in the {side} track{theirs}: "
            f"give its words, or agent={list(AGENTS)[1 - agent]}",
        )
    active = active_hops(heard.power[agent], ENERGY)
    fitting = sum(bool(active[on // ENERGY.hop : -(-off // ENERGY.hop) + 1].any()) for on, off in samples)
    if own and fitting < _FIT * len(own):
        raise Rejected(
            "words",
            f"{dialogue.said_in}: {len(own) - fitting} of the agent's {len(own)} words lie where the {side} track is "
            "silent: are its times in seconds, and is it the right track?",
        )
    return [Word(word.text, on, min(off, heard.samples)) for word, (on, off) in zip(own, samples, strict=True)]


def blocks(root: Path, dialogue: Dialogue, frames: int) -> Iterator[np.ndarray]:
    """The audio, `frames` frames at a time: (2, samples) float32 at the clock's rate, the user first.

    The last block is filled up to a whole frame with silence.

    Raises:
        Rejected: the audio is damaged or not finite.
    """
    length = audio.length(root, dialogue.recording)
    order = (1 - dialogue.agent, dialogue.agent)
    end = CLOCK.sample_of(CLOCK.frames_covering(length))
    for onset in range(0, end, CLOCK.sample_of(frames)):
        offset = min(end, onset + CLOCK.sample_of(frames))
        tracks = [audio.read_piece(root, dialogue.recording.tracks[track], onset, offset) for track in order]
        yield np.stack(tracks)
