"""Recognisers by name, by entry point and by path; what theirs may give, and where it is heard."""

from __future__ import annotations

import io
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from align import recognition
from align.config import load_config
from align.hearing import Listener
from align.recognition import checked, open_recogniser
from envs.errors import UptakeError
from envs.event import Word
from launch.evaluate import run_evaluation
from launch.judge import open_judge
from launch.train import claim
from rewards.judge.config import JudgeConfig
from tests.packs import tiny_pack
from tests.unit.test_rewards_episodes import conversation, event, words

MINE = '''
from envs.event import Word

def read(audio, rate):
    """A word for every second."""
    return [Word("word", start, start + rate // 2) for start in range(0, len(audio), rate)]

class Counting:
    made = 0

    def __init__(self):
        Counting.made += 1

    def __call__(self, audio, rate):
        return read(audio, rate)[: Counting.made]

class Spoilt:
    def __init__(self):
        raise RuntimeError("no licence")

number = 7
'''
SOUND = np.zeros(72_000, np.float32)  # 3 s at 24 kHz


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_recogniser_is_found_by_path_a_class_is_made_once(mine):
    assert [word.onset for word in open_recogniser(f"{mine}:read")(SOUND, 24_000)] == [0, 24_000, 48_000]
    counting = open_recogniser(f"{mine}:Counting")
    assert len(counting(SOUND, 24_000)) == len(counting(SOUND, 24_000)) == 1


def test_a_recogniser_is_found_by_entry_point(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine.parent))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    points = EntryPoints([EntryPoint("theirs", "mine:read", "uptake.asr"), EntryPoint("gone", "none:x", "uptake.asr")])
    monkeypatch.setattr(recognition, "entry_points", lambda group: points.select(group=group))
    assert len(open_recogniser("theirs")(SOUND, 24_000)) == 3
    with pytest.raises(UptakeError, match="unknown recogniser 'their'; did you mean 'theirs'"):
        open_recogniser("their")
    with pytest.raises(UptakeError, match=r"recogniser 'gone': entry point none:x does not load: ModuleNotFoundError"):
        open_recogniser("gone")


@pytest.mark.parametrize(
    "name, said",
    [
        ("{folder}/mine.py:reed", r"has no recogniser 'reed'; did you mean 'read'"),
        ("{folder}/mine.py:number", r"mine.py:number is a int; give a function"),
        ("{folder}/mine.py:Spoilt", r"is not made: RuntimeError: no licence"),
        ("{folder}/none.py:read", r"none.py: no such file; a recogniser by path is written"),
        ("wisper", r"unknown recogniser 'wisper'; did you mean 'whisper'"),
    ],
)
def test_what_is_no_recogniser_is_refused_in_one_line(mine, name, said):
    with pytest.raises(UptakeError, match=said) as refused:
        open_recogniser(name.format(folder=mine.parent))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given, said",
    [
        (None, "TypeError"),
        (["word"], "gave a str, not an envs.event.Word"),
        ([Word("late", 80_000, 80_001)], "'late' is at 80000 to 80001 in 72000 samples"),
        ([Word("early", -1, 5)], "'early' is at -1 to 5"),
        ([Word("backwards", 9, 5)], "'backwards' is at 9 to 5"),
    ],
)
def test_what_is_no_words_of_the_audio_is_an_error_that_names_the_recogniser(given, said):
    with pytest.raises(UptakeError, match=f"recogniser mine.*{said}"):
        checked(lambda audio, rate: given, "mine")(SOUND, 24_000)


def test_a_word_that_runs_past_the_end_is_cut_there():
    (word,) = checked(lambda audio, rate: [Word("noon", 71_000, 73_000)], "mine")(SOUND, 24_000)
    assert (word.onset, word.offset) == (71_000, 72_000)


def test_what_it_reads_is_compared_with_what_was_meant(mine):
    listener = Listener(f"{mine}:read")
    episode = conversation([(3.2, 6.0)], [event("A1", 1, 3)], transcript=words("word word", 3.3), seconds=3.0)
    assert [word.text for word in listener(episode)] == ["word"] * 3
    assert (listener.errors, listener.words) == (1, 2)


def test_an_evaluation_and_a_judge_hear_by_the_one_that_is_named(mine, tmp_path):
    tiny_pack(tmp_path)
    shown = io.StringIO()
    run_evaluation(
        "oracle", str(tmp_path / "tiny"), "train", variants=1, frames=50, seed=1, batch=32,
        recogniser=f"{mine}:read", out=None, console=Console(file=shown, width=200),
    )  # fmt: skip
    assert "speech recognition against the agent's own text: " in shown.getvalue()
    config = JudgeConfig(base_url="http://127.0.0.1:9", model="m", transcript="asr", recogniser=f"{mine}:read")
    judge = open_judge(config, ["published_judge"])
    assert judge is not None
    episode = conversation([(3.2, 6.0)], [event("A1", 1, 3)], seconds=3.0)
    hearing = judge.heard(episode, list)
    assert hearing is not None and [word.text for word in judge.wait(hearing)] == ["word"] * 3
    judge.close()
    config.recogniser = "nobody"
    with pytest.raises(UptakeError, match="unknown recogniser 'nobody'"):
        open_judge(config, ["published_judge"])


def test_a_judged_run_is_not_resumed_with_another_recogniser(tmp_path):
    config = load_config("recipes/published_judge", [f"runs={tmp_path}"])
    claim(config.folder, config, resume=False, judged=True)
    other = load_config("recipes/published_judge", [f"runs={tmp_path}", "judge.recogniser=theirs"])
    with pytest.raises(UptakeError, match=r"started with judge\.recogniser = whisper, now it is theirs"):
        claim(other.folder, other, resume=True, judged=True)
