"""Recordings to learn from: word times in every form, whose they are, and one line for what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.activity import levels
from envs.clock import CLOCK
from envs.corpora.audio import Heard
from envs.corpora.dialogues import Dialogue, agent_words, blocks, find
from envs.corpora.recording import Refusal, Rejected
from envs.corpora.speech import ENERGY
from envs.corpora.words import SpokenWord, read
from envs.errors import UptakeError
from tests.corpora import tones, write_tones

SPEECH = [[(0.5, 1.5), (2.0, 3.0)], [(3.2, 4.2)]]
WORDS = [("hello", 0.5, 1.5, "anna"), ("there", 2.0, 3.0, "anna"), ("yes", 3.2, 4.2, "ben")]


def as_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def rows(said: Any = WORDS, **more: Any) -> list[dict[str, Any]]:
    return [{"word": w, "start": on, "end": off, "speaker": who} | more for w, on, off, who in said]


def recorded(folder: Path, content: Any = None, name: str = "a.wav", **how: Any) -> Path:
    """A folder with one recording of 5 s, the first of whose tracks is anna's."""
    write_tones(folder / name, SPEECH, 5.0, **how)
    if content is not False:
        as_json((folder / name).with_suffix(".json"), rows() if content is None else content)
    return folder


def only(folder: Path, **how: Any) -> Any:
    _, found = find(folder, **how)
    assert len(found) == 1
    return found[0]


def heard(root: Path, dialogue: Dialogue) -> Heard:
    audio = np.concatenate(list(blocks(root, dialogue, 20)), axis=1)
    power = levels(audio, ENERGY.hop)
    return Heard(power if dialogue.agent else power[::-1], audio.shape[1], 0.0)


# -- files of words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        rows(),
        {"words": rows()},
        {"segments": [{"speaker": "anna", "words": rows(WORDS[:2])}, {"speaker": "ben", "words": rows(WORDS[2:])}]},
        {"alignments": [[w, [on, off], who] for w, on, off, who in WORDS]},
        {"text": "", "chunks": [{"text": w, "timestamp": [on, off], "speaker": who} for w, on, off, who in WORDS]},
        {"id": "x", "metadata:transcript": [{"words": rows(), "start": 0.5, "transcript": ""}], "metadata:vad": []},
    ],
    ids=["list", "words", "segments", "moshi-finetune", "chunks", "seamless"],
)
def test_every_form_of_json_gives_the_same_words(tmp_path: Path, content: Any) -> None:
    assert read(as_json(tmp_path / "a.json", content)) == [SpokenWord(*word) for word in WORDS]


def text_grid(tiers: dict[str, list[tuple[float, float, str]]]) -> str:
    out = ["ooTextFile", "TextGrid"]
    text = " ".join(f'"{one}"' for one in out) + f" 0 5 <exists> {len(tiers)}"
    for name, intervals in tiers.items():
        text += f' "IntervalTier" "{name}" 0 5 {len(intervals)}'
        text += "".join(f' {on} {off} "{label}"' for on, off, label in intervals)
    return text


def test_a_textgrid_of_the_aligner_gives_its_words_and_not_its_phones(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    tiers = {"anna - words": [(0.0, 0.5, ""), (0.5, 1.5, "hello")], "anna - phones": [(0.5, 0.7, "HH")]}
    path.write_text(text_grid(tiers))
    assert read(path) == [SpokenWord("hello", 0.5, 1.5, "anna")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.rttm", "SPEAKER a 1 0.5 1.0 <NA> <NA> anna <NA> <NA>", "who speaks when, not what is said"),
        ("a.TextGrid", text_grid({"anna": [(0.5, 1.5, "hello there")]}), "several|in one interval"),
        ("a.json", '{"text": "hello"}', "no word times in it"),
        ("a.json", '{"words": "hello"}', "no word times in it"),
        ("a.json", '[{"word": "hello", "start": 0.5}]', "no word times in it.*end"),
        ("a.json", '[{"word": "hello", "start": 0.5, "end": 1, "channel": 2}]', "channel 2"),
        ("a.json", '[{"word": "hello", "start": 1.5, "end": 0.5}]', "'hello' from 1.5 to 0.5 s cannot be"),
        ("a.json", '[{"word": "hello", "start": -1, "end": 0.5}]', "cannot be"),
        ("a.json", '[{"word": "hello", "start": NaN, "end": 0.5}]', "cannot be"),
        ("a.json", "[", "not JSON"),
    ],
)
def test_a_file_that_holds_no_word_times_is_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UptakeError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["words", "segments", "word", "text", "start", "end", "timestamp", "speaker", "channel"]), inner
    ),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_any_json_is_words_or_one_line(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = as_json(tmp_path_factory.getbasetemp() / "any.json", value)
    try:
        said = read(path)
    except UptakeError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= word.onset <= word.offset for word in said)


# -- whose words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent", "expected"), [("first", ["hello", "there"]), ("second", ["yes"])])
def test_words_belong_to_the_track_that_is_heard_while_they_are_said(
    tmp_path: Path, agent: str, expected: list[str]
) -> None:
    root, (dialogue,) = find(recorded(tmp_path), agent=agent)
    words = agent_words(dialogue, heard(root, dialogue))
    assert [word.text for word in words] == expected
    assert words[0].onset == CLOCK.samples(0.5 if agent == "first" else 3.2)


def test_both_sides_are_two_conversations(tmp_path: Path) -> None:
    root, found = find(recorded(tmp_path), agent="both")
    assert [one.agent for one in found] == [0, 1]
    user = [next(blocks(root, one, 10)) for one in found]
    assert np.array_equal(user[0], user[1][::-1])


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_another_rate_gives_the_same_samples_in_time(tmp_path: Path, rate: int) -> None:
    root, (dialogue,) = find(recorded(tmp_path, rate=rate))
    audio = np.concatenate(list(blocks(root, dialogue, 20)), axis=1)
    truth = tones(SPEECH, 5.0).T[::-1]
    assert audio.shape[1] % CLOCK.frame == 0 and np.abs(audio[:, : truth.shape[1]] - truth).mean() < 2e-3


def test_a_file_for_each_speaker_and_a_manifest_say_the_same(tmp_path: Path) -> None:
    audio = tones(SPEECH, 5.0)
    for side, name in enumerate(("anna", "ben")):
        soundfile.write(tmp_path / f"{name}.wav", audio[:, side], CLOCK.sample_rate)
        as_json(tmp_path / f"{name}.json", rows([word for word in WORDS if word[3] == name]))
    line = {"path": ["anna.wav", "ben.wav"], "agent": "second"}
    as_json(tmp_path / "all.jsonl", line)
    root, (dialogue,) = find(tmp_path / "all.jsonl")
    assert dialogue.agent == 1
    assert [word.text for word in agent_words(dialogue, heard(root, dialogue))] == ["yes"]


def test_aligned_supervisions_of_lhotse_are_words(tmp_path: Path) -> None:
    write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    source = {"type": "file", "channels": [0, 1], "source": "a.wav"}
    as_json(tmp_path / "recordings.jsonl", {"id": "a", "sources": [source]})
    supervision = {
        "recording_id": "a", "channel": 1, "start": 3.2, "duration": 1.0, "alignment": {"word": [["yes", 3.2, 1.0]]},
    }  # fmt: skip
    as_json(tmp_path / "supervisions.jsonl", supervision)
    root, (dialogue,) = find(tmp_path, agent="second")
    assert [word.text for word in agent_words(dialogue, heard(root, dialogue))] == ["yes"]


# -- what cannot be used -----------------------------------------------------------------------------------------------


def refusal(folder: Path, **how: Any) -> Refusal:
    one = only(folder, **how)
    assert isinstance(one, Refusal) and "\n" not in one.detail
    return one


def test_missing_word_times_are_told_with_the_names_that_were_looked_for(tmp_path: Path) -> None:
    one = refusal(recorded(tmp_path, False))
    assert one.reason == "words" and "a.wav" in one.detail and "a.json or a.TextGrid" in one.detail


def test_a_mono_file_is_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(SPEECH, 5.0)[:, :1], CLOCK.sample_rate)
    as_json(tmp_path / "a.json", rows())
    assert refusal(tmp_path).reason == "mono"


def test_three_channels_are_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.repeat(tones(SPEECH, 5.0)[:, :1], 3, axis=1), CLOCK.sample_rate)
    as_json(tmp_path / "a.json", rows())
    assert refusal(tmp_path).reason == "channels"


def test_a_rate_that_no_speech_has_is_told(tmp_path: Path) -> None:
    one = refusal(recorded(tmp_path, rate=4_000))
    assert one.reason == "sample_rate" and "4000 Hz" in one.detail


@pytest.mark.parametrize(("onset", "offset"), [(5.0, 5.1), (4.9, 5.2), (700.0, 701.0)])
def test_words_outside_the_audio_are_told(tmp_path: Path, onset: float, offset: float) -> None:
    one = refusal(recorded(tmp_path, rows([*WORDS, ("late", onset, offset, "ben")])))
    assert one.reason == "words" and "'late'" in one.detail and "is over at 5.00 s" in one.detail


def test_an_agent_that_is_heard_without_a_word_is_told_with_the_fix(tmp_path: Path) -> None:
    root, (dialogue,) = find(recorded(tmp_path, rows(WORDS[:2])), agent="second")
    short = agent_words(dialogue, heard(root, dialogue))
    assert short == []  # heard for a second: a cough, perhaps
    root, (dialogue,) = find(recorded(tmp_path, rows(WORDS[2:])), agent="first")
    with pytest.raises(Rejected, match=r"no word of the agent, who is heard for 2\.0 s in the first.*agent=second"):
        agent_words(dialogue, heard(root, dialogue))


def test_word_times_in_another_unit_are_told(tmp_path: Path) -> None:
    off = [(word, on / 10 + 4.3, off / 10 + 4.3, who) for word, on, off, who in WORDS]
    root, (dialogue,) = find(recorded(tmp_path, rows(off, channel=0)), agent="first")
    with pytest.raises(Rejected, match="3 of the agent's 3 words lie where the first track is silent"):
        agent_words(dialogue, heard(root, dialogue))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "path = None"),
        ({"path": 3}, "path = 3"),
        ({"path": ["a.wav", "b.wav", "c.wav"]}, "two-channel file, or a list of two"),
        ({"path": "a.wav", "agent": "left"}, "agent = 'left'"),
        ({"path": "a.wav", "agent": ["first"]}, "agent ="),
        ({"path": "a.wav", "words": []}, "words ="),
    ],
)
def test_a_malformed_line_of_a_manifest_is_named_with_its_number(tmp_path: Path, line: Any, message: str) -> None:
    as_json(tmp_path / "all.jsonl", line)
    with pytest.raises(UptakeError, match=rf"all.jsonl:1: .*{message}"):
        find(tmp_path / "all.jsonl")


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match="no such folder or manifest"):
        find(tmp_path / "gone")
    (tmp_path / "all.jsonl").touch()
    with pytest.raises(UptakeError, match="empty manifest"):
        find(tmp_path / "all.jsonl")
