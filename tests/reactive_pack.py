"""A tiny pack for reactive users: every kind of utterance as tone bursts, in two voices.

pack = reactive_pack(tmp_path, SCENARIO_YAML)
"""

from __future__ import annotations

import json
from pathlib import Path

import soundfile

from envs.pack import Pack, sha256_of
from tests.packs import RATE, burst_clip

_GAP = 4800  # 200 ms: a pause within an utterance

SAID: dict[str, list[str]] = {
    "question/weather": ["is it going to rain", "will it be sunny"],
    "question/train": ["when does the train leave", "which platform is it"],
    "statement/day": ["i had a long day"],
    "pause/weather": ["is it going to rain | this weekend then"],
    "dictation/number": ["my number is five | two nine | one"],
    "story/boat": ["we had a boat on the lake | and then the wind came | so we went home"],
    "barge_in/train": ["yeah | but what about the train"],
    "correction/music": ["right | no i meant the music"],
    "stop/stop": ["okay | stop please"],
    "side_talk/door": ["tom close the door"],
    "cough/cough": [""],
}
"""Id prefix to texts; a bar is a pause."""
MORE = {"hello/hello": ["hello"], "goodbye/goodbye": ["bye then"]}
"""Kinds that not every pack has."""

_SCRIPT = """\
schema: duplex.scenario/1
id: script
split: train
user: {script: [{id: ask, type: A1, clip: question/weather/0-low, at: 0.5s}]}
expect: [{event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [rain, sunny]}]
---
"""


def reactive_pack(folder: Path, scenarios: str, more: bool = True) -> Pack:
    """Write the pack below `folder` with these scenarios (and one script, id ``script``) and load it."""
    folder = Path(folder) / "reactive"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "scenarios").mkdir(exist_ok=True)
    clips = {}

    def add(name: str, text: str, hz: float, voice: str, kind: str = "user") -> None:
        parts = [part.split() for part in text.split("|")]
        places = [sum(map(len, parts[: i + 1])) - 1 for i in range(len(parts) - 1)]
        audio, words = burst_clip(text.replace("|", "") or "ahem", hz, dict.fromkeys(places, _GAP))
        path = folder / "audio" / f"{name.replace('/', '.')}.flac"
        soundfile.write(path, audio, RATE, subtype="PCM_16")
        clips[name] = {
            "file": f"audio/{path.name}",
            "sha256": sha256_of(path),
            "samples": len(audio),
            "text": text.replace(" |", ""),
            "words": words if text else [],
            "voice": voice,
            "split": "train" if kind == "user" else "all",
            "kind": kind,
            "pauses": [[words[place][2], words[place + 1][1]] for place in places],
            "answers": [],
        }

    for voice, hz in (("low", 200.0), ("high", 320.0)):
        for prefix, texts in {**SAID, **(MORE if more else {})}.items():
            for number, text in enumerate(texts):
                add(f"{prefix}/{number}-{voice}", text, hz, voice)
    add("agent-rain", "it will rain and then it will be sunny for the rest of the day", 440, "agent", "agent")
    add("agent-mhm", "mhm", 520, "agent", "agent_backchannel")
    index = {"schema": "duplex.pack/1", "name": "tiny", "version": "1", "sample_rate": RATE, "clips": clips}
    (folder / "pack.json").write_text(json.dumps(index))
    (folder / "scenarios" / "all.yaml").write_text((_SCRIPT + scenarios).removesuffix("---\n"))
    return Pack.load(folder)
