"""How many times real time all rule rewards together take, on one core.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_rewards.py [--detectors energy silero] [--agents oracle metronome]

Prints one JSON line an agent and detector: seconds of conversation judged in a second of CPU time (median of the
rounds), verdicts, and milliseconds a conversation. A batch is 64 conversations of 20 s: two of the core pack's, each
cut or padded with silence to 10 s, one after the other, so that there is something to judge all along. All terms that
ask no language model are judged together, from nothing: what a detector has heard is not kept between rounds. Goal:
1,000 times real time with the default detector.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from align.loading import BASELINES
from envs.agents import converse
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.event import Event, Word
from envs.pack import Pack
from rewards import Composition, get, names
from rewards.detector import DetectorConfig

HALF = 10 * CLOCK.sample_rate


def conversations(pack: Pack, agent: str, batch: int) -> list[Episode]:
    """`batch` conversations of 20 s."""
    known = [scenario.id for scenario in pack.scenarios("train")]
    ids = [known[(7 * row) % len(known)] for row in range(2 * batch)]
    env = DuplexVectorEnv(pack, 2 * batch, split="train", frames=HALF // CLOCK.frame - 1)  # and frame 0
    halves = converse(env, BASELINES[agent](env), 0, {"scenario": ids, "variant": list(range(2 * batch))})
    return [_joined(*pair) for pair in zip(halves[::2], halves[1::2], strict=True)]


def _joined(first: Episode, second: Episode) -> Episode:
    tracks = {
        name: np.concatenate([np.pad(getattr(e, name), (0, HALF - e.samples)) for e in (first, second)])
        for name in ("mic", "user", "agent")
    }
    events = [*first.events, *(_later(event) for event in second.events)]
    words = (*first.transcript, *(_word_later(word) for word in second.transcript))
    return Episode(**tracks, events=events, transcript=words, meta={"text_stream": True})


def _later(event: Event) -> Event:
    return replace(
        event,
        id=f"second.{event.id}",
        onset=event.onset + HALF,
        offset=event.offset + HALF,
        anchors={name: at + HALF for name, at in event.anchors.items()},
        words=tuple(_word_later(word) for word in event.words),
    )


def _word_later(word: Word) -> Word:
    return Word(word.text, word.onset + HALF, word.offset + HALF)


def measure(episodes: Sequence[Episode], composition: Composition, rounds: int) -> dict[str, Any]:
    """Judge the batch again and again; the first round warms up."""
    took, verdicts = [], 0
    for _ in range(rounds + 1):
        start = time.process_time()
        verdicts = sum(len(composition.score(episode)) for episode in episodes)
        took.append(time.process_time() - start)
    median, seconds = statistics.median(took[1:]), sum(episode.seconds for episode in episodes)
    return {
        "conversations": len(episodes),
        "seconds_each": seconds / len(episodes),
        "terms": len(composition.rewards),
        "verdicts": verdicts,
        "times_real_time": round(seconds / median),
        "ms_per_conversation": round(1e3 * median / len(episodes), 2),
    }


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="conversations")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument("--detectors", nargs="+", default=["energy"], help="energy, silero, text")
    parser.add_argument("--agents", nargs="+", default=["oracle", "metronome"], help="whose conversations")
    options = parser.parse_args()
    pack = Pack.load("core")
    terms = {name: 1.0 for name in names() if get(name).rule}
    for agent in options.agents:
        episodes = conversations(pack, agent, options.batch)
        for detector in options.detectors:
            found = measure(episodes, Composition(terms, activity=DetectorConfig(detector)), options.rounds)
            print(json.dumps({"agent": agent, "detector": detector, **found}), flush=True)


if __name__ == "__main__":
    main()
