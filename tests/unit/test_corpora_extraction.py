"""A whole corpus: every planned segment found in every layout, every recording counted, every interruption survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.clock import CLOCK
from envs.corpora import extraction, synthetic
from envs.corpora.axes import AXES
from envs.corpora.extraction import extract
from envs.corpora.replay import load, load_segments
from envs.errors import UptakeError
from envs.pack import Pack
from tests.corpora import write_tones

ROOT = Path(__file__).parents[2]
FILES = ("recordings.jsonl", "segments.jsonl", "summary.json")
PAUSE = [[(1.0, 3.0), (3.5, 6.0)], [(20.0, 21.0)]]
TURN = [[(1.0, 6.0)], [(6.2, 12.0)]]


@pytest.fixture(scope="module")
def talk() -> synthetic.Talk:
    return synthetic.converse(synthetic.Voices.of(Pack.load("core")), np.random.default_rng([0, 0]))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def small_corpus(root: Path, count: int = 3) -> Path:
    for number in range(count):
        write_tones(root / f"call{number}.wav", PAUSE if number % 2 else TURN, 25.0, 8_000)
    return root


@pytest.mark.parametrize("layout", sorted(synthetic.WRITERS))
@pytest.mark.parametrize("activity", ["auto", "energy"])
def test_every_planned_segment_is_found_in_every_layout(
    tmp_path: Path, talk: synthetic.Talk, layout: str, activity: str
) -> None:
    for number in range(3 if layout == "plain" else 1):  # plain: WAV, FLAC with an RTTM, Opus with a TextGrid
        name = synthetic.WRITERS[layout](tmp_path / "corpus", number, talk)
    summary = extract(tmp_path / "corpus", tmp_path / "out", activity=activity)
    assert summary["layout"] == layout
    assert summary["recordings"]["rejected"] == {}
    found = [one for one in lines(tmp_path / "out" / "segments.jsonl") if one["recording"] == name]
    for axis, x, onset, offset in talk.planned:
        near = [
            one
            for one in found
            if one["axis"] == axis
            and one["roles"]["user"] == x
            and abs(one["onset"] - onset) + abs(one["offset"] - offset) < CLOCK.samples(0.2)
        ]
        assert len(near) == 1, (axis, x, onset, offset)
        assert near[0]["thresholds"] == summary["thresholds"]["version"]


def test_a_corpus_of_broken_files_is_read_to_its_end_and_each_is_counted(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 2)
    (root / "nothing.wav").touch()
    (root / "words.flac").write_text("no audio")
    write_tones(root / "mono.wav", [[(1, 2)]], 3.0)
    cut = write_tones(root / "cut.flac", PAUSE, 25.0)
    cut.write_bytes(cut.read_bytes()[:3000])
    summary = extract(root, tmp_path / "out")
    assert summary["recordings"]["found"] == 6
    assert summary["recordings"]["read"] == 2
    assert summary["recordings"]["rejected"] == {"damaged": 1, "empty": 1, "mono": 1, "unreadable": 1}
    told = {one["recording"]: one for one in lines(tmp_path / "out" / "recordings.jsonl")[1:]}
    assert told["mono"]["rejected"] == "mono" and "mono.wav" in told["mono"]["detail"]
    for axis in AXES:
        counts = summary["axes"][axis]
        assert counts["candidates"] == counts["accepted"] + sum(counts["rejected"].values())


def test_a_corpus_of_broken_files_alone_gives_an_empty_result_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.wav").write_bytes(b"x" * 100)
    summary = extract(tmp_path / "corpus", tmp_path / "out")
    assert summary["recordings"]["read"] == 0
    assert (tmp_path / "out" / "segments.jsonl").read_text() == ""


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 4)
    extract(root, tmp_path / "whole")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from envs.corpora.extraction import extract\n"
        "def report(done, total):\n"
        "    if done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "extract(Path(sys.argv[1]), Path(sys.argv[2]), report=report)\n"
    )
    out = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", code, str(root), str(out)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    with (out / "recordings.jsonl").open("a") as file:
        file.write('{"recording": "call')  # what a kill in the middle of a line leaves
    seen: list[int] = []
    extract(root, out, report=lambda done, total: seen.append(done))
    assert seen[0] == 2
    assert contents(out) == contents(tmp_path / "whole")


def test_only_what_has_changed_is_read_again(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 3)
    first = extract(root, tmp_path / "out")
    seen: list[int] = []
    extract(root, tmp_path / "out", report=lambda done, total: seen.append(done))
    assert seen == [3]
    write_tones(root / "call0.wav", PAUSE, 26.0, 8_000)
    (root / "call2.wav").unlink()
    seen.clear()
    again = extract(root, tmp_path / "out", report=lambda done, total: seen.append(done))
    assert seen == [1, 2]
    assert (first["recordings"]["found"], again["recordings"]["found"]) == (3, 2)
    assert again["axes"]["pause"]["accepted"] == 2


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 1)
    extract(root, tmp_path / "out")
    with pytest.raises(UptakeError, match="was begun with activity 'auto', not 'energy'"):
        extract(root, tmp_path / "out", activity="energy")
    with pytest.raises(UptakeError, match="'loud' is none of auto, energy"):
        extract(root, tmp_path / "out", activity="loud")


def test_the_corpus_itself_and_a_file_are_no_folder_to_write(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 1)
    with pytest.raises(UptakeError, match="is the corpus itself"):
        extract(root, root)
    with pytest.raises(UptakeError, match="is a file"):
        extract(root, root / "call0.wav")


def test_a_name_that_is_no_text_is_kept(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 1)
    (root / "call0.wav").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9.wav"))
    assert extract(root, tmp_path / "out")["recordings"]["read"] == 1
    _, (one,) = load_segments(tmp_path / "out")
    assert load(root, one).user.any()


def test_two_runs_never_write_one_folder(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 1)

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(UptakeError, match="another run is writing it"):
            extract(root, tmp_path / "out")

    extract(root, tmp_path / "out", report=meanwhile)


@pytest.mark.parametrize("text", ["[]\n", "{}\n", "x\n", '{"settings": {}}\nnot json\n{"a": 1}\n'])
def test_a_malformed_journal_is_named(tmp_path: Path, text: str) -> None:
    root = small_corpus(tmp_path / "corpus", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recordings.jsonl").write_text(text)
    with pytest.raises(UptakeError, match=r"recordings\.jsonl"):
        extract(root, tmp_path / "out")


def test_a_run_that_failed_leaves_no_summary_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_corpus(tmp_path / "corpus", 1)
    extract(root, tmp_path / "out")
    write_tones(root / "call1.wav", PAUSE, 25.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extraction, "read_one", full)
    with pytest.raises(OSError, match="No space"):
        extract(root, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path: Path) -> None:
    root = small_corpus(tmp_path / "corpus", 12)
    everything = extract(root, tmp_path / "a")
    assert everything["axes"]["turn"]["drawn"] == everything["axes"]["turn"]["accepted"] == 6
    three = extract(root, tmp_path / "b", per_axis=3)
    assert (three["axes"]["turn"]["drawn"], three["axes"]["turn"]["accepted"]) == (3, 6)

    def drawn(out: Path) -> list[str]:
        return [one["id"] for one in lines(out / "segments.jsonl")]

    assert set(drawn(tmp_path / "b")) < set(drawn(tmp_path / "a"))
    extract(root, tmp_path / "c", per_axis=3, seed=1)
    assert drawn(tmp_path / "c") != drawn(tmp_path / "b")
    write_tones(root / "call99.wav", [[(1.0, 2.0)], []], 5.0)  # a recording without a segment changes no draw
    extract(root, tmp_path / "d", per_axis=3)
    assert drawn(tmp_path / "d") == drawn(tmp_path / "b")
