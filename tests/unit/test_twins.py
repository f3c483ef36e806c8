"""Twins without a script, and twins whose voice is drawn: nothing before the decision point tells them apart."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pytest

from envs.errors import UptakeError
from envs.pack import Clip, Pack
from envs.scenario import load_scenarios


@pytest.fixture(scope="module")
def core() -> Pack:
    return Pack.load("core")


PERSONA = "{says: {question: 1}, barges_in: 0.5, intents: {new_topic: 1}}"
USER = "user: {driver: reactive, persona: " + PERSONA + "}"


def _users(tmp_path: Path, one: str, other: str, more: str = "") -> Path:
    head = "---\nschema: duplex.scenario/1\nid: {}\nsplit: test\ntwin: {}\nseed_group: g\n{}\n"
    path = tmp_path / "twins.yaml"
    path.write_text(head.format("a", "b", one) + head.format("b", "a", other) + more)
    return path


@pytest.mark.parametrize(
    "other",
    [USER.replace("barges_in", "holds: 0, barges_in"), USER.replace("new_topic", "acknowledgement"),
     USER + "\nacoustics: cafe"],
)  # fmt: skip
def test_reactive_twins_may_differ_in_whether_they_go_on_in_why_they_interrupt_and_in_the_channel(
    core: Pack, tmp_path: Path, other: str
):
    assert len(core.with_users(_users(tmp_path, USER, other)).scenarios()) == 2


@pytest.mark.parametrize(
    "one, other, message",
    [
        (USER, USER.replace("question", "statement"), r"says is \[\('question', 1.0\)\] here and \[\('statement'"),
        (USER.replace("1}", "1, pause: 1}", 1), USER.replace("question: 1", "pause: 1, question: 1"), "says is"),
        (USER, USER.replace("barges_in", "patience_s: 1, barges_in"), "patience_s is 4.0 here and 1 there"),
        (USER, USER.replace("0.5", "0.6"), "barges_in is 0.5 here and 0.6 there"),
        (USER, USER.replace("new_topic", "stop") + "\nacoustics: cafe", "acoustics are others there, and so is"),
        (USER, USER.replace("intents", "holds: 0.5, intents").replace("reactive,", "reactive, laws: l.yaml,"),
         "laws is 'human' here and '.*l.yaml' there"),
        ("user: {driver: policy, policy: pocket}", "user: {driver: policy, policy: vad_700}", "the user is another"),
    ],
)  # fmt: skip
def test_users_without_a_script_that_differ_from_the_start_are_no_twins(
    core: Pack, tmp_path: Path, one: str, other: str, message: str
):
    shutil.copy(files("envs").joinpath("users", "laws.yaml"), tmp_path / "l.yaml")
    with pytest.raises(UptakeError, match=f"before the decision point: {message}"):
        core.with_users(_users(tmp_path, one, other))


def _saying(*texts: str) -> str:
    at = ["at: 1s", "when: {after: i0, gap: 2s}"]
    items = [f"{{id: i{i}, type: A3, say: {text!r}, {at[i]}}}" for i, text in enumerate(texts)]
    return "user: {script: [" + ", ".join(items) + "]}"


def test_twins_that_say_the_same_first_may_not_be_cast_by_what_comes_after(tmp_path: Path):
    clips = {
        name: Clip(name, Path(name), 24000, text, voice=voice, split="test")
        for name, voice, text in [("a1", "v1", "one"), ("a2", "v2", "one"), ("b1", "v1", "two"), ("c1", "v2", "six")]
        + [("d1", "v1", "ten"), ("d2", "v2", "ten"), ("e1", "v1", "all"), ("e2", "v2", "all")]
    }

    def pack(first: Sequence[str], second: Sequence[str]) -> Pack:
        scenarios = load_scenarios(_users(tmp_path, _saying(*first), _saying(*second)))
        return Pack("p", "0", clips, scenarios, "", tmp_path)

    assert pack(("one", "ten"), ("one", "all"))  # both voices say all of both
    with pytest.raises(UptakeError, match=r"its voice is one of \['v1'\] here and of \['v2'\] there"):
        pack(("one", "two"), ("one", "six"))
    with pytest.raises(UptakeError, match=r"of \['v1', 'v2'\] here and of \['v1'\] there"):
        pack(("one", "ten"), ("one", "two"))
    with pytest.raises(UptakeError, match=r"of \['v1', 'v2'\] here and of \['v1'\] there"):
        pack(("one",), ("one", "two"))
