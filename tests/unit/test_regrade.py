"""A stored evaluation graded again is the evaluation; a folder of Full-Duplex-Bench read back is the conversation."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from align.evaluation import Evaluation, evaluate, examples
from align.loading import BASELINES
from align.stored import Store, find_stored
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import Pack
from launch.evaluate import run_evaluation, run_rollout
from launch.grading import Grader, parse_compat, print_result
from launch.regrade import regrade, run_export, run_regrade
from rewards.aggregate import aggregate
from rewards.compat import EVALUATORS
from rewards.compat.fdb_folders import export_episodes, read_folders
from rewards.measures import measure
from tests.packs import write_tiny_pack
from tests.unit.test_rewards_episodes import conversation, event, words

QUIET = {"variants": 1, "frames": 75, "seed": 3, "batch": 16, "recogniser": ""}


def quiet() -> Console:
    """A console that shows nothing and remembers what it was told."""
    return Console(width=200, record=True, file=io.StringIO())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a cascade on the tiny pack, its conversations and all published figures stored."""
    root = tmp_path_factory.mktemp("stored")
    pack = write_tiny_pack(root / "tiny")
    run_evaluation(
        "vad_200", str(pack), "train", **QUIET, out=root / "eval.json", episodes=root / "talk", compat=["all"],
        console=quiet(),
    )  # fmt: skip
    return root


def test_a_stored_evaluation_graded_again_gives_every_figure_to_the_last_digit(stored: Path) -> None:
    console = quiet()
    run_regrade(stored / "talk", compat=["all"], out=stored / "again.json", console=console)
    before, after = (json.loads((stored / name).read_text()) for name in ("eval.json", "again.json"))
    told = after.pop("stored")
    assert after == before
    assert (told["conversations"], told["on_disk"], told["changed"]) == (10, 10, [])
    assert before["rows"] and before["by_type"] and set(before["compat"]) == set(EVALUATORS)
    printed = console.export_text()
    assert "identical to what was stored: every measurement of all 10 conversations" in printed
    for name in EVALUATORS:
        assert f"{name} (" in printed


def test_a_conversation_that_was_tampered_with_is_noticed_and_named_by_its_measures(stored: Path) -> None:
    found = find_stored(stored / "talk")[0]
    place = next(place for place in found.places if Episode.load(place).meta["scenario"] == "turn")
    good = Episode.load(place)
    try:
        silent = Episode(good.mic, good.user, np.zeros_like(good.agent), good.events, (), good.meta)
        silent.save(place)
        console = quiet()
        run_regrade(stored / "talk", compat=[], out=stored / "changed.json", console=console)
        changed = json.loads((stored / "changed.json").read_text())["stored"]["changed"]
        assert {"turn_response", "talk_ratio", "latency_s/A1"} <= set(changed)
        assert "differs from what was stored" in console.export_text()
    finally:
        good.save(place)


def test_words_that_were_heard_are_stored_and_judged_again(tmp_path: Path) -> None:
    pack = Pack.load(str(write_tiny_pack(tmp_path / "tiny")))

    def hear(episode: Episode) -> tuple[Word, ...]:
        return tuple(Word("sunny", word.onset, word.offset) for word in episode.transcript)

    store, grader = Store(tmp_path / "talk"), Grader(parse_compat(["fdb_v1"]))

    def watch(key, episode, heard):
        grader.add(key, episode, heard)
        store.add(key, episode, heard)

    found = evaluate(BASELINES["oracle"], pack, "test", name="x", variants=2, frames=60, transcribe=hear, watch=watch)
    store.close(found)
    before = grader.result(found)
    after = regrade(find_stored(tmp_path / "talk")[0], Grader(parse_compat(["fdb_v1"])), quiet())
    assert after.pop("stored")["changed"] == []
    assert after == before
    assert after["word_error_rate"] > 0.5


def test_the_conversations_of_a_run_are_checked_against_its_figures(tmp_path: Path) -> None:
    pack = Pack.load(str(write_tiny_pack(tmp_path / "tiny")))
    keep = examples(pack.scenarios("train"), 3)
    for side, agent in (("before", "silent"), ("after", "oracle")):
        found = evaluate(BASELINES[agent], pack, "train", name=side, variants=1, frames=60, keep=keep)
        for example in keep:
            found.kept[example.key].save(tmp_path / "run" / "episodes" / side / example.folder)
        found.save(tmp_path / "run" / side / "evaluation.json")
    console = quiet()
    run_regrade(tmp_path / "run", compat=[], out=tmp_path / "run.json", console=console)
    said = console.export_text()
    assert said.count("identical to what was stored: every measurement of the 3 of 10 conversations") == 2
    assert set(json.loads((tmp_path / "run.json").read_text())) == {"before", "after"}


def test_an_episode_by_itself_can_be_graded(tmp_path: Path) -> None:
    pack = write_tiny_pack(tmp_path / "tiny")
    run_rollout("oracle", str(pack), "turn", variant=0, frames=90, seed=1, out=tmp_path / "one", console=quiet())
    run_regrade(tmp_path / "one", compat=["eva"], out=tmp_path / "one.json", console=quiet())
    result = json.loads((tmp_path / "one.json").read_text())
    assert result["stored"] is None
    assert {row["measure"]: row["value"] for row in result["rows"]}["turn_response"] == 1.0
    assert result["compat"]["eva"]["rows"][0]["columns"]["as coded"]["value"] > 0.5


def test_what_cannot_be_graded_is_said_in_one_line(tmp_path: Path, stored: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UptakeError, match="holds no conversations; store some with: uptake eval POLICY --episodes"):
        run_regrade(tmp_path / "empty", compat=[], out=None, console=quiet())
    with pytest.raises(UptakeError, match="no such folder"):
        run_regrade(tmp_path / "none", compat=[], out=None, console=quiet())
    (tmp_path / "cut" / "episodes").mkdir(parents=True)
    with pytest.raises(UptakeError, match="its evaluation was interrupted"):
        run_regrade(tmp_path / "cut", compat=[], out=None, console=quiet())
    with pytest.raises(UptakeError, match="is not empty; give a new folder"):
        run_evaluation("silent", "core", "test", **QUIET, out=None, episodes=stored / "talk", console=quiet())
    flac = sorted((stored / "talk" / "episodes").iterdir())[0] / "agent.flac"
    data = flac.read_bytes()
    try:
        flac.write_bytes(b"no audio")
        with pytest.raises(UptakeError, match=r"agent\.flac: cannot be decoded"):
            run_regrade(stored / "talk", compat=[], out=None, console=quiet())
    finally:
        flac.write_bytes(data)


def test_an_agent_without_any_text_is_judged_by_all_but_those_who_count_words() -> None:
    grader = Grader(parse_compat(["all"]))
    episode = conversation([(4.3, 6.0)], [event("A1", 1.0, 4.0)], meta={"scenario": "x"})
    grader.add(("x", 0), episode, None)
    scenarios = {"x": [measure(episode)]}
    found = grader.result(Evaluation("mute", "test", 1, 175, 0, "tiny", "", scenarios, {}))
    assert "the agent has no text" in found["compat"]["fdb_v1"]["note"]
    assert found["compat"]["eva"]["rows"][0]["columns"]["as coded"]["value"] == pytest.approx(0.8, abs=0.01)
    console = quiet()
    print_result(console, found)
    assert "fdb_v1 has no figures" in console.export_text()


@pytest.mark.parametrize(
    "spec, message",
    [
        ("fdb", "no evaluator 'fdb'; did you mean 'fdb_v1'"),
        ("fdb_v1:clamped", "fdb_v1 has no bug 'clamped'"),
        ("all:early_is_instant", "bugs belong to one evaluator"),
    ],
)
def test_a_published_evaluator_or_bug_that_is_unknown_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UptakeError, match=message):
        parse_compat([spec])


def test_a_column_of_its_own_has_exactly_the_bugs_that_were_asked_for() -> None:
    columns = parse_compat(["eva", "eva:yield_alone,overlap_alone"])["eva"]
    assert columns["as coded"] == set(EVALUATORS["eva"].bugs)
    assert columns["bugs off"] == set()
    assert columns["with yield_alone, overlap_alone"] == {"yield_alone", "overlap_alone"}


# ---- Full-Duplex-Bench folders


def talks() -> list[Episode]:
    """Every task of version 1 and two categories of version 1.5, with an agent that does something in each."""
    events = [
        event("A1", 0.5, 3.0), event("B1", 1.0, 1.8), event("C1", 5.0, 6.0, sem=5.4), event("D1", 7.5, 7.9),
        event("B7", 9.0, 13.0, bc0=10.0, bc1=12.0),
    ]  # fmt: skip
    agents = [[(1.1, 1.5), (3.2, 5.3), (6.4, 8.6), (10.1, 10.5)], [(2.0, 12.5)], []]
    found = []
    for agent in agents:
        said = [word for on, off in agent for word in words(" ".join(["la"] * int((off - on) / 0.2)), on, 0.2)]
        found.append(
            conversation(agent, events, user=[(0.5, 1.0), (1.8, 3.0)], transcript=said, meta={"scenario": "x"})
        )
    return found


def test_episodes_exported_and_read_back_have_the_same_figures_of_the_benchmark(tmp_path: Path) -> None:
    counts = export_episodes(((episode, None) for episode in talks()), tmp_path / "fdb", 24_000)
    assert counts == {
        "v1.0/pause_handling": 3, "v1.0/smooth_turn_taking": 3, "v1.0/user_interruption": 3, "v1.0/backchannel": 3,
        "v1.5/user_interruption": 3, "v1.5/user_backchannel": 3,
    }  # fmt: skip
    evaluator = EVALUATORS["fdb_v1"]
    back = read_folders(tmp_path / "fdb" / "v1.0")
    assert len(back) == 12
    for bugs in (set(evaluator.bugs), set(), set(evaluator.bugs) - {"cropped_interruption"}):
        here = aggregate([evaluator.measurement(episode, None, bugs) for episode in talks()])
        there = aggregate([evaluator.measurement(episode, None, bugs) for episode in back])
        assert there == pytest.approx(here, nan_ok=True, abs=1e-9)
        assert not np.isnan(here["pause_tor"] + here["backchannel_jsd"] + here["interruption_tor"])


def test_the_folders_are_laid_out_as_the_benchmarks_scripts_read_them(tmp_path: Path) -> None:
    export_episodes([(talks()[0], None)], tmp_path, 16_000)
    for task, mark in (
        ("pause_handling", "pause"),
        ("smooth_turn_taking", "turn_taking"),
        ("user_interruption", "interrupt"),
    ):
        place = tmp_path / "v1.0" / task / "0"
        annotation = json.loads((place / f"{mark}.json").read_text())
        assert all(len(record["timestamp"]) == 2 for record in annotation)
        said, heard = (soundfile.info(place / name) for name in ("output.wav", "input.wav"))
        assert (said.samplerate, said.channels, said.subtype) == (16_000, 1, "PCM_16")
        assert said.frames == heard.frames
        chunks = json.loads((place / "output.json").read_text())["chunks"]
        assert all(set(chunk) == {"text", "timestamp"} for chunk in chunks)
    # The turn ends at 3.0 s of the conversation, and its clip begins with the conversation.
    turn = json.loads((tmp_path / "v1.0" / "smooth_turn_taking" / "0" / "turn_taking.json").read_text())
    assert turn[0]["timestamp"][0] == pytest.approx(3.0)
    # The interruption 5-6 s, in a clip that begins with the context at 0.5 s.
    barge = json.loads((tmp_path / "v1.0" / "user_interruption" / "0" / "interrupt.json").read_text())
    assert barge[0]["timestamp"] == pytest.approx([4.5, 5.5])
    assert set(barge[0]) == {"context", "interrupt", "timestamp"}
    reference = json.loads((tmp_path / "v1.0" / "icc_gt_distribution.json").read_text())
    assert sum(reference["0"]) == pytest.approx(1.0)
    overlap = json.loads((tmp_path / "v1.5" / "user_backchannel" / "0" / "metadata.json").read_text())
    assert set(overlap) == {"context_text", "current_turn_text", "timestamps"}


def test_the_listeners_of_the_benchmark_are_the_reference_where_its_file_lies_beside_the_items(tmp_path: Path) -> None:
    export_episodes([(talks()[0], None)], tmp_path, 24_000)
    (tmp_path / "v1.0" / "backchannel" / "0" / "opportunities.json").unlink()  # the data set has none
    evaluator = EVALUATORS["fdb_v1"]

    def jsd() -> float:
        return aggregate([evaluator.measurement(e, None, []) for e in read_folders(tmp_path)])["backchannel_jsd"]

    ours = jsd()
    file = tmp_path / "v1.0" / "icc_gt_distribution.json"
    bins = len(json.loads(file.read_text())["0"])
    file.write_text(json.dumps({"0": [0.0] * (bins - 1) + [1.0]}))  # nobody listens but at the very end
    assert jsd() != pytest.approx(ours)
    file.write_text(json.dumps({"0": "high"}))
    with pytest.raises(UptakeError, match=r"icc_gt_distribution\.json: no lists of numbers"):
        jsd()
    file.unlink()
    assert np.isnan(jsd())


def test_a_folder_without_annotation_or_with_a_broken_one_is_named(tmp_path: Path) -> None:
    export_episodes([(talks()[0], None)], tmp_path, 16_000)
    place = tmp_path / "v1.0" / "pause_handling" / "0"
    (place / "pause.json").write_text('[{"text": "x"}]')
    with pytest.raises(UptakeError, match=r"pause\.json: no list of marks"):
        read_folders(tmp_path)
    (place / "pause.json").unlink()
    with pytest.raises(UptakeError, match=r"pause\.json: no such file; an item of pause_handling needs it"):
        read_folders(tmp_path)
    place.parent.rename(tmp_path / "v1.0" / "something")
    with pytest.raises(UptakeError, match="'something' names no task"):
        read_folders(tmp_path)
    with pytest.raises(UptakeError, match="is not empty"):
        export_episodes([], tmp_path, 16_000)


def test_a_stored_evaluation_is_exported_and_its_export_graded(stored: Path) -> None:
    console = quiet()
    run_export(stored / "talk", stored / "fdb", rate=24_000, console=console)
    assert "smooth_turn_taking" in console.export_text()
    run_regrade(stored / "fdb", compat=["fdb_v1"], out=stored / "fdb.json", console=quiet())
    there = json.loads((stored / "fdb.json").read_text())["compat"]["fdb_v1"]["rows"]
    here = json.loads((stored / "eval.json").read_text())["compat"]["fdb_v1"]["rows"]
    for row, other in zip(here, there, strict=True):
        for column in ("as coded", "bugs off"):
            one, two = row["columns"][column], other["columns"][column]
            assert one["cases"] == two["cases"], row["figure"]
            assert two["value"] == pytest.approx(one["value"], abs=1e-9), row["figure"]
