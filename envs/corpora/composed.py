"""Writes composed conversations (`envs.conversations`) as recordings with word times, for trying a warm start.

    python -m envs.corpora.composed OUT --conversations 24

Left the agent, right the user; beside each file the words of both (`envs.corpora.words`). The same seed gives the same
files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from envs.clock import CLOCK
from envs.conversations import Composer
from envs.episode import write_audio
from envs.files import whole
from envs.pack import Pack


def write(out: Path, composer: Composer, conversations: int, seed: int = 0) -> None:
    """`talk_NNNN.flac` and `.json` for each conversation."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(conversations):
        talk = composer.draw(np.random.default_rng([seed, number]))
        write_audio(out / f"talk_{number:04d}.flac", np.stack([talk.agent, talk.user], axis=1), CLOCK.sample_rate)
        words = [
            {"word": w.text, "start": CLOCK.seconds(w.onset), "end": CLOCK.seconds(w.offset), "channel": channel}
            for channel, said in enumerate((talk.agent_words, talk.user_words))
            for w in said
        ]
        with whole(out / f"talk_{number:04d}.json") as partial:
            partial.write_text(json.dumps(words) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m envs.corpora.composed", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--frames", type=int, default=300, help="length of each, in frames of 80 ms")
    parser.add_argument("--pack", default="core")
    parser.add_argument("--split", default="train", choices=("train", "dev", "test"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    composer = Composer(Pack.load(given.pack), given.split, given.frames)
    write(given.out, composer, given.conversations, given.seed)
    minutes = given.conversations * given.frames * CLOCK.frame_seconds / 60
    print(f"{given.out}: {given.conversations} conversations, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
