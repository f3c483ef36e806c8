"""Builds a pack from a text source: renders every utterance, times its words, and writes the scenarios.

    uptake pack build OUT                               # with whichever engine is installed
    uptake pack build OUT --voices VOICES               # the core pack: every text in one of Kokoro's voices
    uptake pack build OUT --voices VOICES --repeats 3   # a wide one to train pocket on: every training text in three,
                                                        # and in two of flite's voices where flite is installed
    uptake pack build OUT --source taxonomy --voices VOICES     # the taxonomy pack

Speech is cached by text and voice, so that a build that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from envs.clock import CLOCK
from envs.episode import to_pcm16
from envs.errors import UptakeError
from envs.event import Word
from envs.files import whole
from envs.pack import SCHEMA
from envs.synthesis.align import Aligner, cut_points
from envs.synthesis.engines import Engine, cached, speech_file
from envs.synthesis.scenarios import write_scenarios
from envs.synthesis.sounds import EFFECTS, SOUNDS, coughs
from envs.synthesis.texts import SPLITS, Utterance, agent_utterances, load_source, user_utterances

_STEP = 8
"""Clips keep 13 of 16 bits: the rest lies 15 dB below the room tone and is half the size of the pack."""
_FEW, _ENOUGH = ("stop", "side_talk"), 6
"""Kinds of which a split may have few texts: each is said in three voices where there are fewer than six."""
_QUIET = 10 ** (-38 / 20)


@dataclass(frozen=True)
class Job:
    """One clip to render."""

    id: str
    utterance: Utterance
    voice: str
    effect: str = ""
    """What it goes through (`envs.synthesis.sounds.EFFECTS`)."""


def plan(source: Mapping[str, Any], repeats: int = 1, extra_voices: Sequence[str] = ()) -> list[Job]:
    """Which text is said in which voices. Voices rotate over the texts; training texts are said in `repeats` of the
    source's voices and, where there are `extra_voices`, in two of those."""
    jobs = []
    for number, utterance in enumerate(agent_utterances(source)):
        jobs.append(Job(f"agent/{utterance.topic}/{number:02d}", utterance, source["voices"]["agent"][0]))
    for split in SPLITS:
        voices, said = source["voices"][split], user_utterances(source, split)
        texts = Counter(utterance.kind for utterance in said)
        for number, utterance in enumerate(said):
            few = utterance.kind in _FEW and texts[utterance.kind] < _ENOUGH
            count = (repeats if split == "train" else 1) * (3 if few else 1)
            step = 7 if len(voices) % 7 else 1  # no common divisor: every turn is another voice
            chosen = [voices[(number + turn * step) % len(voices)] for turn in range(min(count, len(voices)))]
            if split == "train" and extra_voices:
                chosen += [extra_voices[(number + turn) % len(extra_voices)] for turn in range(2)]
            for voice in chosen:
                jobs.append(Job(f"{utterance.kind}/{utterance.topic}/{split}{number:03d}-{voice}", utterance, voice))
        for line, spec in source.get("lines", {}).items():
            kind, topic = line.split("/")
            utterance = Utterance(kind, topic, split, spec[split])
            voice = voices[spec["voice"] % len(voices)]
            jobs.append(Job(f"{line}/{split}", utterance, voice, spec.get("effect", "")))
    return jobs


def cast(wanted: Mapping[str, Sequence[str]], voices: Sequence[str]) -> dict[str, list[str]]:
    """Who speaks what: the source's voices as far as the engine has them, else the engine's own, dealt out.

    Args:
        wanted: the source's voices: `agent` and one list a split.
        voices: the engine's.

    Returns:
        As `wanted`; no voice speaks in two splits, and none of them is the agent's.

    Raises:
        UptakeError: fewer voices than an agent and one user a split need.
    """
    own = {part: [voice for voice in names if voice in voices] for part, names in wanted.items()}
    if all(own.values()):
        return own
    if len(set(voices)) < 1 + len(SPLITS):
        raise UptakeError(
            f"the engine has {len(set(voices))} voices ({', '.join(voices)}), a pack needs {1 + len(SPLITS)}: the "
            "agent's and one for each split; choose another engine"
        )
    agent, *users = dict.fromkeys(voices)
    held = max(1, len(users) // 4)
    return {"agent": [agent], "dev": users[:held], "test": users[held : 2 * held], "train": users[2 * held :]}


def build(
    source_path: Path,
    out: Path,
    engine: Engine,
    cache: Path,
    repeats: int = 1,
    extra: Engine | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Path:
    """Render what is not cached and write the pack to `out`; returns `out`. `extra` adds voices in training.

    Raises:
        UptakeError: the engine has too few voices, or cannot say a text.
    """
    source = load_source(source_path)
    source["voices"] = cast(source["voices"], engine.voices())
    extra_voices = extra.voices() if extra else []
    jobs = plan(source, repeats, extra_voices)
    cache.mkdir(parents=True, exist_ok=True)
    (out / "audio").mkdir(parents=True, exist_ok=True)
    (out / "scenarios").mkdir(exist_ok=True)
    align = Aligner()
    clips: dict[str, dict[str, Any]] = {}
    for done, job in enumerate(jobs):
        report(done, len(jobs), job.utterance.text)
        speaker = extra if extra and job.voice in extra_voices else engine
        audio, words = say(speaker, align, job.utterance, job.voice, cache)
        if job.effect:
            audio = EFFECTS[job.effect](audio, SPLITS.index(job.utterance.split))
        clips[job.id] = _clip(out, job.id, audio, job.utterance, job.voice, words)
    clips |= _sounds(source, out)
    index = {
        "schema": SCHEMA,
        "name": source.get("name", "core"),
        "version": "1",
        "sample_rate": CLOCK.sample_rate,
        "clips": clips,
    }
    (out / "pack.json").write_text(json.dumps(index, indent=None, separators=(",", ":"), ensure_ascii=False) + "\n")
    if "scenarios" in source:
        for file in sorted((source_path.parent / source["scenarios"]).glob("*.yaml")):
            (out / "scenarios" / file.name).write_bytes(file.read_bytes())
    else:
        write_scenarios(source, clips, out / "scenarios")
    return out


def _sounds(source: Mapping[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """Clips of what is not speech: the source's own list, one of each a split, or three coughs a split."""
    clips: dict[str, dict[str, Any]] = {}
    if "sounds" not in source:
        for number, audio in enumerate(coughs(9)):
            split = SPLITS[number % 3]
            cough = Utterance("cough", "cough", split, "")
            clips[f"cough/cough/{split}{number:03d}"] = _clip(out, f"cough/{number}", audio, cough, "synthetic", ())
        return clips
    for name in source["sounds"]:
        for number, split in enumerate(SPLITS):
            sound, file = SOUNDS[name](number), f"{name}/sound/{split}"
            clips[file] = _clip(out, file, sound.audio, Utterance(name, "sound", split, ""), "synthetic", ())
            if sound.pauses:
                clips[file]["pauses"] = [list(pause) for pause in sound.pauses]
    return clips


def say(
    engine: Engine, align: Aligner, utterance: Utterance, voice: str, cache: Path
) -> tuple[np.ndarray, tuple[Word, ...]]:
    """Speech and its word times from the cache, or from the engine and the aligner into the cache."""
    path = speech_file(engine, utterance.spoken, voice, cache)
    audio, times = cached(path, lambda: engine.say(utterance.spoken, voice)), path.with_suffix(".json")
    if not times.is_file():
        found = align(audio, utterance.text)
        with whole(times) as partial:
            partial.write_text(json.dumps(found))
    return audio, tuple(Word(*w) for w in json.loads(times.read_text()))


def kind_of(utterance: Utterance) -> str:
    """A clip's kind in pack.json. The agent's clips belong to all splits; users answer and say "mm-hm" as well."""
    if utterance.split != "all":
        return "user"
    return {"answer": "agent", "backchannel": "agent_backchannel"}[utterance.kind]


def _clip(
    out: Path, name: str, audio: np.ndarray, utterance: Utterance, voice: str, words: Sequence[Word]
) -> dict[str, Any]:
    file = f"audio/{name.replace('/', '_')}.flac"
    pcm = (np.rint(to_pcm16(audio) / _STEP) * _STEP).clip(-32768, 32760).astype(np.int16)
    soundfile.write(out / file, pcm, CLOCK.sample_rate, subtype="PCM_16", compression_level=1.0)
    kind = kind_of(utterance)
    entry: dict[str, Any] = {
        "file": file,
        "sha256": hashlib.sha256((out / file).read_bytes()).hexdigest(),
        "samples": len(pcm),
        "text": utterance.text.replace(" |", ",").replace(",,", ","),
        "words": [list(w) for w in words],
        "voice": voice,
        "split": utterance.split,
        "kind": kind,
    }
    if "|" in utterance.text:
        entry["pauses"] = [_silence_round(audio, cut) for cut in cut_points(audio, utterance.text, tuple(words))]
    if kind == "agent":
        entry["answers"] = [utterance.topic]
    return entry


def _silence_round(audio: np.ndarray, cut: int, hop: int = 120, reach: int = 40) -> list[int]:
    """The quiet stretch that a cut lies in, [onset, offset) in samples; empty where the speech runs on."""

    def quiet(start: int) -> bool:
        return 0 <= start and start + hop <= len(audio) and float(np.abs(audio[start : start + hop]).max()) < _QUIET

    onset = offset = cut
    while cut - onset < reach * hop and quiet(onset - hop):
        onset -= hop
    while offset - cut < reach * hop and quiet(offset):
        offset += hop
    return [onset, offset]
