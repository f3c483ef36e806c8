"""A tiny synthetic pack for tests: tone bursts as words, so that what is said and when is exact and costs nothing.

    pack = tiny_pack(tmp_path)

Scenario ids: ``turn`` (A1), ``statement`` (A3), ``pause`` (B1 then A1) and its twin ``nopause`` (A1), ``dictation``
(B4 then A3), ``story`` (B7 with two opportunities, then A3), ``barge`` (A1, then C1 once the agent speaks) and its twin
``ack`` (A1, then D1), ``stop`` (A1, then C3), ``noise`` (D4). All are in split `train`; ``test/turn`` is in `test`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from envs.clock import CLOCK
from envs.pack import Pack, sha256_of

RATE = CLOCK.sample_rate
BURST, GAP = 4800, 1440  # a word of 200 ms, 60 ms between words


def burst_clip(
    text: str, hz: float, gaps: dict[int, int] | None = None, voiced: bool = False
) -> tuple[np.ndarray, list[list]]:
    """Audio (N,) float32 of one 200 ms tone burst a word, and [[word, onset, offset]]; `gaps` overrides gap i.

    `voiced`: the end of every word is softer and an octave and a half higher, so that it moves as speech does.
    """
    words, pieces, position = [], [np.zeros(480, np.float32)], 480
    ramp = np.minimum(1.0, np.minimum(np.arange(BURST), np.arange(BURST)[::-1]) / 120.0)
    for i, word in enumerate(text.split()):
        tone = 0.2 * np.sin(2 * np.pi * hz * (1 + 0.06 * i) * np.arange(BURST) / RATE) * ramp
        if voiced:
            middle = np.clip((np.arange(BURST) - BURST / 2) / 480.0, 0.0, 1.0)
            tone = (1.0 - middle) * tone + middle * 0.06 * np.sin(2 * np.pi * 3 * hz * np.arange(BURST) / RATE) * ramp
        gap = (gaps or {}).get(i, GAP)
        pieces += [tone.astype(np.float32), np.zeros(gap, np.float32)]
        words.append([word, position, position + BURST])
        position += BURST + gap
    return np.concatenate(pieces), words


CLIPS: dict[str, dict] = {
    "ask": {"text": "what is the weather like today", "hz": 220, "voice": "low"},
    "ask-high": {"text": "when does the train leave", "hz": 330, "voice": "high"},
    "say": {"text": "my sister moved to a house", "hz": 220, "voice": "low"},
    "digits": {"text": "five two nine one", "hz": 240, "voice": "low", "gaps": {1: 14400}, "pauses": [[11520, 25920]]},
    "story": {"text": "so we drove to the coast and the car broke down there", "hz": 250, "voice": "low"},
    "but": {"text": "yeah but tell me about music", "hz": 260, "voice": "low"},
    "stop": {"text": "okay stop talking please", "hz": 270, "voice": "low"},
    "door": {"text": "", "hz": 90, "voice": "", "noise": True},
    "ask-test": {"text": "how is the garden", "hz": 350, "voice": "other", "split": "test"},
    "agent-weather": {"text": "it is sunny and warm and the wind is light all day", "hz": 440, "answers": ["weather"]},
    "agent-music": {"text": "i can play some quiet piano music for you now", "hz": 470, "answers": ["music"]},
    "agent-train": {"text": "the next train leaves from platform four at nine", "hz": 500, "answers": ["train"]},
    "agent-mhm": {"text": "mhm", "hz": 520, "kind": "agent_backchannel"},
}

SCENARIOS = """\
schema: duplex.scenario/1
id: turn
split: train
tags: [A1]
user: {script: [{id: ask, type: A1, clip: ask, at: 0.8s}]}
expect: [{event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [weather, sunny]}]
---
schema: duplex.scenario/1
id: statement
split: train
tags: [A3]
user: {script: [{id: tell, type: A3, clip: say, at: 500ms}]}
expect: [{event: tell, agent: responds, within: {full: 1.2, zero: 3.0}}]
---
schema: duplex.scenario/1
id: pause
split: train
tags: [B1]
twin: nopause
seed_group: weather-pause
vars: {gap: {dist: uniform, a: 0.8, b: 1.2}, start: {dist: uniform, a: 0.4, b: 0.9}}
user: {script: [{id: ask, type: A1, clip: ask, at: $start, pauses: [{after_word: 3, seconds: $gap}]}]}
expect:
  - {event: ask.pause, agent: silent}
  - {event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [weather, sunny]}
---
schema: duplex.scenario/1
id: nopause
split: train
tags: [A1]
twin: pause
seed_group: weather-pause
vars: {gap: {dist: uniform, a: 0.8, b: 1.2}, start: {dist: uniform, a: 0.4, b: 0.9}}
user: {script: [{id: ask, type: A1, clip: ask, at: $start, until: {after_word: 3}}]}
expect: [{event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [weather, sunny]}]
---
schema: duplex.scenario/1
id: dictation
split: train
tags: [B4]
user: {script: [{id: digits, type: A3, clip: digits, at: 0.5, pause_type: B4}]}
expect:
  - {event: digits.pause, agent: silent}
  - {event: digits, agent: responds, within: {full: 1.2, zero: 3.0}}
---
schema: duplex.scenario/1
id: story
split: train
tags: [B7]
user: {script: [{id: tell, type: B7, clip: story, at: 0.5, opportunities: [5, 9], turn: A3,
                 pauses: [{after_word: 5, seconds: 0.6}]}]}
expect:
  - {event: tell, agent: backchannels}
  - {event: tell.turn, agent: responds, within: {full: 1.2, zero: 3.0}}
---
schema: duplex.scenario/1
id: barge
split: train
tags: [C1]
twin: ack
seed_group: barge-music
user:
  script:
    - {id: ask, type: A1, clip: ask, at: 0.5}
    - {id: cut, type: C1, clip: but, when: {agent: speaking, for: 0.8, after: ask}, timeout: 4, anchors: {sem: 2}}
expect:
  - {event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [weather, sunny]}
  - {event: cut, agent: stops, within: {full: 0.5, zero: 1.5}}
  - {event: cut, agent: responds, within: {full: 0.7, zero: 2.0}, content: [music, piano]}
---
schema: duplex.scenario/1
id: ack
split: train
tags: [D1]
twin: barge
seed_group: barge-music
user:
  script:
    - {id: ask, type: A1, clip: ask, at: 0.5}
    - {id: hm, type: D1, clip: but, when: {agent: speaking, for: 0.8, after: ask}, timeout: 4, until: {after_word: 0}}
expect:
  - {event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [weather, sunny]}
  - {event: hm, agent: continues}
---
schema: duplex.scenario/1
id: stop
split: train
tags: [C3]
user:
  script:
    - {id: ask, type: A1, clip: ask-high, at: 0.5}
    - {id: stop, type: C3, clip: stop, when: {agent: speaking, for: 0.8, after: ask}, timeout: 4, anchors: {sem: 1}}
expect: [{event: stop, agent: stops, within: {full: 0.5, zero: 1.5}}]
---
schema: duplex.scenario/1
id: noise
split: train
tags: [D4]
user: {script: [{id: bang, type: D4, clip: door, at: 1.0, gain_db: -6}]}
expect: [{event: bang, agent: silent}]
---
schema: duplex.scenario/1
id: test/turn
split: test
tags: [A1]
user: {script: [{id: ask, type: A1, say: How is the garden, at: 0.8}]}
expect: [{event: ask, agent: responds, within: {full: 0.7, zero: 2.0}, content: [garden]}]
"""


def write_tiny_pack(folder: Path, scenarios: str = SCENARIOS) -> Path:
    """Write the pack to `folder` and return it."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "scenarios").mkdir(exist_ok=True)
    clips = {}
    for name, spec in CLIPS.items():
        if spec.get("noise"):
            audio = (0.1 * np.random.default_rng(1).standard_normal(7200)).astype(np.float32)
            words: list[list] = []
        else:
            audio, words = burst_clip(spec["text"], spec["hz"], spec.get("gaps"), voiced=name.startswith("agent"))
        path = folder / "audio" / f"{name}.flac"
        soundfile.write(path, audio, RATE, subtype="PCM_16")
        kind = spec.get("kind", "agent" if name.startswith("agent") else "user")
        clips[name] = {
            "file": f"audio/{name}.flac",
            "sha256": sha256_of(path),
            "samples": len(audio),
            "text": spec["text"],
            "words": words,
            "voice": spec.get("voice", "agent"),
            "split": spec.get("split", "all" if kind != "user" else "train"),
            "kind": kind,
            "pauses": spec.get("pauses", []),
            "answers": spec.get("answers", []),
        }
    index = {"schema": "duplex.pack/1", "name": "tiny", "version": "1", "sample_rate": RATE, "clips": clips}
    (folder / "pack.json").write_text(json.dumps(index))
    (folder / "scenarios" / "all.yaml").write_text(scenarios)
    return folder


def tiny_pack(folder: Path) -> Pack:
    """Write the tiny pack below `folder` and load it."""
    return Pack.load(write_tiny_pack(Path(folder) / "tiny"))
