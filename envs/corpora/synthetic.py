"""Builds a small two-party corpus from a pack's clips, in any of the layouts, with the truth beside it.

    python -m envs.corpora.synthetic OUT --layout fisher --conversations 6

For trying the readers without a licence for anything, and for tests. `OUT/truth.json` says who spoke when and what
the planned segments are; nothing reads it but a person or a test.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
import soxr

from envs.activity import activity
from envs.clock import CLOCK
from envs.corpora.speech import ENERGY
from envs.corpora.utterances import Interval
from envs.pack import Pack

SCENES = ("pause", "bc", "turn", "int")
_NOD = CLOCK.nearest_sample(0.9)  # samples of the longest backchannel
_SHORTEST, _EDGE, _LONGEST_PAUSE = (CLOCK.nearest_sample(seconds) for seconds in (0.2, 0.05, 0.9))
_REST_SECONDS = 2.0  # between two scenes: longer than what joins utterances


@dataclass
class Talk:
    """One conversation: both channels, and what was planned in it."""

    audio: np.ndarray
    """(2, samples) float32 at the clock's rate."""
    said: list[tuple[int, int, int]] = field(default_factory=list)
    """(speaker, onset, offset) of every clip."""
    planned: list[tuple[str, int, int, int]] = field(default_factory=list)
    """(axis, speaker X, onset, offset)."""


class Speaker:
    """Says clips of one kind one after the other, trimmed to their sound."""

    def __init__(self, clips: Sequence[np.ndarray], short: Sequence[np.ndarray], rng: np.random.Generator) -> None:
        self.clips, self.short, self.rng = clips, short, rng

    def speak(self, talk: Talk, who: int, onset: int, seconds: float) -> int:
        """At least so many seconds of clips with pauses of 0.3 to 0.7 s between them; returns the end."""
        end, at = onset, onset
        while CLOCK.seconds(end - onset) < seconds:
            end = place(talk, who, self.clips[int(self.rng.integers(len(self.clips)))], at)
            at = end + CLOCK.nearest_sample(float(self.rng.uniform(0.3, 0.7)))
        return end

    def nod(self, talk: Talk, who: int, onset: int) -> int:
        """A backchannel; returns its end."""
        return place(talk, who, self.short[int(self.rng.integers(len(self.short)))], onset)


def place(talk: Talk, who: int, clip: np.ndarray, onset: int) -> int:
    """Add a clip to a channel; returns where it ends."""
    end = onset + len(clip)
    if end > talk.audio.shape[1]:
        talk.audio = np.pad(talk.audio, ((0, 0), (0, end - talk.audio.shape[1] + 30 * CLOCK.sample_rate)))
    talk.audio[who, onset:end] += clip
    talk.said.append((who, onset, end))
    return end


def trimmed(audio: np.ndarray, level: float = 10 ** (-42 / 20)) -> np.ndarray:
    """A clip from its first loud sample to its last."""
    loud = np.flatnonzero(np.abs(audio) >= level)
    return audio[loud[0] : loud[-1] + 1] if loud.size else audio[:0]


@dataclass(frozen=True)
class Voices:
    """Clips for both speakers, and backchannels."""

    clips: tuple[list[np.ndarray], list[np.ndarray]]
    nods: list[np.ndarray]

    @classmethod
    def of(cls, pack: Pack) -> Voices:
        """The clips of a pack that are one utterance each: loud from end to end but for silences below a second."""
        user, agent, nods = (
            [audio for audio in (trimmed(clip.audio) for clip in pack.clips(kind)) if _one_utterance(audio)]
            for kind in ("user", "agent", "agent_backchannel")
        )
        return cls((user, agent), [audio for audio in nods if len(audio) <= _NOD])


def _one_utterance(audio: np.ndarray) -> bool:
    heard = activity(audio, ENERGY)
    if not len(heard) or len(audio) < _SHORTEST:
        return False
    edges = np.concatenate([[0], heard.ravel(), [len(audio)]]).reshape(-1, 2)
    silences = edges[:, 1] - edges[:, 0]
    return bool(max(silences[0], silences[-1]) <= _EDGE and silences.max() <= _LONGEST_PAUSE)


def converse(voices: Voices, rng: np.random.Generator, scenes: Sequence[str] = SCENES) -> Talk:
    """One conversation with these scenes in random order, X and Y by turns."""
    people = [Speaker(clips, voices.nods, rng) for clips in voices.clips]
    talk, at = Talk(np.zeros((2, 0), np.float32)), CLOCK.sample_rate
    for number, scene in enumerate(rng.permutation(list(scenes))):
        at = _SCENES[str(scene)](talk, people, number % 2, at, rng) + CLOCK.nearest_sample(_REST_SECONDS)
    talk.audio = talk.audio[:, :at]
    talk.said.sort(key=lambda one: one[1])
    return talk


def _pause(talk: Talk, people: Sequence[Speaker], x: int, at: int, rng: np.random.Generator) -> int:
    end = people[x].speak(talk, x, at, 6.0)
    talk.planned.append(("pause", x, at, end))
    return end


def _bc(talk: Talk, people: Sequence[Speaker], x: int, at: int, rng: np.random.Generator) -> int:
    end = people[x].speak(talk, x, at, 9.0)
    onset = at + CLOCK.nearest_sample(float(rng.uniform(1.0, 1.5)))
    while onset + 2 * CLOCK.sample_rate < end:
        # more than a second of silence between them, or two would be one long utterance
        onset = people[1 - x].nod(talk, 1 - x, onset) + CLOCK.nearest_sample(float(rng.uniform(1.3, 3.0)))
    talk.planned.append(("bc", x, at, end))
    return end


def _turn(talk: Talk, people: Sequence[Speaker], x: int, at: int, rng: np.random.Generator) -> int:
    end = people[x].speak(talk, x, at, 6.0)
    answer = end + CLOCK.nearest_sample(float(np.clip(rng.normal(0.15, 0.15), -0.3, 0.3)))
    last = people[1 - x].speak(talk, 1 - x, answer, 6.0)
    talk.planned.append(("turn", x, at, last))
    return last


def _int(talk: Talk, people: Sequence[Speaker], x: int, at: int, rng: np.random.Generator) -> int:
    first = people[x].speak(talk, x, at, 4.0)
    second = people[1 - x].speak(talk, 1 - x, first + CLOCK.nearest_sample(0.2), 5.0)
    third = people[x].speak(talk, x, second - CLOCK.nearest_sample(float(rng.uniform(0.4, 0.9))), 4.0)
    last = people[1 - x].speak(talk, 1 - x, third + CLOCK.nearest_sample(float(rng.uniform(1.05, 1.3))), 4.0)
    talk.planned.append(("int", x, at, last))
    return last


_SCENES: dict[str, Callable[[Talk, Sequence[Speaker], int, int, np.random.Generator], int]] = {
    "pause": _pause,
    "bc": _bc,
    "turn": _turn,
    "int": _int,
}


# -- layouts -----------------------------------------------------------------------------------------------------------


def write_audio(path: Path, audio: np.ndarray, rate: int) -> None:
    """Write (channels, samples) of the clock's rate at another; the suffix says the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if rate != CLOCK.sample_rate:
        audio = soxr.resample(audio.T, CLOCK.sample_rate, rate).T
    kinds = {".sph": ("NIST", "ULAW"), ".opus": ("OGG", "OPUS"), ".mp3": ("MP3", None)}
    container, subtype = kinds.get(path.suffix, (path.suffix[1:].upper(), "PCM_16"))
    soundfile.write(path, np.clip(audio, -1.0, 1.0).T, rate, format=container, subtype=subtype)


def spans(talk: Talk, who: int) -> list[Interval]:
    """When somebody speaks, one stretch a clip."""
    return [(onset, offset) for speaker, onset, offset in talk.said if speaker == who]


def write_plain(out: Path, number: int, talk: Talk) -> str:
    """`talk_N` as WAV, FLAC or Opus by turns, measured; an RTTM beside the second and a TextGrid beside the third."""
    name = f"talk_{number:03d}"
    suffix, rate = ((".wav", 16_000), (".flac", 24_000), (".opus", 48_000))[number % 3]
    write_audio(out / f"{name}{suffix}", talk.audio, rate)
    if number % 3 == 1:
        lines = [
            f"SPEAKER {name} 1 {CLOCK.seconds(on):.3f} {CLOCK.seconds(off - on):.3f} <NA> <NA> person{who} <NA> <NA>"
            for who in (0, 1)
            for on, off in spans(talk, who)
        ]
        (out / f"{name}.rttm").write_text("\n".join(lines) + "\n")
    elif number % 3 == 2:
        (out / f"{name}.TextGrid").write_text(text_grid(talk))
    return name


def text_grid(talk: Talk) -> str:
    """The long form as Praat writes it, one tier a speaker."""
    end = CLOCK.seconds(talk.audio.shape[1])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for who in (0, 1):
        edges = [0.0]
        for on, off in spans(talk, who):
            edges += [CLOCK.seconds(on), CLOCK.seconds(off)]
        edges.append(end)
        lines += [f"    item [{who + 1}]:", '        class = "IntervalTier"', f'        name = "person{who}"']
        lines += ["        xmin = 0", f"        xmax = {end}", f"        intervals: size = {len(edges) - 1}"]
        for i, (start, stop) in enumerate(pairwise(edges)):
            label = '"speech"' if i % 2 else '""'
            lines += [f"        intervals [{i + 1}]:", f"            xmin = {start}", f"            xmax = {stop}"]
            lines += [f"            text = {label}"]
    return "\n".join(lines) + "\n"


def write_fisher(out: Path, number: int, talk: Talk) -> str:
    """`audio/000/fe_03_NNNNN.sph`, 8 kHz mu-law, and the speakers' PINs in `doc/`."""
    name = f"fe_03_{number + 1:05d}"
    write_audio(out / "audio" / "000" / f"{name}.sph", talk.audio, 8_000)
    table = out / "doc" / "fe_03_p1_calldata.tbl"
    table.parent.mkdir(exist_ok=True)
    if number == 0:
        table.write_text("CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.DL,APHNUM,APHSET,APHTYP,BPIN,BSX.DL\n")
    with table.open("a") as file:
        file.write(f"{number + 1:05d},20021212_12:00:00,ENG01,3,3,{2 * number},m.a,1,1,1,{2 * number + 1},f.a\n")
    return name


def write_seamless(out: Path, number: int, talk: Talk) -> str:
    """A WAV at 48 kHz and a JSON with `metadata:vad` for each participant."""
    name = f"V00_S{number:04d}_I{number:08d}"
    folder = out / "improvised" / "dev" / "0000" / f"{number:04d}"
    for who in (0, 1):
        stem = f"{name}_P{2 * number + who:04d}"
        write_audio(folder / f"{stem}.wav", talk.audio[who : who + 1], 48_000)
        vad = [{"start": CLOCK.seconds(on), "end": CLOCK.seconds(off)} for on, off in spans(talk, who)]
        content = {"id": stem, "metadata:transcript": [], "metadata:vad": vad}
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return name


def write_candor(out: Path, number: int, talk: Talk) -> str:
    """`<id>/processed/<id>.mp3` and `<id>/metadata.json`."""
    name = f"{number:08x}-0000-4000-8000-000000000000"
    write_audio(out / name / "processed" / f"{name}.mp3", talk.audio, 44_100)
    people = [{"user_id": f"user{number}{side}", "channel": side} for side in "LR"]
    (out / name / "metadata.json").write_text(json.dumps({"id": name, "speakers": people}))
    return name


def write_lhotse(out: Path, number: int, talk: Talk) -> str:
    """FLAC at 16 kHz, a line in `recordings.jsonl.gz` and lines in `supervisions.jsonl.gz`."""
    name = f"call-{number:03d}"
    write_audio(out / "wavs" / f"{name}.flac", talk.audio, 16_000)
    seconds = CLOCK.seconds(talk.audio.shape[1])
    source = {"type": "file", "channels": [0, 1], "source": f"wavs/{name}.flac"}
    recording = {
        "id": name,
        "sources": [source],
        "sampling_rate": 16_000,
        "num_samples": round(seconds * 16_000),
        "duration": seconds,
        "channel_ids": [0, 1],
    }
    supervisions = [
        {
            "id": f"{name}-{who}-{i}",
            "recording_id": name,
            "start": CLOCK.seconds(on),
            "duration": CLOCK.seconds(off - on),
            "channel": who,
            "speaker": f"{name}-{'AB'[who]}",
        }
        for who in (0, 1)
        for i, (on, off) in enumerate(spans(talk, who))
    ]
    for file, records in (("recordings", [recording]), ("supervisions", supervisions)):
        with gzip.open(out / f"{file}.jsonl.gz", "wt" if number == 0 else "at") as lines:
            lines.writelines(json.dumps(record) + "\n" for record in records)
    return name


WRITERS: dict[str, Callable[[Path, int, Talk], str]] = {
    "plain": write_plain,
    "fisher": write_fisher,
    "seamless": write_seamless,
    "candor": write_candor,
    "lhotse": write_lhotse,
}


def build(out: Path, layout: str, conversations: int, seed: int = 0, pack: Pack | None = None) -> dict[str, Talk]:
    """Write a corpus; returns recording -> what is in it. The same seed gives the same conversations."""
    voices = Voices.of(pack or Pack.load("core"))
    out.mkdir(parents=True, exist_ok=True)
    talks = {}
    for number in range(conversations):
        talk = converse(voices, np.random.default_rng([seed, number]))
        talks[WRITERS[layout](out, number, talk)] = talk
    truth = {name: {"said": talk.said, "planned": talk.planned} for name, talk in talks.items()}
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return talks


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m envs.corpora.synthetic", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=sorted(WRITERS), default="plain")
    parser.add_argument("--conversations", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    talks = build(given.out, given.layout, given.conversations, given.seed)
    minutes = sum(CLOCK.seconds(talk.audio.shape[1]) for talk in talks.values()) / 60
    print(f"{given.out}: {len(talks)} conversations, {minutes:.1f} minutes, layout {given.layout}")


if __name__ == "__main__":
    main()
