"""Scenario files and packs: what loads, and what an error says."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import UptakeError
from envs.pack import Pack, sha256_of
from envs.scenario import json_schema, load_scenarios, parse_scenarios
from envs.users.drivers import bind
from launch.packs import run_scenario_check
from tests.packs import SCENARIOS, tiny_pack, write_tiny_pack
from tests.reactive_pack import reactive_pack

MINIMAL = """\
schema: duplex.scenario/1
id: a
split: train
vars: {gap: {dist: uniform, a: 0.1, b: 0.5}}
user:
  script:
    - {id: ask, type: A1, clip: ask, at: 1.0s}
    - {id: cut, type: C1, clip: but, when: {agent: speaking, for: $gap, after: ask}}
expect:
  - {event: ask, agent: responds, within: {full: 0.5, zero: 1.0}}
"""


AT_MOST = MINIMAL[MINIMAL.index("b: 0.5") : MINIMAL.index("id: ask")]


def test_times_may_have_units_and_variables_are_known_by_name():
    (scenario,) = parse_scenarios(MINIMAL.replace("1.0s", "750ms"))
    assert scenario.script[0].trigger.at == 0.75
    assert scenario.script[1].trigger.hold == "$gap"
    assert scenario.seed_group == "a" and scenario.expected("ask")[0].agent == "responds"


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        ("split: train", "split: trian", 3, "did you mean 'train'"),
        ("split: train", "splitt: train", 3, "unknown key 'splitt'.*did you mean 'split'"),
        ("id: a\n", "id: [a]\n", 2, "must be text"),
        ("id: a\n", "id: a\nid: b\n", 3, "stands twice"),
        ("type: A1", "type: Z9", 7, "'Z9', which is not allowed"),
        ("at: 1.0s", "at: 1.0 parsec", 7, "must be seconds"),
        ("at: 1.0s", "at: -1", 7, "must be seconds"),
        ("at: 1.0s", "at: .nan", 7, "must be seconds"),
        ("at: 1.0s", "at: $gpa", 7, "no variable '.gpa'; did you mean 'gap'"),
        (", at: 1.0s", "", 7, "exactly one of 'at' and 'when'"),
        ("clip: ask", "clip: ask, say: hello", 7, "exactly one of 'clip', 'say' and 'silence'"),
        ("clip: ask", "clip: ask/$split", 7, "needs a list of splits"),
        ("clip: ask", "silence: 1s, until: {after_word: 1}", 7, "'until' needs a clip"),
        ("at: 1.0s", "when: {after: cut}", 7, "circular, 'ask' waits for 'cut' waits for 'ask'"),
        ("at: 1.0s", "when: {after: ask}", 7, "circular, 'ask' waits for 'ask'"),
        ("at: 1.0s", "when: {agent: speking, for: 1s}", 7, "did you mean 'speaking'"),
        ("agent: responds", "agent: respond", 10, "did you mean 'responds'"),
        ("clip: ask", "clip: ask, timeout: 3", 7, "'timeout' needs a trigger"),
        ("clip: ask", "clip: ask, turn: A1", 7, "belongs to type B7"),
        ("clip: ask", "clip: ask, pauses: [{seconds: 1}]", 7, "exactly one of 'after_word' and 'at_pause'"),
        ("after: ask", "after: aks", 8, "no earlier item 'aks'; did you mean 'ask'"),
        ("agent: speaking", "agent: shouting", 8, "not allowed"),
        ("agent: speaking, for: $gap, ", "agent: speaking, ", 8, "'for' is missing"),
        ("agent: speaking, ", "", 8, "'for' does not go with"),
        ("agent: speaking, for: $gap, after: ask", "word: ask.sem", 8, "'ask' has no anchor 'sem'; give it one"),
        ("agent: speaking, for: $gap, after: ask", "word: ask", 8, "no earlier item ''"),
        ("agent: speaking, for: $gap, after: ask", "word: ask.sem, after: ask", 8, "'after' does not go with"),
        ("agent: speaking, for: $gap, after: ask", "word: cut.sem", 8, "circular, 'cut' waits for 'cut'"),
        ("id: cut", "id: ask", 8, "stands twice"),
        ("a: 0.1", "a: 0.9", 4, "lower bound is above"),
        ("a: 0.1", "a: -0.1", 8, "can be negative"),
        (AT_MOST, AT_MOST.replace("0.5", "50") + "gain_db: $gap, ", 7, "gain_db: .gap can be 0.1 to 50;"),
        ("user:\n", "acoustics: {room_tone_db: $gap}\nuser:\n", 5, "room_tone_db: .*must stay within -75 to -55"),
        ("dist: uniform", "dist: lognormal", 4, "needs 'median'"),
        ("event: ask", "event: aks", 10, "no event 'aks'"),
        ("full: 0.5", "full: 5", 10, "later than within.zero"),
        ("schema: duplex.scenario/1", "schema: duplex.scenario/2", 1, "not allowed"),
        ("  script:", "  scripts:", 6, "unknown key 'scripts' in user; did you mean 'script'"),
        ("vars: {gap", "vars: {gap: &x [*x], gup", 4, "contains itself"),
        ("split: train", "split: 'train", 11, "not YAML"),
    ],
)
def test_an_error_names_the_line_the_value_and_the_fix(old, new, line, message):
    text = MINIMAL.replace(old, new, 1)
    assert text != MINIMAL
    with pytest.raises(UptakeError) as error:
        parse_scenarios(text, "dir/file.yaml")
    assert str(error.value).startswith(f"dir/file.yaml:{line}: "), error.value
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


_junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**6),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.sampled_from(
        ["$gap", "$x", "ask", "1.2s", "9999999s", "{a: [", "A1", "duplex.scenario/1", "- a", "*x", "1:1:1"]
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 3), max_size=2),
)


def _places(data, path=()):
    yield path
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _places(value, (*path, key))


def _loads_or_says_where(text: str) -> None:
    try:
        parse_scenarios(text, "f.yaml")
    except UptakeError as error:
        assert re.match(r"f\.yaml:\d+: \S", str(error)), error
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_value_loads_or_raises_an_error_with_its_line(data):
    document = data.draw(st.sampled_from(list(yaml.safe_load_all(SCENARIOS))))
    places = sorted(_places(document), key=str)
    path = data.draw(st.sampled_from(places))
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if not path:
        document = data.draw(_junk)
    elif action == "replace":
        parent[path[-1]] = data.draw(_junk)
    elif action == "remove":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent[data.draw(st.sampled_from(["at", "when", "say", "clip", "id", "zz", "pauses", "until"]))] = data.draw(
            _junk
        )
    else:
        parent.insert(0, data.draw(_junk))
    _loads_or_says_where(yaml.safe_dump(document))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SCENARIOS)), st.integers(0, 12), st.text(max_size=6))
def test_any_changed_text_loads_or_raises_an_error_with_its_line(start, removed, inserted):
    _loads_or_says_where(SCENARIOS[:start] + inserted + SCENARIOS[start + removed :])


def test_the_published_schema_accepts_what_loads():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    for document in yaml.safe_load_all(SCENARIOS):
        validator.validate(document)
    assert list(validator.iter_errors({"schema": "duplex.scenario/1"}))


def test_a_file_of_several_scenarios_is_read_in_order_and_one_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIOS)
    assert [s.id for s in load_scenarios(path)][:2] == ["turn", "statement"]
    with pytest.raises(UptakeError, match=r"nowhere\.yaml"):
        load_scenarios(tmp_path / "nowhere.yaml")
    path.write_bytes(b"schema: duplex.scenario/1\nid: \xff\n")
    with pytest.raises(UptakeError, match=r"s\.yaml:2: not UTF-8"):
        load_scenarios(path)


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "{a: " * 3000 + "}" * 3000])
def test_a_file_that_is_nested_without_end_is_refused_in_one_line(text):
    with pytest.raises(UptakeError, match=r"^f\.yaml:1: nested too deeply"):
        parse_scenarios(text, "f.yaml")


def test_a_scenario_in_a_packs_folder_is_checked_wherever_it_lies_there(tmp_path):
    folder = write_tiny_pack(tmp_path)
    head = "schema: duplex.scenario/1\nid: mine\nsplit: train\n"
    head += "user: {script: [{id: ask, type: A1, at: 1s, clip: CLIP}]}"
    for place in (folder, folder / "drafts"):
        place.mkdir(exist_ok=True)
        (place / "mine.yaml").write_text(head.replace("CLIP", "no-such"))
        with pytest.raises(UptakeError, match=r"mine\.yaml:4: no clip 'no-such' in the pack"):
            run_scenario_check(place / "mine.yaml", "core")
        (place / "mine.yaml").write_text(head.replace("CLIP", "digits"))
        run_scenario_check(place / "mine.yaml", "core")
    run_scenario_check(folder / "scenarios" / "all.yaml", "core")


@settings(max_examples=40, deadline=None)
@given(
    clip=st.sampled_from(["ask", "digits"]),
    kind=st.sampled_from(["A1", "A3", "C1", "D1", "B7"]),
    cuts=st.sets(st.integers(0, 2)),
    until=st.sampled_from([None, "{after_word: 0}", "{at_pause: 0}", "{after_word: 3}"]),
    event=st.sampled_from(["say", "say.pause", *(f"say.pause{i}" for i in range(5)), "say.turn"]),
    turn=st.booleans(),
)
def test_what_is_expected_of_an_event_loads_only_where_there_is_that_event(
    pack_once, clip, kind, cuts, until, event, turn
):
    pauses = ", ".join(f"{{after_word: {word}, seconds: 0.5}}" for word in sorted(cuts))
    more = (f", until: {until}" if until else "") + (", turn: A1" if turn and kind == "B7" else "")
    text = (
        "schema: duplex.scenario/1\nid: mine\nsplit: train\nuser:\n  script:\n"
        f"    - {{id: say, type: {kind}, clip: {clip}, at: 1s, pauses: [{pauses}]{more}}}\n"
    )
    plain, wanting = pack_once / "plain.yaml", pack_once / "wanting.yaml"
    plain.write_text(text)
    wanting.write_text(text + f"expect:\n  - {{event: {event}, agent: silent}}\n")
    try:
        pack = Pack.load(pack_once).with_users(plain)
    except UptakeError:
        return  # a cut that the clip has not
    found = {event.id for event in bind(pack, pack.scenario("mine"), 1, 0).lines[0].events}
    families = {re.sub(r"\d+$", "", name) for name in found if ".pause" in name}
    if event in found | families:
        pack.with_users(wanting)
    else:
        with pytest.raises(UptakeError, match=rf"^{re.escape(str(wanting))}:8: expect: no event '{event}'"):
            pack.with_users(wanting)


@pytest.fixture(scope="module")
def pack_once(tmp_path_factory):
    return write_tiny_pack(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    "user, code",
    [
        ("{driver: reactive, persona: {says: {question: 1}}}", "B1"),
        ("{driver: reactive, persona: {barges_in: 1, intents: {attempt: 1}}}", "C8"),
        ("{driver: reactive}", "D7"),
        ("{driver: policy, policy: pocket}", "E1"),
    ],
)
def test_nothing_is_expected_of_a_type_that_such_a_user_never_causes(user, code):
    text = f"schema: duplex.scenario/1\nid: a\nsplit: train\nuser: {user}\nexpect:\n  - {{event: %s, agent: silent}}\n"
    parse_scenarios(text % "A1", "u.yaml")
    with pytest.raises(UptakeError, match=rf"^u\.yaml:6: expect: no event '{code}'"):
        parse_scenarios(text % code, "u.yaml")


# -- packs -------------------------------------------------------------------------------------------------------------


def test_a_pack_is_addressed_by_its_content(tmp_path):
    one, two = write_tiny_pack(tmp_path / "one"), write_tiny_pack(tmp_path / "two")
    assert Pack.load(one).hash == Pack.load(two).hash
    (two / "scenarios" / "all.yaml").write_text(SCENARIOS.replace("0.8s", "0.9s"))
    assert Pack.load(one).hash != Pack.load(two).hash


REFERS = {
    "laws.yaml": "user: {driver: reactive, laws: laws.yaml, persona: {barges_in: 0, backchannels_per_min: 0, "
    "coughs_per_min: 0, side_talk_per_min: 0}}",
    "call.flac": "user: {driver: replay, recording: {file: call.flac, words: call.json}}",
    "call.json": "user: {driver: replay, recording: {file: call.flac, words: call.json}}",
    "street.yaml": "acoustics: {mix: {street.yaml: 1, clean: 1}}\nuser: {driver: policy, policy: pocket}",
    "talk.jsonl": "user: {driver: llm, goal: Go., log: talk.jsonl, endpoint: {base_url: 'http://h/v1', model: m}}",
}


@pytest.mark.parametrize("name", REFERS)
def test_the_hash_of_a_pack_covers_what_its_scenarios_refer_to(tmp_path, name):
    base = reactive_pack(tmp_path / "pack", "")
    before = {
        "laws.yaml": (files("envs") / "users" / "laws.yaml").read_text(),
        "call.json": '[["hi", 0.1, 0.5]]',
        "street.yaml": "noise: {snr_db: 10}",
        "talk.jsonl": "",
    }

    def hashed(folder: str, changed: bool) -> str:
        place = tmp_path / folder
        place.mkdir()
        for file, text in before.items():
            (place / file).write_text(text + ("\n" if changed and file == name else ""))
        loud = 0.2 if changed and name == "call.flac" else 0.1
        soundfile.write(place / "call.flac", loud * np.sin(np.arange(24000) * 0.1), 24000)
        head = "schema: duplex.scenario/1\nid: a\nsplit: train\n"
        (place / "users.yaml").write_text(head + REFERS[name])
        return base.with_users(place / "users.yaml").hash

    assert hashed("here", False) == hashed("there", False) != hashed("changed", True)


def test_clips_and_scenarios_are_found_by_name_split_and_tag(tmp_path):
    pack = tiny_pack(tmp_path)
    assert [s.id for s in pack.scenarios("test")] == ["test/turn"]
    assert {s.id for s in pack.scenarios("train", tags=["C1"])} == {"barge"}
    assert not pack.clip("ask").audio.flags.writeable and pack.clip("ask").audio.dtype == np.float32
    assert {c.kind for c in pack.clips("agent")} == {"agent"}
    with pytest.raises(UptakeError, match=r"no clip 'aks'.*did you mean 'ask'"):
        pack.clip("aks")
    with pytest.raises(UptakeError, match=r"no scenario 'brage'.*did you mean 'barge'"):
        pack.scenario("brage")
    with pytest.raises(UptakeError, match="no split 'tarin'"):
        pack.scenarios("tarin")


def _reindex(folder, name, **changes):
    index = json.loads((folder / "pack.json").read_text())
    index["clips"][name].update(changes)
    (folder / "pack.json").write_text(json.dumps(index))


def _rewrite(folder, name, audio, rate=24_000, file=None, **options):
    path = folder / "audio" / (file or f"{name}.flac")
    soundfile.write(path, audio, rate, **options)
    _reindex(folder, name, sha256=sha256_of(path), samples=len(audio), file=f"audio/{path.name}", words=[], pauses=[])


def _scenario(folder, text):
    (folder / "scenarios" / "more.yaml").write_text("schema: duplex.scenario/1\n" + text)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "audio" / "ask.flac").unlink(), "ask.flac.*'ask' is missing; restore"),
        (lambda f: (f / "audio" / "ask.flac").write_bytes(b"x"), "ask.flac.*SHA-256"),
        (lambda f: _rewrite(f, "ask", np.zeros(100), 16_000), "ask.flac: sample rate 16000, expected 24000; resample"),
        (lambda f: _rewrite(f, "ask", np.zeros((100, 2))), "ask.flac: 2 channels, expected 1; mix the file to mono"),
        (
            lambda f: _rewrite(f, "ask", np.full(100, np.nan), file="ask.wav", subtype="FLOAT"),
            "ask.wav: holds NaN.*render",
        ),
        (
            lambda f: _rewrite(f, "agent-mhm", np.zeros(0), file="mhm.wav"),
            "mhm.wav: .* 'agent-mhm' is empty",
        ),
        (
            lambda f: _rewrite(f, "agent-mhm", np.full(100, 1.7), file="mhm.wav", subtype="FLOAT"),
            "mhm.wav: holds samples of 1.7 times full scale; render the file at a lower level",
        ),
        (lambda f: _reindex(f, "ask", samples=5, words=[], pauses=[]), "pack.json says 5"),
        (lambda f: _reindex(f, "ask", words=[["a", 9, 3]]), "'ask': words has \\[9, 3\\]"),
        (lambda f: _reindex(f, "ask", words=[["a"]]), "'ask': field .* malformed"),
        (lambda f: _reindex(f, "ask", split="trian"), "split 'trian' is not known; did you mean 'train'"),
        (lambda f: (f / "pack.json").write_text("{"), "pack.json: not JSON"),
        (lambda f: (f / "pack.json").write_text("[]"), "schema is"),
        (lambda f: (f / "pack.json").unlink(), "pack.json does not exist"),
        (lambda f: (f / "scenarios" / "all.yaml").unlink(), "holds no scenario"),
        (
            lambda f: _scenario(f, "id: x\nsplit: train\nuser: {script: [{id: q, type: A1, clip: akk, at: 1}]}"),
            "more.yaml:4: no clip 'akk'.*did you mean 'ask'",
        ),
        (
            lambda f: _scenario(f, "id: x\nsplit: train\nuser: {script: [{id: q, type: A1, say: hello, at: 1}]}"),
            "more.yaml:4: no train clip says 'hello'",
        ),
        (
            lambda f: _scenario(f, "id: x\nsplit: test\nuser: {script: [{id: q, type: A1, clip: ask, at: 1}]}"),
            "more.yaml:4: clip 'ask' belongs to split 'train'.*share no clip",
        ),
        (
            lambda f: _scenario(
                f,
                "id: x\nsplit: train\nuser: {script: [{id: q, type: A1, clip: ask, at: 1, until: {after_word: 5}}]}",
            ),
            "more.yaml:4: .*6 words .*no cut after word 5",
        ),
        (
            lambda f: _scenario(
                f, "id: x\nsplit: train\nuser: {script: [{id: q, type: A1, clip: ask, at: 1, anchors: {sem: 6}}]}"
            ),
            "more.yaml:4: .*no word 6",
        ),
        (
            lambda f: _scenario(f, "id: turn\nsplit: train\nuser: {script: [{id: q, type: A1, clip: ask, at: 1}]}"),
            "taken",
        ),
    ],
)
def test_a_broken_pack_is_refused_before_anything_starts(tmp_path, damage, message):
    folder = write_tiny_pack(tmp_path / "p")
    damage(folder)
    with pytest.raises(UptakeError, match=message) as error:
        Pack.load(folder)
    assert "\n" not in str(error.value)


def test_a_pack_that_does_not_exist_is_named():
    with pytest.raises(UptakeError, match="no pack 'nowhere'"):
        Pack.load("nowhere")


def test_a_folder_that_happens_to_be_called_core_does_not_stand_in_for_the_core_pack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = write_tiny_pack(tmp_path / "core")
    assert Pack.load("core").name == "core" and Pack.load("core").hash != Pack.load(other).hash
    assert Pack.load("./core").hash == Pack.load(other).hash
