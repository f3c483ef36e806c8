"""`uptake train`: measure the start, train, measure again, compare, report.

Whatever can be known to be wrong is found before anything expensive starts: config, pack, checkpoint, rewards, disk.
Every stage leaves its result in the run folder, so `--resume` repeats nothing that was finished:

    .lock                held by the process that trains (`launch.lock`)
    start.json           SHA-256 of the policy's files and the pack
    config.yaml          every field of the configuration
    before/ after/       figures of each conversation (`evaluation.json`)
    episodes/            the conversations that the report plays, before and after
    metrics.jsonl        one line an iteration
    checkpoints/         to go on from
    policy/              the trained checkpoint, in the layout that training started from
    eval.json            the comparison
    report.html
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from align import curriculum, origin, plan
from align.checkpoints import list_checkpoints
from align.comparison import compare
from align.config import TrainConfig, dump_config, load_config, save_config
from align.evaluation import Evaluation, check_hears, evaluate, examples, write_json
from align.judging import check_axes
from align.loading import BASELINES, load_policy
from align.memory import peak_memory
from align.monitor import duration
from align.policies.base import DuplexPolicy
from align.ranks import start_ranks, stop_ranks, together_from_here, watch
from align.report import save_conversation, write_report
from align.rollout import check_context
from align.trainers import grpo, learner, ppo
from align.unheard import most_plays
from envs.acoustics.conditions import PEOPLED
from envs.acoustics.config import find_acoustics
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError, nearest
from envs.pack import Pack
from envs.scenario import Scenario
from launch.judge import judge_comment, open_judge
from launch.meaning import open_meaning
from launch.run_folder import (
    CONFIG,
    alone,
    check_disk,
    check_folder,
    check_start,
    check_unchanged,
    needed_disk,
    started_with,
)
from launch.terminal import comparison_tables, counting, make_console, ranking_line
from rewards.compose import Composition

SAME = (
    "policy", "prompt", "context", "pack", "users", "axes", "acoustics", "seed", "rewards", "schedules", "activity",
    "embedding", "evaluation",
)  # fmt: skip
"""Settings that a run keeps when it is resumed."""


def run_training(
    name_or_path: str,
    overrides: Sequence[str],
    *,
    resume: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> Path | None:
    """Run a configuration and return the report's path (None for a dry run and on all ranks but the first).

    Raises:
        UptakeError: a mistake in the configuration, the pack, the checkpoint or the rewards; a run folder that is in
            use already, or none to resume.
    """
    started = time.perf_counter()
    first = os.environ.get("RANK", "0") == "0"
    console = console or make_console() if first else Console(quiet=True)
    config = load_config(name_or_path, overrides)
    with together_from_here(config.algorithm.collective_timeout):
        job = prepare(config)
        judge = job.composition.judge
        try:
            if not dry_run:
                if first and judge is not None:
                    judge.probe(job.composition.rubrics[0])
                with alone(config.folder, resume) if first else nullcontext():
                    return _run(job, console, started, resume)
            console.print(dump_config(config), end="", markup=False, highlight=False)
            if judge is not None:
                comment = judge_comment(judge, job.composition)
                console.print(comment, end="", markup=False, highlight=False, soft_wrap=True)
            console.print(plan_comment(job), end="", markup=False, highlight=False, soft_wrap=True)
            return None
        finally:
            if judge is not None:
                judge.close()


def _run(job: Job, console: Console, started: float, resume: bool) -> Path | None:
    config, judge, rank = job.config, job.composition.judge, int(os.environ.get("RANK", "0"))
    first, folder = rank == 0, config.folder
    if first:
        needed = needed_disk(folder, job.policy.model, job.policy.spec.hidden, config.algorithm)
        claim(folder, config, resume, judged=judge is not None, needed=needed, contents=job.contents)
    if judge is not None:
        judge.record_in(folder, job.composition.rubrics, rank)
    start_ranks(config.algorithm.collective_timeout)
    watch().meet("claimed")  # a large policy takes a while to read
    before = measure(job, "before", folder, console)
    # wandb would print its own summary and listen in on the progress bar; what it logs is not touched.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    if first:
        algorithm = config.algorithm
        console.print(
            f"[bold]training[/] ({algorithm.section}): {algorithm.iterations} iterations, {folder / 'metrics.jsonl'}"
        )
    learn(job, folder, resume=resume, tail=before.seconds)
    after = measure(job, "after", folder, console)
    scripted = [measure(job, name, None, console) for name in config.evaluation.baselines]
    peak = sum(watch().collect(peak_memory()))
    report = _conclude(job, before, after, scripted, peak, console, started) if first else None
    # A node that had ended would count as done, and could not help the first one should that have to go on again.
    watch().meet("reported")
    stop_ranks()
    return report


def _conclude(
    job: Job,
    before: Evaluation,
    after: Evaluation,
    scripted: Sequence[Evaluation],
    peak: int,
    console: Console,
    started: float,
) -> Path:
    """Compare and report; `peak` bytes of memory is what all ranks took."""
    config, folder = job.config, job.config.folder
    result = compare(
        before,
        after,
        scripted,
        run={
            "name": config.name,
            "policy": config.policy,
            "seed": config.seed,
            "iterations": config.algorithm.iterations,
        },
        resamples=config.evaluation.resamples,
        seed=config.evaluation.seed,
    )
    result["run"] |= {"seconds": round(time.perf_counter() - started, 1), "peak_memory_bytes": peak}
    write_json(result, folder / "eval.json")
    console.print(*comparison_tables(result, console.width), sep="\n")
    verdicts = [row["verdict"] for row in result["rows"]]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in ("better", "worse", "unchanged")]
    console.print(f"{', '.join(counts)}: a change counts when its 95 % interval excludes zero")
    if line := ranking_line(result):
        console.print(line, highlight=False)
    report = write_report(folder)
    took = duration(time.perf_counter() - started)
    console.print(f"{took} from the configuration to the report, at most {peak / 2**30:.1f} GiB of memory")
    console.print(f"report: [bold]{report.resolve()}[/]", soft_wrap=True)
    return report


@dataclass(frozen=True)
class Job:
    """What a configuration names, found and checked."""

    config: TrainConfig
    pack: Pack
    training: list[Scenario]
    """That are trained on."""
    scenarios: list[Scenario]
    """Of the split that is measured."""
    policy: DuplexPolicy
    composition: Composition

    def contents(self) -> dict[str, str]:
        """What a run of it starts from, by SHA-256; reads every weight."""
        pack = f"pack {self.config.pack}" + (f" with users {self.config.users}" if self.config.users else "")
        return {pack: self.pack.hash, **origin.contents(self.config.policy, self.policy)}


def prepare(config: TrainConfig) -> Job:
    """Load all that a configuration names; raises `UptakeError` for the first thing that is wrong."""
    config.algorithm.check(int(os.environ.get("WORLD_SIZE", "1")))
    for name in config.evaluation.baselines:
        if name not in BASELINES:
            raise UptakeError(f"evaluation.baselines: no scripted agent '{name}'{nearest(name, BASELINES)}")
        check_hears(config.activity, BASELINES[name], f"{name} of evaluation.baselines")
    terms = {term: weight for term, weight in config.rewards.items() if weight}
    config.activity.check()  # before a judge is opened
    meaning = open_meaning(config.embedding, terms)
    composition = Composition(
        terms,
        judge=open_judge(config.judge, terms),
        activity=config.activity,
        meaning=meaning,
        schedules=config.schedules,
    )
    pack = Pack.load(config.pack, config.users)
    check_sound(config, pack)
    training = curriculum.of_axes(pack.scenarios("train"), config.axes)
    check_axes(composition, training)
    scenarios = pack.scenarios(config.evaluation.split)
    if not scenarios:
        raise UptakeError(f"pack '{config.pack}' has no scenario in the split '{config.evaluation.split}'")
    # The precision of training is that of the measurements before and after it.
    dtype = torch.bfloat16 if config.algorithm.bf16 else torch.float32
    policy = load_policy(config.policy, config.prompt, config.context, dtype)
    section, context = config.algorithm.section, config.algorithm.context_frames
    what = f"{section}.frames" + (f" and {section}.max_context_s together" if context else "")
    check_context(policy.spec, config.algorithm.frames + context, what)
    check_context(policy.spec, config.evaluation.frames, "evaluation.frames")
    return Job(config, pack, training, scenarios, policy, composition)


def check_sound(config: TrainConfig, pack: Pack) -> None:
    """Raise UptakeError where the acoustics cannot be had: a mix would say so only when it first draws them."""
    effects = find_acoustics(config.acoustics).effects
    for split in ("train", config.evaluation.split):
        voices = pack.speakers(split)
        if effects & PEOPLED and len(voices) < 2:
            raise UptakeError(
                f"acoustics = {config.acoustics!r}: babble and a second speaker need clips of another voice than the "
                f"user's; the split {split!r} of pack {config.pack!r} has voices: {len(voices)}. Leave them out"
            )


def plan_comment(job: Job) -> str:
    """What the run will take, as YAML comments below its configuration."""
    config, world = job.config.algorithm, int(os.environ.get("WORLD_SIZE", "1"))
    rows = config.conversations // world
    loading = plan.loading(job.policy.model, config)
    written = plan.written(job.policy.model, job.policy.spec.hidden, config)
    learner.choose_trained(job.policy.model, config)
    dealt = curriculum.cards(job.training)
    turns = [name for names in zip(*dealt.values(), strict=False) for name in names]  # axes take turns, as they will
    pace = plan.measure(job.policy, make_env(job, rows), turns, config)
    settings = job.config.evaluation
    spec = job.policy.spec
    measured = 2 * (spec.lived + settings.frames) * settings.variants * most_plays(job.scenarios) * pace.frame / rows
    needs = plan.memory(job.policy.model, spec, config, world, pace.activations, pace.lived_activations)
    needs |= plan.codec_memory(job.policy, rows)
    phases = plan.seconds(pace, config, rows, spec.lived)
    memory, *times = plan.lines(needs, phases, config.iterations, measured)
    found = [loading, memory, plan.peak(needs, job.policy.model, config), *times, plan.disk_line(*written, config)]
    return "".join(f"# {line}".rstrip() + "\n" for line in ["", *found])


def make_env(job: Job, rows: int) -> DuplexVectorEnv:
    """The world that a run trains in, `rows` conversations at a time."""
    config = job.config
    return DuplexVectorEnv(job.pack, rows, split="train", frames=config.algorithm.frames, acoustics=config.acoustics)


def learn(job: Job, folder: Path, *, resume: bool, tail: float) -> None:
    """Train with the algorithm whose section the configuration has.

    Args:
        tail: seconds that measuring after will take: as long as before; the baselines add next to nothing.
    """
    config = job.config

    envs = partial(make_env, job)
    world = (job.policy, envs, curriculum.cards(job.training), job.composition, folder)
    options: dict[str, Any] = {
        "seed": config.seed,
        "resume": resume and bool(list_checkpoints(folder / "checkpoints")),
        "tail": tail,
        "wandb_mode": config.wandb.mode,
        "wandb_project": config.wandb.project,
    }
    if config.grpo is not None:
        grpo.train(config.grpo, *world, **options)
    if config.ppo is not None:
        ppo.train(config.ppo, *world, **options)


def claim(
    folder: Path,
    config: TrainConfig,
    resume: bool,
    judged: bool = False,
    needed: int = 0,
    contents: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Take the run folder: a new one, or with `resume` the one that is there. Nothing in it is ever overwritten.

    Args:
        judged: a language model is asked, so it must be the same one.
        needed: bytes that it will write (`needed_disk`).
        contents: what it starts from (`Job.contents`).

    Raises:
        UptakeError: the folder holds a run and `resume` is false, or the other way round; it was started with or from
            something else; the disk is too full.
    """
    check_folder(folder, resume)
    if resume:
        old = started_with(folder, load_config)
        if old.algorithm.section != config.algorithm.section:
            raise UptakeError(
                f"{folder} was started with {old.algorithm.section}, now it is {config.algorithm.section}; resume it "
                "as it was, or start another run with name=NAME"
            )
        check_unchanged(folder, old, config, SAME)
        for name in ("model", "body", "transcript", "recogniser") if judged else ():
            if getattr(old.judge, name) != getattr(config.judge, name):
                raise UptakeError(
                    f"{folder} was started with judge.{name} = {getattr(old.judge, name)}, now it is "
                    f"{getattr(config.judge, name)}; another judge is another reward: start another run with name=NAME"
                )
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, needed, config.algorithm)
    check_start(folder, resume, contents())
    save_config(config, folder / CONFIG)


def measure(job: Job, name: str, folder: Path | None, console: Console) -> Evaluation:
    """Play the split with the policy ("before", "after") or a scripted agent.

    With a folder, the figures are kept in `<name>/evaluation.json` and the report's conversations in
    `episodes/<name>/`; what was measured before training is not measured again. All ranks call this.
    """
    settings, first = job.config.evaluation, dist.get_rank() == 0
    if folder is not None and name == "before":
        path = folder / name / "evaluation.json"
        done = watch().collect(Evaluation.load(path) if first and path.is_file() else None)[0]
        if done is not None:
            return done
    what = f"measuring {name.replace('_', ' ')}"
    watch().doing(what)
    keep = () if folder is None else examples(job.scenarios, settings.conversations)
    with counting(console, what, settings.variants * len(job.scenarios)) as advance:
        evaluation = evaluate(
            BASELINES.get(name, job.policy),
            job.pack,
            settings.split,
            name=name,
            variants=settings.variants,
            seed=settings.seed,
            frames=settings.frames,
            batch=settings.batch,
            acoustics=job.config.acoustics,
            activity=job.config.activity,
            keep=keep,
            on_done=advance,
            together=True,
        )
    if folder is not None:
        if first:
            for example in keep:
                episode = evaluation.kept[example.key]
                save_conversation(episode, job.composition.score(episode), folder / "episodes" / name / example.folder)
            evaluation.save(folder / name / "evaluation.json")
        watch().meet(f"kept {name}")  # a judge may have been asked
    return evaluation
