"""The checkpoint that ships with the package: small, safe to load, and able to hear and to speak."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.evaluation import examples, play
from align.loading import load_policy
from align.policies import checks
from align.policies.base import DuplexPolicy
from envs.activity import activity
from envs.episode import Episode
from envs.pack import Pack
from rewards.text import normalise

FOLDER = Path(checks.__file__).parent / "pocket"


@pytest.fixture(scope="module")
def pocket() -> DuplexPolicy:
    return load_policy("pocket")


@pytest.fixture(scope="module")
def talks(pocket: DuplexPolicy) -> list[Episode]:
    """The first conversation of each kind in the test split."""
    pack = Pack.load("core")
    keys = [example.key for example in examples(pack.scenarios("test"), 5)]
    return play(pocket, pack, keys, split="test", seed=1234, frames=120)


def test_it_is_small_and_holds_no_file_that_can_run_code() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".model", ".md"}, files
    assert (FOLDER / "model.safetensors").is_file()
    assert sum(file.stat().st_size for file in files) <= 40e6


def test_its_streaming_is_its_scoring(pocket: DuplexPolicy) -> None:
    assert checks.TOLERANCE <= 1e-4
    checks.check_streaming_equals_scoring(pocket)


def test_it_speaks_audibly_and_in_words(talks: list[Episode]) -> None:
    speaking = [sum(int(off - on) for on, off in activity(e.agent)) / e.clock.sample_rate for e in talks]
    assert sum(seconds > 0.5 for seconds in speaking) >= 3, speaking
    assert all(seconds < e.seconds - 2 for seconds, e in zip(speaking, talks, strict=True)), speaking
    assert sum(len(e.transcript) for e in talks) > 20


def test_its_words_are_words_of_the_packs_agent(talks: list[Episode]) -> None:
    known = {word for clip in Pack.load("core").clips() for word in normalise(clip.text)}
    said = [word for episode in talks for word in normalise(" ".join(w.text for w in episode.transcript))]
    assert sum(word in known for word in said) > 0.8 * len(said), said
