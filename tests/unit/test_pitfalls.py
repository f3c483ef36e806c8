"""`docs/pitfalls.md` and the tests it names, and those of them that belong to no single part of the world."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import numpy as np
import pytest

from envs import agents
from envs.clock import CLOCK
from envs.duplex_vector_env import SIMULATOR_VERSION, DuplexVectorEnv
from envs.pack import BUILTIN, Pack
from tests.packs import tiny_pack
from tests.reactive_pack import reactive_pack

ROOT = Path(__file__).parents[2]
PITFALLS = 20
"""As many as `simulated-users.md` of the project's dossiers lists."""


def rows() -> list[list[str]]:
    page = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_pitfall_names_tests_that_exist() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(rows()) == PITFALLS
    for pitfall, _, _, tests in rows():
        named = re.findall(r"`(\w+)`", tests)
        assert named, pitfall
        assert not set(named) - there, pitfall


def calls_in(path: Path) -> set[str]:
    """The dotted names that a file calls or hands on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        f"{node.module}.{name.name}" if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def test_nothing_in_the_world_reads_a_clock_sleeps_or_draws_from_a_generator_of_everybody() -> None:
    ours = {"default_rng", "SeedSequence", "Generator"}
    found = set()
    for path in sorted((ROOT / "envs").rglob("*.py")):
        for name in calls_in(path):
            first = name.partition(".")[0]
            clock = first in ("time", "datetime") or name == "asyncio.sleep"
            drawn = re.match(r"(?:np|numpy)\.random\.(\w+)", name)
            shared = first == "random" or (drawn is not None and drawn[1] not in ours)
            if (clock or shared) and not (clock and str(path.relative_to(ROOT)).startswith("envs/chat/")):
                found.add(f"{path.relative_to(ROOT)}: {name}")
    assert not found
    assert "time.sleep" in calls_in(Path(__file__))  # it would have seen it


def test_an_agent_that_takes_its_time_meets_the_same_conversation(tmp_path: Path) -> None:
    pack, heard = tiny_pack(tmp_path), []
    for nap in (0.0, 0.02):
        env = DuplexVectorEnv(pack, 1, frames=25, acoustics="telephone")
        mic = [env.reset(seed=2, options={"scenario": "turn"})[0]["mic"]]
        for _ in range(25):
            time.sleep(nap)
            mic.append(env.step(np.zeros((1, CLOCK.frame), np.float32))[0]["mic"])
        heard.append(np.stack(mic))
    assert np.array_equal(*heard)


def test_users_who_listen_never_ask_what_the_agent_said(tmp_path: Path) -> None:
    text = "schema: duplex.scenario/1\nid: caller\nsplit: train\nuser: {driver: reactive}\n---\n"
    pack = reactive_pack(tmp_path, text)
    env = DuplexVectorEnv(pack, 2, frames=100)
    agent = agents.EnergyVad(2, pack, ms=200)

    def words(row: int) -> None:
        pytest.fail("a user who listens has asked for a transcript")

    episodes = agents.converse(env, agent, 3, {"scenario": ["caller", "script"]}, words)
    assert all(episode.events and episode.agent.any() for episode in episodes)


def test_a_record_says_which_simulator_driver_pack_and_seed_it_is_of(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    env = DuplexVectorEnv(pack, 1, frames=5)
    env.reset(seed=11, options={"scenario": "turn", "variant": 4})
    meta = env.episode(0).meta
    told = {name: meta[name] for name in ("simulator", "driver", "pack", "pack_hash", "seed", "variant", "scenario")}
    assert told == {
        "simulator": SIMULATOR_VERSION, "driver": "script", "pack": pack.name, "pack_hash": pack.hash, "seed": 11,
        "variant": 4, "scenario": "turn",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.parent.name for path in BUILTIN.glob("*/pack.json")))
def test_every_pack_that_ships_says_whose_its_voices_are(name: str) -> None:
    licences = (BUILTIN / name / "LICENCES.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in licences
    for voice in {clip.voice for clip in Pack.load(name).clips()} - {"synthetic", ""}:
        assert re.search(rf"\b{voice}\b", licences), voice
