"""What a pack build decides without any speech engine: texts, voices, cuts, scenarios."""

import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import AGENT_KINDS, Pack
from envs.synthesis.align import Aligner, cut_points
from envs.synthesis.build import build, cast, coughs, kind_of, plan
from envs.synthesis.engines import ACTIVE_RMS, Flite, choose, normalise
from envs.synthesis.texts import SPLITS, agent_utterances, load_source, user_utterances


@pytest.fixture(scope="module")
def source() -> dict:
    return load_source()


@pytest.fixture(scope="module")
def core() -> Pack:
    return Pack.load("core")


def test_no_text_and_no_voice_stands_in_two_splits(source: dict) -> None:
    texts = {split: {u.text.lower() for u in user_utterances(source, split)} for split in SPLITS}
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not texts[one] & texts[other]
        assert not set(source["voices"][one]) & set(source["voices"][other])
    users = {voice for split in SPLITS for voice in source["voices"][split]}
    assert not set(source["voices"]["agent"]) & users


def test_every_topic_is_named_in_every_text_about_it(source: dict) -> None:
    for split in SPLITS:
        for utterance in user_utterances(source, split):
            if utterance.topic in source["topics"]:
                assert utterance.topic in utterance.text.lower(), utterance


def test_every_answer_holds_an_expected_word_of_its_own_topic_and_of_no_other(source: dict) -> None:
    for utterance in agent_utterances(source):
        words = {w.strip(".,?").lower() for w in utterance.text.split()}
        hit = {topic for topic, entry in source["topics"].items() if words & set(entry["content"])}
        assert hit == ({utterance.topic} & set(source["topics"])), utterance


def test_more_repeats_keep_the_clips_of_fewer(source: dict) -> None:
    few, many = ({job.id for job in plan(source, repeats)} for repeats in (1, 3))
    assert few < many
    assert len(few) == len(plan(source, 1))


def test_extra_voices_speak_in_training_only(source: dict) -> None:
    extra = [job for job in plan(source, 1, ["x", "y"]) if job.voice in ("x", "y")]
    assert extra and {job.utterance.split for job in extra} == {"train"}


def test_the_core_pack_is_what_its_source_says(source: dict, core: Pack) -> None:
    for job in plan(source):
        clip = core.clip(job.id)
        assert clip.voice == job.voice and clip.split == job.utterance.split
        assert len(clip.pauses) == job.utterance.text.count("|") and clip.kind == kind_of(job.utterance)


def test_the_core_pack_has_enough_of_everything(core: Pack) -> None:
    users = [clip for clip in core.clips() if clip.kind == "user"]
    assert len(users) >= 150
    assert len({clip.voice for clip in users if clip.voice != "synthetic"}) >= 6
    assert {clip.id.split("/")[0] for clip in users} >= {
        "question", "statement", "dictation", "story", "barge_in", "stop", "side_talk", "cough", "pause",
    }  # fmt: skip
    assert sum(f.stat().st_size for f in core.folder.rglob("*") if f.is_file()) <= 20e6


@pytest.mark.parametrize("split", SPLITS)
def test_every_pause_and_every_barge_in_has_its_twin(core: Pack, split: str) -> None:
    known = {s.id: s for s in core.scenarios(split)}
    for tag, other in (("pause", "pause_twin"), ("barge_in", "acknowledged")):
        ones = core.scenarios(split, tags=[tag])
        assert ones
        for one in ones:
            twin = known[one.twin]
            assert twin.tags == (other,) and twin.twin == one.id and twin.seed_group == one.seed_group


def test_words_lie_in_order_inside_their_clip(core: Pack) -> None:
    for clip in core.clips():
        edges = [edge for word in clip.words for edge in (word.onset, word.offset)]
        assert edges == sorted(edges) and (not edges or (edges[0] >= 0 and edges[-1] <= clip.samples)), clip.id


def test_a_cut_falls_into_the_quietest_place_between_its_words() -> None:
    audio = np.full(24_000, 0.2, np.float32)
    audio[11_000:11_600] = 0.0
    words = (Word("one", 0, 10_500), Word("two", 12_000, 24_000))
    (cut,) = cut_points(audio, "one | two", words)
    assert 11_000 <= cut <= 11_600


def test_words_without_a_dictionary_entry_share_the_time_between_their_neighbours() -> None:
    words = Aligner._fill(["a", "bb", "b", "c"], {0: (0, 100), 3: (400, 500)}, 500)
    assert words == [Word("a", 0, 100), Word("bb", 100, 300), Word("b", 300, 400), Word("c", 400, 500)]


def test_clips_are_brought_to_one_level() -> None:
    tone = np.sin(np.arange(CLOCK.sample_rate) * 0.1).astype(np.float32)
    for gain in (0.05, 0.5):
        clip = normalise(np.pad(tone * gain, 5000))
        assert abs(np.sqrt(np.mean(np.square(clip[2000:-2000]))) / ACTIVE_RMS - 1) < 0.2


def test_coughs_are_short_and_loud_enough_to_be_heard() -> None:
    for cough in coughs(3):
        assert 0.2 < len(cough) / CLOCK.sample_rate < 1.5 and np.abs(cough).max() > 0.1


class Tones:
    """An engine that says every word as a tone of the voice's own pitch."""

    name = "tones"
    licence = "none"

    def __init__(self, voices: int) -> None:
        self._pitch = {f"tone{i}": 150.0 + 40 * i for i in range(voices)}

    def voices(self) -> list[str]:
        return list(self._pitch)

    def say(self, text: str, voice: str) -> np.ndarray:
        time = np.arange(2400 * len(text.split())) / CLOCK.sample_rate
        return normalise((0.3 * np.sin(2 * np.pi * self._pitch[voice] * time)).astype(np.float32))


class EvenAligner:
    def __call__(self, audio: np.ndarray, text: str) -> tuple[Word, ...]:
        return tuple(Aligner._fill(text.replace("|", " ").split(), {}, len(audio)))


@pytest.mark.parametrize("voices", [4, 9])
def test_a_pack_can_be_built_with_an_engine_that_has_none_of_the_sources_voices(
    source: dict, voices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.synthesis.build.Aligner", EvenAligner)

    def first(texts: object) -> object:
        return {k: first(v) for k, v in texts.items()} if isinstance(texts, dict) else texts[:1]  # type: ignore[index]

    small = {key: value if key in ("voices", "topics") else first(value) for key, value in source.items()}
    small["topics"] = dict(itertools.islice(source["topics"].items(), 2))
    small["lines"] = {f"{kind}/x": {"voice": 0, **dict.fromkeys(SPLITS, "yes")} for kind in ("answer", "backchannel")}
    (tmp_path / "source.yaml").write_text(yaml.safe_dump(small))
    pack = Pack.load(build(tmp_path / "source.yaml", tmp_path / "pack", Tones(voices), tmp_path / "cache", repeats=2))
    heard = {split: {c.voice for c in pack.clips() if c.split == split} - {"synthetic"} for split in (*SPLITS, "all")}
    assert all(heard.values())
    for one, other in itertools.combinations(heard, 2):
        assert not heard[one] & heard[other]
    assert all(pack.scenarios(split) for split in SPLITS)
    for split in SPLITS:  # what users answer is none of what the agent says
        assert {"answer", "backchannel"} <= set(pack.spoken(split))
    for kind in AGENT_KINDS:
        assert pack.clips(kind) and all(clip.id.startswith("agent/") for clip in pack.clips(kind))


def test_the_sources_voices_are_kept_where_the_engine_has_them(source: dict) -> None:
    wanted = source["voices"]
    everyone = [voice for names in wanted.values() for voice in names]
    assert cast(wanted, sorted(everyone)) == wanted
    assert cast(wanted, [v for v in everyone if v != "am_puck"])["test"] == [
        v for v in wanted["test"] if v != "am_puck"
    ]
    for count in range(4, 30):
        dealt = cast(wanted, Tones(count).voices())
        assert sorted(v for names in dealt.values() for v in names) == sorted(Tones(count).voices())
    with pytest.raises(UptakeError, match="the engine has 3 voices"):
        cast(wanted, Tones(3).voices())


def test_a_text_is_said_in_different_voices_however_many_there_are(source: dict) -> None:
    for count in range(3, 16):
        jobs = plan(source | {"voices": source["voices"] | {"train": Tones(count).voices()}}, repeats=3)
        assert len({job.id for job in jobs}) == len(jobs)


def test_whichever_engine_is_installed_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert choose(None, None).name == "flite"
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UptakeError, match="no text-to-speech: `apt-get install flite`, or"):
        choose(None, None)
    with pytest.raises(UptakeError, match="kokoro needs its voices: --voices FOLDER"):
        choose("kokoro", None)
    with pytest.raises(UptakeError, match="no engine 'espeak'"):
        choose("espeak", tmp_path)


def test_what_flite_cannot_say_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **settings: object) -> None:
        raise subprocess.CalledProcessError(1, "flite", stderr="no such voice\n")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", failing)
    with pytest.raises(UptakeError, match="flite cannot say 'Hello' in the voice 'slt': no such voice"):
        Flite().say("Hello", "slt")
