"""`uptake eval` and `uptake rollout`: measure a policy, or listen to one conversation of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from align.comparison import plain, single
from align.evaluation import (
    BASELINES,
    Key,
    Scripted,
    evaluate,
    load_policy,
    play,
    write_json,
)
from align.hearing import Listener, codec_floor
from align.policies.base import DuplexPolicy
from align.policies.moshi.policy import MoshiPolicy
from align.report import change, number, stereo, timeline_png
from envs.episode import Episode, write_flac
from envs.event import Word
from envs.pack import Pack
from launch.terminal import counting, make_console, single_table
from rewards.chance import Answer, answer_accuracy, find_answers


def find_system(name: str) -> DuplexPolicy | Scripted:
    """A scripted agent by name, else a policy by name or path."""
    return BASELINES[name] if name in BASELINES else load_policy(name)


def run_evaluation(
    policy: str,
    pack_path: str,
    split: str,
    *,
    users: str = "",
    variants: int,
    frames: int,
    seed: int,
    batch: int,
    asr: bool,
    out: Path | None,
    console: Console | None = None,
) -> None:
    """Measure one policy or scripted agent on a split; print the figures, and write them if `out` is given.

    `users` names other scenarios than the pack's own. Answers are set against chance (`rewards.chance`). With `asr`,
    words are those that speech recognition hears; their error rate against the agent's text is shown, and what the
    policy's codec alone does to speech.
    """
    console = console or make_console()
    listener = Listener() if asr else None
    pack = Pack.load(pack_path, users)
    system = find_system(policy)
    answers: dict[str, list[Answer]] = {}

    def watch(key: Key, episode: Episode, words: Sequence[Word] | None) -> None:
        answers.setdefault(key[0], []).extend(find_answers(episode, words))

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
            watch=watch,
            on_done=advance,
        )
    result = single(found)
    accuracy = answer_accuracy(answers)
    result["answers"] = asdict(accuracy) if accuracy else None
    console.print(single_table(policy, result["rows"]))
    if accuracy:
        low, high = (change(bound, "%") for bound in (accuracy.margin.low, accuracy.margin.high))
        console.print(
            f"{accuracy.answered} of {accuracy.asked} questions answered, {number(accuracy.hit.estimate, '%')} with an "
            f"expected word; by chance (what other questions expect) {number(accuracy.chance.estimate, '%')}: "
            f"{change(accuracy.margin.estimate, '%')} \\[{low}, {high}]",
            highlight=False,
        )
    if listener:
        result["word_error_rate"], result["words"] = plain(listener.word_error_rate), listener.words
        rate = number(listener.word_error_rate, "%")
        console.print(f"speech recognition against the agent's own text: {rate} wrong of {listener.words} words")
    if listener and isinstance(system, MoshiPolicy):
        errors, words = codec_floor(listener.transcribe, system.codec, pack.clips("agent"))
        result["codec_word_error_rate"], result["codec_words"] = errors / words, words
        console.print(
            f"the pack's agent clips after the policy's codec, the floor: {number(errors / words, '%')} wrong of "
            f"{words} words"
        )
    if out is not None:
        write_json(result, out)
        console.print(f"written: {out}", soft_wrap=True)


def run_rollout(
    policy: str,
    pack_path: str,
    scenario: str,
    *,
    users: str = "",
    variant: int,
    frames: int,
    seed: int,
    out: Path,
    console: Console | None = None,
) -> None:
    """Play one conversation; write its record, `timeline.png` and `stereo.flac` (left the user, right the agent)."""
    console = console or make_console()
    pack = Pack.load(pack_path, users)
    split = pack.scenario(scenario).split
    episode = play(
        find_system(policy), pack, [(scenario, variant)], split=split, seed=seed, frames=frames
    )[0]  # fmt: skip
    episode.save(out)
    (out / "timeline.png").write_bytes(timeline_png(episode)[0])
    write_flac(out / "stereo.flac", stereo(episode), episode.clock.sample_rate)
    words = " ".join(word.text for word in episode.transcript)
    console.print(f"{episode.seconds:.1f} s written to [bold]{out}[/]", soft_wrap=True)
    if words:
        console.print(f"the agent said: {words}", markup=False, highlight=False)
