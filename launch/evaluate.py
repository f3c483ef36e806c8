"""`uptake eval` and `uptake rollout`: measure a policy, or listen to one conversation of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from align.config import load_config
from align.evaluation import Key, evaluate, play, write_json
from align.hearing import Listener, codec_floor
from align.loading import BASELINES, CASCADE, POCKET, Scripted, find_scripted, load_policy
from align.policies.base import DuplexPolicy
from align.policies.live.agent import Live
from align.policies.live.ledger import summary
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.prompt import PromptConfig
from align.report import number
from align.rollout import check_context
from align.stored import Store
from envs.acoustics.config import find_acoustics
from envs.episode import Episode
from envs.errors import UptakeError, closest
from envs.event import Word
from envs.look import write_look
from envs.pack import Pack
from launch.export import parse_dtype
from launch.grading import Grader, parse_compat, print_result
from launch.places import check_out_file, check_out_folder
from launch.terminal import counting, make_console
from rewards.compose import OURS, Composition
from rewards.detector import ENERGY, parse_detector


def find_system(
    name: str, frames: int, prompt: PromptConfig | None = None, context: int = 0, dtype: str = ""
) -> DuplexPolicy | Scripted:
    """A scripted agent by name, else a policy by name or path, which must remember as many `frames`.

    Args:
        prompt: what its conversations begin with; None: what those of its run began with.
        context: see `load_policy`.
        dtype: name of the precision of its weights; empty: `load_policy` says.
    """
    if (scripted := find_scripted(name)) is not None:
        return scripted
    if prompt is None and (run := Path(name) / "config.yaml").is_file():
        prompt = load_config(str(run)).prompt
    named = (*BASELINES, POCKET, CASCADE)
    if name not in named and not Path(name).exists() and (close := closest(name, named)) is not None:
        raise UptakeError(f"'{name}': no checkpoint and no scripted agent; did you mean {close!r}?")
    policy = load_policy(name, prompt, context, parse_dtype(dtype) if dtype else None)
    check_context(policy.spec, frames, "--frames")
    return policy


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
    recogniser: str,
    out: Path | None,
    acoustics: str = "clean",
    episodes: Path | None = None,
    compat: Sequence[str] = (),
    prompt: PromptConfig | None = None,
    context: int = 0,
    dtype: str = "",
    activity: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Measure one policy or scripted agent on a split; print the figures, and write them if `out` is given.

    `users` names other scenarios than the pack's own. With `episodes`, every conversation is stored there
    (`align.stored`). `activity` says who is taken to speak when (`rewards.detector.parse_detector`). `compat` names
    published evaluators. Answers are set against chance (`rewards.chance`). With a `recogniser`, words are
    those that it hears (`align.recognition`); their error rate against the agent's text is shown, and what the policy's
    codec alone does to speech.
    """
    console = console or make_console()
    find_acoustics(acoustics)  # a mistake in it costs nothing yet
    detector = parse_detector(activity) or ENERGY
    grader = Grader(parse_compat(compat), detector)
    if out is not None:
        check_out_file(out, "--out")
    if episodes is not None:
        check_out_folder(episodes, "--episodes")
    store = Store(episodes) if episodes is not None else None
    listener = Listener(recogniser) if recogniser else None
    pack = Pack.load(pack_path, users)
    system = find_system(policy, frames, prompt, context, dtype)

    ledgers: list[dict[str, Any]] = []

    def watch(key: Key, episode: Episode, words: Sequence[Word] | None) -> None:
        if isinstance(system, Live):
            ledgers.append(episode.meta["latency_ledger"])
        grader.add(key, episode, words)
        if store is not None:
            store.add(key, episode, words)

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
            acoustics=acoustics,
            activity=detector,
            transcribe=listener,
            watch=watch,
            on_done=advance,
        )
    if ledgers and all("mute" in one["faults"] for one in ledgers):
        faults = summary(ledgers)["faults"]
        raise UptakeError(f"{policy}: sent no sound in {len(ledgers)} conversations (faults {faults}); see its own log")
    if store is not None:
        store.close(found)
    result = grader.result(found)
    print_result(console, result)
    if ledgers:
        result["latency_ledger"] = summary(ledgers)
        told = json.dumps(result["latency_ledger"])
        console.print(f"measured in real time: {told}", markup=False, highlight=False, soft_wrap=True)
    if listener and isinstance(system, MoshiPolicy):
        errors, words = codec_floor(listener.transcribe, system.codec, pack.clips("agent"))
        result["codec_word_error_rate"], result["codec_words"] = errors / words, words
        console.print(
            f"the pack's agent clips after the policy's codec, the floor: {number(errors / words, '%')} wrong of "
            f"{words} words"
        )
    if store is not None:
        told = f"conversations: {store.folder}; measure them again with: uptake regrade {store.folder}"
        console.print(told, soft_wrap=True, highlight=False)
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
    acoustics: str = "clean",
    prompt: PromptConfig | None = None,
    context: int = 0,
    dtype: str = "",
    console: Console | None = None,
) -> None:
    """Play one conversation; write its record, `timeline.png` with our rewards' verdicts on it, and `stereo.wav` with
    what it hears on the left."""
    console = console or make_console()
    find_acoustics(acoustics)
    check_out_folder(out, "--out")
    pack = Pack.load(pack_path, users)
    split = pack.scenario(scenario).split
    system = find_system(policy, frames, prompt, context, dtype)
    (episode,) = play(system, pack, [(scenario, variant)], split=split, seed=seed, frames=frames, acoustics=acoustics)
    episode.save(out)
    write_look(episode, out, Composition(OURS).score(episode))
    words = " ".join(word.text for word in episode.transcript)
    console.print(f"{episode.seconds:.1f} s written to [bold]{out}[/]", soft_wrap=True)
    if words:
        console.print(f"the agent said: {words}", markup=False, highlight=False)
