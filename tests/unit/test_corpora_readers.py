"""Every layout finds its recordings; every parser reads what was written and names what was not."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clock import CLOCK
from envs.corpora import rttm, seamless, textgrid
from envs.corpora.layouts import detect, recordings
from envs.corpora.recording import Recording, Refusal, Rejected, Span
from envs.corpora.speech import units
from envs.errors import UptakeError
from tests.corpora import write_tones

SPEECH = [[(0.5, 1.5), (2.0, 3.0)], [(3.2, 4.2)]]
IN_SAMPLES = [[(CLOCK.samples(on), CLOCK.samples(off)) for on, off in own] for own in SPEECH]
names = st.text(st.characters(codec="ascii", exclude_categories=("Z", "C")), min_size=1, max_size=8).filter(
    lambda name: not name.startswith((";;", "#"))
)
seconds = st.integers(0, 10**6).map(lambda thousandths: thousandths / 1000)


# -- RTTM --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(names, st.sampled_from("12"), seconds, seconds, names), max_size=12))
@settings(max_examples=80, deadline=None)
def test_an_rttm_reads_back_what_was_written(rows: list[tuple[str, str, float, float, str]]) -> None:
    text = ";; a comment\n\nSPKR-INFO x 1 <NA> <NA> <NA> unknown a <NA> <NA>\n" + "".join(
        f"SPEAKER {name} {channel} {onset:.3f} {length:.3f} <NA> <NA> {who} <NA> <NA>\n"
        for name, channel, onset, length, who in rows
    )
    found = rttm.parse(text)
    assert list(found) == list(dict.fromkeys(row[0] for row in rows))
    for name, spans in found.items():
        own = [row for row in rows if row[0] == name]
        both = {row[1] for row in own} == {"1", "2"}
        wanted = [(on, on + length, who, int(channel) - 1 if both else None) for _, channel, on, length, who in own]
        assert [tuple(span) for span in spans] == wanted


@pytest.mark.parametrize(
    "line, words",
    [
        ("SPEAKER a 1 0.0 1.0 <NA> <NA>", "7 fields"),
        ("SPEAKER a 1 soon 1.0 <NA> <NA> x <NA> <NA>", "'soon'"),
        ("SPEAKER a 1 nan 1.0 <NA> <NA> x <NA> <NA>", "finite"),
        ("SPEAKER a 1 1.0 -0.5 <NA> <NA> x <NA> <NA>", "below 0"),
    ],
)
def test_a_malformed_line_of_an_rttm_is_named_with_its_number(line: str, words: str) -> None:
    with pytest.raises(UptakeError, match=rf"(?s)here.rttm:2: .*{words}"):
        rttm.parse(f";; first\n{line}\n", "here.rttm")


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_is_an_rttm_or_an_error_with_a_line(text: str) -> None:
    try:
        rttm.parse("SPEAKER " + text)
    except UptakeError as error:
        assert "rttm:" in str(error)


# -- TextGrid ----------------------------------------------------------------------------------------------------------

labels = st.text(st.characters(exclude_categories=("C",)), max_size=12)
tiers = st.dictionaries(
    labels, st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), labels), max_size=6), max_size=3
)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def written(content: dict[str, list[tuple[float, float, str]]], short: bool) -> str:
    """A TextGrid in one of the two forms that Praat writes."""
    values: list[tuple[str, str]] = [
        ("xmin = ", "0"),
        ("xmax = ", "99"),
        ("tiers? ", "<exists>"),
        ("size = ", str(len(content))),
    ]
    for tier, rows in content.items():
        values += [("class = ", '"IntervalTier"'), ("name = ", quoted(tier)), ("xmin = ", "0"), ("xmax = ", "99")]
        values.append(("intervals: size = ", str(len(rows))))
        for i, (onset, offset, label) in enumerate(rows, 1):
            key = f"intervals [{i}]:\n  xmin = "
            values += [(key, repr(onset)), ("xmax = ", repr(offset)), ("text = ", quoted(label))]
    body = "\n".join(value if short else key + value for key, value in values)
    return f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n{body}\n'


@given(tiers, st.booleans())
@settings(max_examples=80, deadline=None)
def test_both_forms_of_a_text_grid_read_back_what_was_written(
    content: dict[str, list[tuple[int, int, str]]], short: bool
) -> None:
    timed = {}
    for tier, rows in content.items():
        at, timed[tier] = 0.0, []
        for gap, length, label in rows:
            timed[tier].append((at + gap / 10, at + gap / 10 + length / 10, label))
            at = timed[tier][-1][1]
    assert textgrid.parse(written(timed, short)) == timed


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_text_grid_that_breaks_off_is_never_read_as_a_shorter_one(data: st.DataObject) -> None:
    whole = written(
        {"A": [(0.0, 1.5, ""), (1.5, 2.25, 'he said ""no""')], "B": [(0.0, 2.25, "yes")]}, data.draw(st.booleans())
    )
    cut = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    with pytest.raises(UptakeError, match="TextGrid"):
        textgrid.parse(whole[:cut])


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_mutilated_text_grid_is_read_or_refused_but_nothing_else(data: st.DataObject) -> None:
    whole = written({"A": [(0.0, 1.5, ""), (1.5, 2.25, "x")]}, data.draw(st.booleans()))
    at = data.draw(st.integers(0, len(whole)))
    text = whole[:at] + data.draw(st.text(max_size=5)) + whole[at + data.draw(st.integers(0, 20)) :]
    try:
        textgrid.parse(text)
    except UptakeError as error:
        assert str(error).startswith("TextGrid")


@pytest.mark.parametrize("count", ["-1", "1.5", "9" * 5000])
def test_a_text_grid_with_an_impossible_number_of_tiers_is_refused(count: str) -> None:
    text = written({}, short=True).replace("<exists>\n0", f"<exists>\n{count}")
    with pytest.raises(UptakeError, match="number of items"):
        textgrid.parse(text)


def test_points_comments_and_utf_16_are_understood(tmp_path: Path) -> None:
    text = written({"anna": [(0.0, 0.5, ""), (0.5, 1.5, "hi"), (1.5, 2.0, "<SIL>")]}, short=True)
    text = text.replace('"TextGrid"\n', '"TextGrid" ! "not a value" 7\n').replace("<exists>\n1\n", "<exists>\n2\n")
    (tmp_path / "a.TextGrid").write_bytes((text + '"TextTier"\n"clicks"\n0\n99\n1\n0.7\n"click"\n').encode("utf-16"))
    assert textgrid.read(tmp_path / "a.TextGrid") == [Span(0.5, 1.5, "anna")]


def test_an_aligners_phones_are_left_out() -> None:
    rows = [(0.0, 0.5, "hi")]
    content = {"anna - words": rows, "anna - phones": [(0.0, 0.2, "h"), (0.2, 0.5, "ay")]}
    assert set(textgrid.parse(written(content, short=False))) == set(content)


def test_only_the_words_of_an_aligner_count_as_speech(tmp_path: Path) -> None:
    content = {"anna - words": [(0.0, 0.5, "hi")], "anna - phones": [(0.0, 0.2, "h"), (0.2, 0.5, "ay")]}
    (tmp_path / "a.TextGrid").write_text(written(content, short=False))
    assert textgrid.read(tmp_path / "a.TextGrid") == [Span(0.0, 0.5, "anna")]


# -- layouts -----------------------------------------------------------------------------------------------------------


def only(root: Path, layout: str) -> Recording:
    found, (one,) = recordings(root)
    assert found == layout
    assert isinstance(one, Recording), one
    return one


def close(found: list[list[tuple[int, int]]]) -> bool:
    return [len(own) for own in found] == [2, 1] and all(
        abs(a - b) <= CLOCK.samples(0.02)
        for own, truth in zip(found, IN_SAMPLES, strict=True)
        for pair, wanted in zip(own, truth, strict=True)
        for a, b in zip(pair, wanted, strict=True)
    )


def test_plain_two_channel_files_are_found_in_every_folder(tmp_path: Path) -> None:
    for name in ("a.wav", "deep/b.flac", "deep/b.wav", ".hidden/c.wav"):
        write_tones(tmp_path / name, SPEECH, 5.0)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "deep" / "moved.wav").symlink_to(tmp_path / "gone.wav")
    os.mkfifo(tmp_path / "pipe.wav")  # reading it would never end
    (tmp_path / "again").symlink_to(tmp_path)  # nor would following it
    layout, found = recordings(tmp_path)
    assert layout == "plain"
    assert [one.id for one in found] == ["a", "deep/b", "deep/b.wav", "deep/moved"]
    *whole, moved = [one for one in found if isinstance(one, Recording)]
    assert all(close(units(tmp_path, one)[0]) for one in whole)
    with pytest.raises(Rejected, match=r"unreadable: .*moved\.wav"):
        units(tmp_path, moved)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("beside", [True, False])
def test_an_rttms_speakers_are_matched_to_the_channel_on_which_they_are_loud(
    tmp_path: Path, swapped: bool, beside: bool
) -> None:
    write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    people = ("zoe", "adam") if swapped else ("adam", "zoe")
    lines = [
        f"SPEAKER a 1 {on + 0.05:.3f} {off - on:.3f} <NA> <NA> {who} <NA> <NA>"
        for who, own in zip(people, SPEECH, strict=True)
        for on, off in own
    ]
    (tmp_path / ("a.rttm" if beside else "all.rttm")).write_text("\n".join([*lines, "SPEAKER b 1 0 1 x x x x"]))
    found, _ = units(tmp_path, only(tmp_path, "plain"))
    shift = CLOCK.samples(0.05)
    assert found == [[(on + shift, off + shift) for on, off in own] for own in IN_SAMPLES]
    assert close(units(tmp_path, only(tmp_path, "plain"), measured=True)[0])


def test_an_rttms_channels_count_where_it_names_both(tmp_path: Path) -> None:
    write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    (tmp_path / "a.rttm").write_text("SPEAKER a 2 1.0 0.5 x x p x x\nSPEAKER a 1 3.5 0.5 x x q x x\n")
    found, _ = units(tmp_path, only(tmp_path, "plain"))
    assert found == [[(CLOCK.samples(3.5), CLOCK.samples(4.0))], [(CLOCK.samples(1.0), CLOCK.samples(1.5))]]


def test_one_speaker_of_a_text_grid_gets_the_channel_on_which_he_is_heard(tmp_path: Path) -> None:
    write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    (tmp_path / "a.TextGrid").write_text(written({"p": [(3.2, 4.2, "hello")]}, short=False))
    found, _ = units(tmp_path, only(tmp_path, "plain"))
    assert found == [[], [IN_SAMPLES[1][0]]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("SPEAKER a 1 0 1 x x p\nSPEAKER a 1 0\n", ":2: 4 fields"),
        ("SPEAKER a 1 2.0 9.0 x x p\n", "does not lie in a recording of 5.00 s"),
        ("SPEAKER a 1 0 1 x x p\nSPEAKER a 1 1 1 x x q\nSPEAKER a 1 2 1 x x r\n", "two tracks"),
        ("SPEAKER b 1 0 1 x x p\nSPEAKER c 1 0 1 x x p\n", "2 recordings"),
    ],
)
def test_a_segment_file_that_does_not_fit_is_told(tmp_path: Path, text: str, words: str) -> None:
    write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    (tmp_path / "a.rttm").write_text(text)
    with pytest.raises(Rejected, match=words) as caught:
        units(tmp_path, only(tmp_path, "plain"))
    assert caught.value.reason == "segment_file"


def test_segments_closer_than_a_unit_gap_are_one_unit_and_overlapping_ones_too(tmp_path: Path) -> None:
    write_tones(tmp_path / "a.wav", SPEECH, 5.0)
    rows = ["1 0.50 0.50", "1 1.17 0.30", "1 1.40 0.10", "1 2.00 0.50", "1 2.68 0.20", "2 3.00 1.00"]
    (tmp_path / "a.rttm").write_text("\n".join(f"SPEAKER a {row} x x p x x" for row in rows))
    found, _ = units(tmp_path, only(tmp_path, "plain"))
    wanted = [[(0.5, 1.5), (2.0, 2.5), (2.68, 2.88)], [(3.0, 4.0)]]
    assert found == [[(CLOCK.nearest_sample(on), CLOCK.nearest_sample(off)) for on, off in own] for own in wanted]


def test_fisher_calls_are_found_with_their_speakers(tmp_path: Path) -> None:
    write_tones(tmp_path / "LDC2004S13" / "audio" / "000" / "fe_03_00001.sph", SPEECH, 5.0, 8_000)
    doc = tmp_path / "LDC2004T19" / "doc"
    doc.mkdir(parents=True)
    (doc / "fe_03_p1_calldata.tbl").write_text("CALL_ID,D,T,S,C,APIN,A,P,H,Y,BPIN\n00001,x,x,4,3,2602,f,x,1,1,1790\n")
    one = only(tmp_path, "fisher")
    assert (one.id, one.speakers) == ("fe_03_00001", ("2602", "1790"))
    assert close(units(tmp_path, one)[0])


def test_fisher_prefers_what_was_unpacked_without_loss(tmp_path: Path) -> None:
    for suffix in (".sph", ".opus", ".wav"):
        write_tones(tmp_path / f"fe_03_00001{suffix}", SPEECH, 5.0, 48_000 if suffix == ".opus" else 8_000)
    assert only(tmp_path, "fisher").tracks[0].path == "fe_03_00001.wav"
    assert only(tmp_path, "fisher").speakers == ("A", "B")


def seamless_corpus(root: Path, tree: bool) -> None:
    for channel, own in enumerate(SPEECH):
        stem = f"V00_S0809_I00000582_P094{channel}A"
        write_tones(root / "improvised" / "dev" / "audio" / f"{stem}.wav", [own], 5.0, 48_000)
        rows = [{"start": on, "end": off} for on, off in own]
        if tree:
            (root / "improvised" / "dev" / "vad").mkdir(exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (root / "improvised" / "dev" / "vad" / f"{stem}.jsonl").write_text(text)
        else:
            text = json.dumps({"id": stem, "metadata:transcript": [], "metadata:vad": rows})
            (root / "improvised" / "dev" / "audio" / f"{stem}.json").write_text(text)


@pytest.mark.parametrize("tree", [False, True])
def test_seamless_participants_are_paired_and_its_own_activity_is_used(tmp_path: Path, tree: bool) -> None:
    seamless_corpus(tmp_path, tree)
    one = only(tmp_path, "seamless")
    assert (one.id, one.speakers, one.kind) == ("V00_S0809_I00000582", ("P0940A", "P0941A"), "vad")
    assert units(tmp_path, one)[0] == IN_SAMPLES
    assert close(units(tmp_path, one, measured=True)[0])


def test_seamless_without_a_partner_or_with_three_is_refused(tmp_path: Path) -> None:
    write_tones(tmp_path / "V00_S0001_I00000001_P0001.wav", SPEECH[:1], 5.0)
    for person in "123":
        write_tones(tmp_path / f"V00_S0001_I00000002_P000{person}.wav", SPEECH[:1], 5.0)
    _, found = recordings(tmp_path)
    assert [(one.id, one.reason) for one in found if isinstance(one, Refusal)] == [
        ("V00_S0001_I00000001", "no_partner"),
        ("V00_S0001_I00000002", "speakers"),
    ]


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"metadata:vad": [{"start": 1}]}', '{"metadata:vad": [[1, 2]]}', "{", "", "[" * 100_000]
)
def test_a_seamless_file_without_activity_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UptakeError, match=r"a\.json"):
        seamless.read([str(tmp_path / "a.json")])


def candor_corpus(root: Path, people: list[dict]) -> Path:
    folder = root / "part1" / "abc-1"
    write_tones(folder / "processed" / "abc-1.mp3", SPEECH, 5.0, 44_100)
    (folder / "metadata.json").write_text(json.dumps({"id": "abc-1", "speakers": people}))
    return folder


def test_candor_calls_are_found_with_left_and_right(tmp_path: Path) -> None:
    candor_corpus(tmp_path, [{"user_id": "ben", "channel": "R"}, {"user_id": "anna", "channel": "L"}])
    one = only(tmp_path, "candor")
    assert (one.id, one.speakers) == ("abc-1", ("anna", "ben"))
    assert close(units(tmp_path, one)[0])


def test_candor_prefers_the_speakers_own_tracks(tmp_path: Path) -> None:
    folder = candor_corpus(tmp_path, [{"user_id": "ben", "channel": "R"}, {"user_id": "anna", "channel": "L"}])
    for who, own in zip(("anna", "ben"), SPEECH, strict=True):
        write_tones(folder / "processed" / f"{who}.wav", [own], 5.0)
    one = only(tmp_path, "candor")
    assert [track.path for track in one.tracks] == [f"part1/abc-1/processed/{who}.wav" for who in ("anna", "ben")]
    assert close(units(tmp_path, one)[0])


@pytest.mark.parametrize(
    "people", [[], [{"user_id": "a", "channel": "L"}], [{"user_id": x, "channel": "L"} for x in "ab"], ["a", "b"]]
)
def test_candor_without_two_sides_is_refused(tmp_path: Path, people: list) -> None:
    candor_corpus(tmp_path, people)
    _, (one,) = recordings(tmp_path)
    assert isinstance(one, Refusal) and one.reason == "metadata"


def lhotse_corpus(root: Path, recording: dict, supervisions: list[dict] | None) -> None:
    write_tones(root / "wavs" / "c1.flac", SPEECH, 5.0, 16_000)
    base = {"id": "c1", "sampling_rate": 16_000, "num_samples": 80_000, "duration": 5.0}
    with gzip.open(root / "x_recordings_all.jsonl.gz", "wt") as file:
        file.write(json.dumps(base | recording) + "\n")
    if supervisions is not None:
        with gzip.open(root / "x_supervisions_all.jsonl.gz", "wt") as file:
            file.writelines(
                json.dumps({"id": str(i), "recording_id": "c1"} | s) + "\n" for i, s in enumerate(supervisions)
            )


STEREO = {"sources": [{"type": "file", "channels": [0, 1], "source": "wavs/c1.flac"}]}


def test_lhotse_supervisions_say_who_speaks_by_word_where_words_are_aligned(tmp_path: Path) -> None:
    words = [["hi", 0.5, 1.0, None], ["there", 2.0, 1.0, None]]
    spoken = [
        {"start": 0.5, "duration": 2.5, "channel": 0, "speaker": "anna", "alignment": {"word": words}},
        {"start": 3.2, "duration": 1.0, "channel": [1], "speaker": "ben"},
    ]
    lhotse_corpus(tmp_path, STEREO, spoken)
    one = only(tmp_path, "lhotse")
    assert (one.speakers, one.kind) == (("anna", "ben"), "supervisions")
    assert units(tmp_path, one)[0] == IN_SAMPLES


def test_lhotse_without_supervisions_is_measured(tmp_path: Path) -> None:
    lhotse_corpus(tmp_path, STEREO, None)
    one = only(tmp_path, "lhotse")
    assert one.kind == "energy" and close(units(tmp_path, one)[0])


@pytest.mark.parametrize(
    "recording, reason",
    [
        ({"sources": [{"type": "command", "channels": [0, 1], "source": "touch owned"}]}, "source_type"),
        ({"sources": [{"type": "file", "channels": [0], "source": "wavs/c1.flac"}]}, "mono"),
        ({"sources": [{"type": "file", "channels": [0, 1, 2], "source": "wavs/c1.flac"}]}, "channels"),
    ],
)
def test_lhotse_sources_that_are_no_two_channels_of_files_are_refused(
    tmp_path: Path, recording: dict, reason: str
) -> None:
    lhotse_corpus(tmp_path, recording, None)
    _, (one,) = recordings(tmp_path)
    assert isinstance(one, Refusal) and one.reason == reason
    assert not Path("owned").exists()


def test_a_malformed_manifest_is_named_with_its_line(tmp_path: Path) -> None:
    lhotse_corpus(tmp_path, {}, None)
    with pytest.raises(UptakeError, match=r"x_recordings_all.jsonl.gz:1: not a recording"):
        recordings(tmp_path)
    lhotse_corpus(tmp_path, STEREO, [{"start": 1.0}])
    with pytest.raises(UptakeError, match=r"x_supervisions_all.jsonl.gz:1: not a supervision"):
        recordings(tmp_path)
    (tmp_path / "x_supervisions_all.jsonl.gz").unlink()
    data = (tmp_path / "x_recordings_all.jsonl.gz").read_bytes()
    (tmp_path / "x_recordings_all.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UptakeError, match="cannot be read"):
        recordings(tmp_path)


def test_a_folder_that_is_none_or_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UptakeError, match="no such folder"):
        recordings(tmp_path / "gone")
    with pytest.raises(UptakeError, match="no recording in it"):
        recordings(tmp_path)
    with pytest.raises(UptakeError, match="did you mean 'fisher'"):
        recordings(tmp_path, "fischer")
    assert detect(tmp_path) == "plain"
