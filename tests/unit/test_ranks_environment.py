"""What a launcher tells a rank is whole, or is refused in one line before anything waits for the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from align.ranks import MEETING, check_environment
from envs.errors import UptakeError
from launch.cli import app

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def refusal(environment: dict[str, str]) -> str:
    """What is said of it; empty if it is taken."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*MEETING, "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            check_environment()
        except UptakeError as error:
            return str(error)
    return ""


@given(st.sets(st.sampled_from(MEETING)))
def test_what_several_ranks_need_is_told_together(given: set[str]) -> None:
    said = refusal({name: WHOLE[name] for name in given})
    if given == set(MEETING) or not given & {"RANK", "WORLD_SIZE"}:
        assert said == ""
    else:
        assert f"without {', '.join(name for name in MEETING if name not in given)}; unset it, or let torchrun" in said


def test_one_rank_needs_nothing() -> None:
    for alone in ({}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}):
        assert refusal(alone) == ""


@given(
    st.sampled_from(["RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"]),
    st.text(st.characters(exclude_categories=["Cc", "Cs"])),
)
def test_a_number_that_is_none_is_named(name: str, value: str) -> None:
    least = 0 if name.endswith("RANK") else 1
    if value.isascii() and value.isdigit() and int(value) >= least:
        value = f"-{value}"
    assert f"{name} = '{value}' in the environment: must be a whole number of at least {least}" in refusal(
        WHOLE | {name: value}
    )


@given(st.integers(0, 20), st.integers(1, 20))
def test_a_rank_is_one_of_those_that_there_are(rank: int, world: int) -> None:
    said = refusal(WHOLE | {"RANK": str(rank), "WORLD_SIZE": str(world)})
    assert (said == "") == (rank < world)
    assert said == "" or f"RANK = {rank} in the environment: with WORLD_SIZE = {world} it is 0 to {world - 1}" in said


def test_a_port_is_one_that_there_is() -> None:
    assert refusal(WHOLE | {"MASTER_PORT": "65535"}) == ""
    assert "MASTER_PORT = 65536 in the environment: must be at most 65535" in refusal(WHOLE | {"MASTER_PORT": "65536"})
    assert "without MASTER_ADDR" in refusal(WHOLE | {"MASTER_ADDR": ""})


@pytest.mark.parametrize(
    "command", [["train", "quickstart", "grpo.collective_timeout=5"], ["sft", "pocket", "data.path=x"]]
)
@pytest.mark.parametrize("half", [("WORLD_SIZE", "2"), ("RANK", "1"), ("RANK", "x")])
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_command_says_it_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, command: list[str], half: tuple[str, str], flags: list[str]
) -> None:
    for name in (*MEETING, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(*half)
    done = CliRunner().invoke(app, [*command, *flags])
    assert isinstance(done.exception, UptakeError) and f"{half[0]} = " in str(done.exception)
