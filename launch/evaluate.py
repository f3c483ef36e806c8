"""`uptake eval` and `uptake rollout`: measure a policy, or listen to one conversation of it."""

from __future__ import annotations

from pathlib import Path

import soundfile
from rich.console import Console

from align.comparison import single
from align.evaluation import (
    BASELINES,
    Scripted,
    evaluate,
    load_policy,
    play,
    write_json,
)
from align.hearing import Listener
from align.policies.base import DuplexPolicy
from align.report import number, stereo, timeline_png
from envs.pack import Pack
from launch.terminal import counting, make_console, single_table


def find_system(name: str) -> DuplexPolicy | Scripted:
    """A scripted agent by name, else a policy by name or path."""
    return BASELINES[name] if name in BASELINES else load_policy(name)


def run_evaluation(
    policy: str,
    pack_path: str,
    split: str,
    *,
    variants: int,
    frames: int,
    seed: int,
    batch: int,
    asr: bool,
    out: Path | None,
    console: Console | None = None,
) -> None:
    """Measure one policy or scripted agent on a split; print the figures, and write them if `out` is given.

    With `asr`, words are those that speech recognition hears, and their error rate against the agent's text is shown.
    """
    console = console or make_console()
    listener = Listener() if asr else None
    pack = Pack.load(pack_path)
    system = find_system(policy)
    with counting(console, f"measuring {policy}", variants * len(pack.scenarios(split))) as advance:
        found = evaluate(
            system,
            pack,
            split,
            name=policy,
            variants=variants,
            seed=seed,
            frames=frames,
            batch=batch,
            transcribe=listener,
            on_done=advance,
        )
    result = single(found)
    console.print(single_table(policy, result["rows"]))
    if listener:
        result["word_error_rate"], result["words"] = listener.word_error_rate, listener.words
        rate = number(listener.word_error_rate, "%")
        console.print(f"speech recognition against the agent's own text: {rate} wrong of {listener.words} words")
    if out is not None:
        write_json(result, out)
        console.print(f"written: {out}", soft_wrap=True)


def run_rollout(
    policy: str,
    pack_path: str,
    scenario: str,
    *,
    variant: int,
    frames: int,
    seed: int,
    out: Path,
    console: Console | None = None,
) -> None:
    """Play one conversation; write its record, `timeline.png` and `stereo.flac` (left the user, right the agent)."""
    console = console or make_console()
    pack = Pack.load(pack_path)
    split = pack.scenario(scenario).split
    episode = play(
        find_system(policy), pack, [(scenario, variant)], split=split, seed=seed, frames=frames
    )[0]  # fmt: skip
    episode.save(out)
    (out / "timeline.png").write_bytes(timeline_png(episode)[0])
    soundfile.write(out / "stereo.flac", stereo(episode), episode.clock.sample_rate, subtype="PCM_16")
    words = " ".join(word.text for word in episode.transcript)
    console.print(f"{episode.seconds:.1f} s written to [bold]{out}[/]", soft_wrap=True)
    if words:
        console.print(f"the agent said: {words}", markup=False, highlight=False)
