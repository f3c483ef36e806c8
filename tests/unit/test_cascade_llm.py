"""A cascade that asks a language model: in simulated time, ahead of its decision, and with a bank to fall back on."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.evaluation import play
from align.loading import load_policy
from align.policies import checks
from align.policies.cascade.config import CascadeConfig, LlmConfig, ReplyEndpoint, SpeechConfig
from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import ACT, CascadePolicy
from align.policies.cascade.replies import INAUDIBLE, MOST_CHARACTERS
from align.policies.sampling import Sampling
from envs.chat import chat as chat_module
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.pack import Pack
from envs.users.decisions import open_engine
from tests.judge_server import JudgeServer
from tests.packs import write_tiny_pack

F = CLOCK.frame
GREEDY = Sampling(text_temperature=1.0, text_top_k=1)
READER = """
import time
from envs.activity import ActivityConfig, activity
from envs.event import Word

def read(audio, rate):
    "A word for every sound: how many frames it lasts."
    return [Word(f"sound{round((off - on) / 1920)}", int(on), int(off)) for on, off in activity(audio)]

def breaks(audio, rate):
    raise MemoryError("no room")

def slow(audio, rate):
    time.sleep(0.3)
    return read(audio, rate)

def once_deaf(audio, rate, heard=[]):
    heard.append(audio)
    return read(audio, rate) if len(heard) > 1 else []

def deaf(audio, rate):
    return []
"""


class Tone:
    """A voice: a word is a tone of 80 ms."""

    name, licence = "tone", "none"

    def voices(self) -> list[str]:
        return ["low", "broken"]

    def say(self, text: str, voice: str) -> np.ndarray:
        if voice == "broken":
            raise OSError("no voice today")
        return 0.1 * np.sin(np.arange(F * len(text.split())) * 0.05).astype(np.float32)


class Point:
    name, value = "tone", "somewhere:Tone"

    def load(self):
        return Tone


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return Pack.load(write_tiny_pack(tmp_path_factory.mktemp("pack")))


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of the recognisers; a voice is there, and the caches are new."""
    monkeypatch.setattr(chat_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("envs.users.decisions.entry_points", lambda group: [Point()])
    open_engine.cache_clear()
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "reader.py").write_text(READER)
    return tmp_path / "reader.py"


def answer(body: dict[str, Any]) -> str:
    """A model that says what it heard."""
    return f"I heard {body['messages'][-1]['content']} from you."


def config(url: str = "http://127.0.0.1:9/v1", endpoint: dict[str, Any] | None = None, **changes: Any) -> CascadeConfig:
    llm: dict[str, Any] = {
        "endpoint": ReplyEndpoint(base_url=url, model="tester", retries=0, **(endpoint or {})),
        "recogniser": f"{Path.cwd() / 'reader.py'}:read",
        "speech": SpeechConfig("tone", "low"),
    }
    return CascadeConfig(llm=LlmConfig(**(llm | changes)))


def converse(policy: CascadePolicy, loud: list[int], rows: int = 1, seeds=None):
    noise = np.random.default_rng(0).normal(0, 0.1, (len(loud), 1, F)).astype(np.float32).repeat(rows, 1)
    policy.reset(np.ones(rows, bool), seeds or [0] * rows)
    return checks.play(policy, noise * np.array(loud, np.float32)[:, None, None])


def sounding(steps, row: int = 0) -> list[int]:
    return [n for n, step in enumerate(steps) if np.abs(step.audio[row]).max() > 1e-3]


def said(steps, row: int = 0) -> str:
    return "".join(step.text[row] for step in steps).strip()


def answers(policy: CascadePolicy, row: int = 0) -> list[dict[str, Any]]:
    return policy.notes(row)["cascade"]["replies"]


def bank(pack: Pack, number: int = 0):
    return pack.clips("agent")[number]


# ---- what it does


def test_it_passes_every_check(pack):
    with JudgeServer(answer=answer) as server:
        made = replace(config(server.url, ask_after_s=0.1, think_s=0.24), response_s=0.08)
        checks.check_policy(CascadePolicy(pack, TurnHead(0.3, 0.2), made), load=CascadePolicy.load, frames=60)
        assert server.requests


def test_it_says_what_the_model_answers_to_what_the_user_said(pack):
    with JudgeServer(answer=answer) as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 40)
    assert said(steps) == "I heard sound10 from you."
    system, user = server.requests[0]["messages"]
    assert user == {"role": "user", "content": "sound10"} and str(MOST_CHARACTERS) in system["content"]
    assert len(server.requests) == 1
    (line,) = answers(policy)
    assert (line["heard"], line["text"], line["fault"]) == ("sound10", "I heard sound10 from you.", "")


@pytest.mark.parametrize(
    ("ask_after_s", "think_s", "response_s", "begins"),
    [
        # Silence begins with frame 10 and is 0.72 s long at the end of frame 18, when the head answers.
        (0.24, 0.8, 0.24, 13 + 10),  # asked at the end of frame 12; 0.8 s later begins frame 23
        (0.24, 0.4, 0.24, 19 + 3),  # thought before the decision: only the response is waited for
        (0.24, 0.4, 0.0, 19),
        (0.24, 0.81, 0.0, 13 + 11),  # never before it has thought
        (5.0, 0.8, 0.0, 19 + 10),  # asked at the decision at the latest
    ],
)
def test_the_answer_sounds_when_it_was_thought_and_decided(pack, ask_after_s, think_s, response_s, begins):
    with JudgeServer(answer=answer) as server:
        made = replace(config(server.url, ask_after_s=ask_after_s, think_s=think_s), response_s=response_s)
        policy = CascadePolicy(pack, config=made, sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 40)
    assert [n for n, step in enumerate(steps) if step.tokens[0, 0] == ACT] == [18]
    assert sounding(steps)[0] + 1 == begins  # what a step returns is heard in the frame after it


def test_however_slow_the_endpoint_the_conversation_is_the_same(pack):
    heard = []
    for latency in (0.0, 0.4):
        with JudgeServer(latency, answer=answer) as server:
            made = config(server.url, endpoint={"cache": f".cache-{latency}"})
            steps = converse(CascadePolicy(pack, config=made, sampling=GREEDY), [1] * 10 + [0] * 40)
            assert len(server.requests) == 1
        heard.append(np.stack([step.audio[0] for step in steps]))
    assert np.array_equal(*heard) and heard[0].any()


def test_an_answer_that_the_pack_has_is_its_clip(pack):
    clip = bank(pack, 2)
    with JudgeServer(answer=lambda body: f"  {clip.text.capitalize()}!") as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 70)
    assert said(steps) == clip.text
    assert answers(policy)[0]["clip"] == clip.id
    heard = np.concatenate([step.audio[0] for step in steps])
    onset = clip.words[0].onset
    start = (answers(policy)[0]["sounds"] // F - 1) * F
    assert np.array_equal(heard[start : start + clip.samples - onset], clip.audio[onset:])


def test_without_speech_it_chooses_among_the_packs_sentences(pack):
    clip = bank(pack, 1)
    with JudgeServer(answer=lambda body: clip.text if "1" in body["messages"][1]["content"] else "Hm.") as server:
        policy = CascadePolicy(pack, config=config(server.url, speech=None), sampling=GREEDY)
        first = converse(policy, [1] * 10 + [0] * 70)
        assert all(f"- {one.text}\n" in server.requests[0]["messages"][0]["content"] + "\n" for one in policy.answers)
        other = converse(policy, [1] * 6 + [0] * 70)
    assert said(first) == clip.text
    assert said(other) == bank(pack).text and answers(policy)[0]["fault"] == "nonsense"


# ---- asking ahead


PAUSE = [1] * 8 + [0] * 6 + [1] * 5 + [0] * 50  # a pause of 0.48 s within the turn, which is asked about


def test_a_question_is_dropped_when_the_user_goes_on_and_asked_again_with_all_that_was_said(pack):
    with JudgeServer(answer=answer) as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        steps = converse(policy, PAUSE)
    assert said(steps) == "I heard sound8 sound5 from you."
    assert len(answers(policy)) == 1 and policy.notes(0)["cascade"]["asked"] == 2


def test_nobody_waits_for_a_question_that_was_dropped(pack):
    over = threading.Event()

    def hangs(body: dict[str, Any]) -> str:
        if body["messages"][-1]["content"] == "sound8":
            over.wait(60)
        return answer(body)

    with JudgeServer(answer=hangs) as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        first = converse(policy, PAUSE[:13])
        while not server.requests:  # the pause is asked about
            time.sleep(0.01)
        (question,) = policy._talks._replies._under_way.values()
        noise = np.random.default_rng(1).normal(0, 0.1, (len(PAUSE) - 13, 1, F)).astype(np.float32)
        steps = checks.play(policy, noise * np.array(PAUSE[13:], np.float32)[:, None, None])
        assert question.cancelled() and question not in policy._talks._replies._under_way.values()
        assert said([*first, *steps]) == "I heard sound8 sound5 from you."
        over.set()


def test_a_question_that_one_row_drops_is_still_answered_in_another(pack):
    with JudgeServer(answer=answer) as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        noise = np.random.default_rng(0).normal(0, 0.1, (69, 1, F)).astype(np.float32).repeat(2, 1)
        noise *= np.array([PAUSE, [1] * 8 + [0] * 61], np.float32).T[:, :, None]
        policy.reset(np.ones(2, bool), [0, 0])
        steps = checks.play(policy, noise)
        assert [said(steps, row) for row in range(2)] == [
            "I heard sound8 sound5 from you.", "I heard sound8 from you."
        ]  # fmt: skip
        assert len(server.requests) == 2


def test_an_answer_that_is_prepared_is_withdrawn_and_the_turn_goes_on(pack):
    with JudgeServer(answer=answer) as server:
        made = replace(config(server.url, think_s=1.5), answer_after_s=0.4, stop_after_s=0.1)
        policy = CascadePolicy(pack, config=made, sampling=GREEDY)
        steps = converse(policy, [1] * 8 + [0] * 9 + [1] * 5 + [0] * 50)
        asked = server.requests[-1]["messages"]  # whether the first was sent before it was dropped is left to chance
    assert len(asked) == 2 and asked[1]["content"] == "sound8 sound5", "an answer that was never heard is no turn"
    assert [step.tokens[0, 0] for step in steps].count(ACT) == 3, "to answer, to withdraw, to answer"
    assert said(steps) == "I heard sound8 sound5 from you."


def test_the_next_question_tells_what_was_said_before_as_far_as_it_was_heard(pack):
    def wordy(body: dict[str, Any]) -> str:
        return answer(body) + " And a good deal more." * (body["messages"][-1]["content"] == "sound10")

    with JudgeServer(answer=wordy) as server:
        policy = CascadePolicy(pack, config=config(server.url, turns=2), sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 15 + [1] * 6 + [0] * 40 + [1] * 4 + [0] * 40)
        asked = [[m["content"] for m in request["messages"][1:]] for request in server.requests]
    heard = said(steps[:40])
    assert heard in "I heard sound10 from you. And a good deal more." and len(heard.split()) < 10
    assert asked == [
        ["sound10"],
        ["sound10", f"{heard} -", "sound6"],
        ["sound6", "I heard sound6 from you.", "sound4"],
    ]


# ---- one question for all who have it


def test_the_rows_of_a_group_ask_once_and_the_next_policy_finds_it_on_disk(pack):
    with JudgeServer(answer=answer) as server:
        for _ in range(2):
            policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
            steps = converse(policy, [1] * 10 + [0] * 40, rows=3)
            assert {said(steps, row) for row in range(3)} == {"I heard sound10 from you."}
        assert len(server.requests) == 1
    assert answers(policy, 2)[0]["cached"] is True


def test_all_rows_ask_before_any_row_waits(pack):
    with JudgeServer(0.3, answer=answer) as server:
        made = config(server.url, ask_after_s=0.24, think_s=0.0)
        policy = CascadePolicy(pack, config=replace(made, response_s=0.0, answer_after_s=0.24), sampling=GREEDY)
        noise = np.random.default_rng(0).normal(0, 0.1, (30, 4, F)).astype(np.float32)
        for row in range(4):
            noise[: 6 - row, row] = noise[14:, row] = 0  # four turns of other lengths that end together
        policy.reset(np.ones(4, bool), [0] * 4)
        checks.play(policy, noise)
        assert len(server.requests) == server.most_at_once == 4


def test_no_question_pays_with_its_patience_for_those_that_are_read_before_it(pack):
    with JudgeServer(answer=answer) as server:
        made = config(server.url, endpoint={"patience_s": 1.0}, recogniser=f"{Path.cwd() / 'reader.py'}:slow")
        policy = CascadePolicy(pack, config=made, sampling=GREEDY)
        noise = np.random.default_rng(0).normal(0, 0.1, (45, 6, F)).astype(np.float32)
        noise[10:] = 0  # six turns that end together and sound different
        policy.reset(np.ones(6, bool), [0] * 6)
        checks.play(policy, noise)
    assert [line["fault"] for row in range(6) for line in answers(policy, row)] == [""] * 6


# ---- faults


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("error", "server_error"), ("denied", "refused"), ("no_json", "malformed"), ("wrong_model", "wrong_model"),
     ("slow", "timeout"), ("hang_up", "malformed"), ("busy", "rate_limited")],
)  # fmt: skip
def test_an_endpoint_that_fails_costs_the_answer_and_the_pack_speaks(pack, fault, kind):
    with JudgeServer(fault=lambda number: fault, answer=answer) as server:
        made = config(server.url, endpoint={"timeout_s": 0.3})
        policy = CascadePolicy(pack, config=made, sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 70, seeds=[1])
    assert said(steps) == bank(pack, 1).text
    told = policy.notes(0)["cascade"]
    assert told["faults"] == {kind: 1} and told["replies"][0]["heard"] == "sound10"


def broken(url: str, case: str) -> CascadeConfig:
    reader = Path.cwd() / "reader.py"
    if case == "down":
        return config()
    if case == "late":
        return config(url, endpoint={"patience_s": 0.2})
    if case == "speech":
        return config(url, speech=SpeechConfig("tone", "broken"))
    if case in ("recogniser", "not_understood"):
        return config(url, recogniser=f"{reader}:{'breaks' if case == 'recogniser' else 'deaf'}")
    return config(url)


@pytest.mark.parametrize(
    ("case", "kind", "latency"),
    [("down", "unreachable", 0), ("late", "late", 1), ("speech", "speech", 0), ("recogniser", "recogniser", 0),
     ("not_understood", "not_understood", 0)],
)  # fmt: skip
def test_whatever_fails_on_the_way_costs_the_answer_and_the_pack_speaks(pack, case, kind, latency):
    with JudgeServer(latency, answer=answer) as server:
        policy = CascadePolicy(pack, config=broken(server.url, case), sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 70)
    assert said(steps) == bank(pack).text and sounding(steps)[0] + 1 == 23
    assert policy.notes(0)["cascade"]["faults"] == {kind: 1}
    if kind in ("recogniser", "not_understood"):
        assert policy._talks._talks[0].turns[0].heard == INAUDIBLE and not server.requests


@pytest.mark.parametrize("reply", ["", " <think>hm</think> ", "...", "x" * (MOST_CHARACTERS + 1), "a\x07b"])
def test_what_cannot_be_said_is_nonsense(pack, reply):
    with JudgeServer(answer=lambda body: reply) as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        steps = converse(policy, [1] * 10 + [0] * 40)
    assert policy.notes(0)["cascade"]["faults"] == {"nonsense": 1} and sounding(steps)


def test_a_long_reply_is_said_in_whole_sentences_and_thoughts_are_not_said(pack):
    policy = CascadePolicy(pack, config=config())
    long = "One two. " * 30 + "Three " * 20
    assert policy._talks._replies.read(long)["text"] == ("One two. " * 30).strip()
    assert policy._talks._replies.read('<think>a. b?</think>\n "Yes,\n it is." ')["text"] == "Yes, it is."


def test_questions_are_bounded_and_an_endpoint_that_comes_back_is_asked_again(pack):
    turns = [*([1] * 6 + [0] * 34)] * 3
    with JudgeServer(fault=lambda number: "error" if number == 0 else "", answer=answer) as server:
        made = replace(config(server.url, requests=2), stop_after_s=60.0)
        policy = CascadePolicy(pack, config=made, sampling=GREEDY)
        converse(policy, turns)
        assert [line["fault"] for line in answers(policy)] == ["server_error", "", "requests"]
        assert len(server.requests) == 2
        converse(policy, turns)  # another conversation: the first question, which had no answer, is asked again
        assert not answers(policy)[0]["fault"] and len(server.requests) > 2


def test_a_fault_stands_however_soon_it_comes_and_in_every_row_that_asked(pack):
    with JudgeServer(fault=lambda number: "error" if number == 0 else "", answer=answer) as server:
        policy = CascadePolicy(pack, config=config(server.url), sampling=GREEDY)
        policy.reset(np.ones(2, bool), [0, 0])
        noise = np.random.default_rng(0).normal(0, 0.1, (40, 1, F)).astype(np.float32).repeat(2, 1)
        noise[10:] = 0
        for at, mic in enumerate(noise):
            if at == 16:  # asked and not yet answered: let the fault come
                (future,) = policy._talks._replies._under_way.values()
                assert future.result(20).fault == "server_error"
            policy.step(mic, np.ones(2, bool))
        assert [policy.notes(row)["cascade"]["faults"] for row in range(2)] == [{"server_error": 1}] * 2
        assert len(server.requests) == 1 and not policy._talks._replies._under_way


# ---- the record


def test_the_record_of_a_conversation_gives_it_again_without_the_endpoint(pack, tmp_path):
    keys = [("barge", 0)]

    def talkative(body: dict[str, Any]) -> str:
        return answer(body) + " Well," * 12 if len(body["messages"]) == 2 else ""

    with JudgeServer(answer=talkative) as server:
        made = config(server.url)
        policy = CascadePolicy(pack, config=made)
        (first,) = play(policy, pack, keys, split="train", seed=3, frames=150)
        assert server.requests
    first.save(tmp_path / "talk")
    told = json.loads((tmp_path / "talk" / "meta.json").read_text())["meta"]["cascade"]
    assert {line["fault"] for line in told["replies"]} == {"", "nonsense"} and told["faults"] == {"nonsense": 1}
    again = replace(made, llm=replace(made.llm, log=str(tmp_path / "talk"), endpoint=replace(
        made.llm.endpoint, cache=".empty", base_url="http://127.0.0.1:9/v1")))  # fmt: skip
    (second,) = play(CascadePolicy(pack, config=again), pack, keys, split="train", seed=3, frames=150)
    assert np.array_equal(first.agent, second.agent) and first.transcript == second.transcript
    (other,) = play(CascadePolicy(pack, config=again), pack, [("stop", 0)], split="train", seed=3, frames=150)
    assert other.meta["cascade"]["faults"] == {"not_in_log": len(other.meta["cascade"]["replies"])}


def test_a_record_of_what_was_not_understood_gives_that_again(pack, tmp_path):
    loud = [1] * 10 + [0] * 70 + [1] * 6 + [0] * 40
    reader = tmp_path / "reader.py"
    with JudgeServer(answer=answer) as server:
        made = config(server.url, recogniser=f"{reader}:once_deaf")
        policy = CascadePolicy(pack, config=made, sampling=GREEDY)
        first = converse(policy, loud)
        assert server.requests[-1]["messages"][1]["content"] == INAUDIBLE
    (tmp_path / "meta.json").write_text(json.dumps({"meta": policy.notes(0)}))
    again = replace(made, llm=replace(made.llm, log=str(tmp_path), recogniser=f"{reader}:read"))
    policy = CascadePolicy(pack, config=again, sampling=GREEDY)
    second = converse(policy, loud)
    assert said(first) == said(second) == f"{bank(pack).text} I heard sound6 from you."
    assert [line["fault"] for line in answers(policy)] == ["not_understood", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "holds no answers"), ('{"meta": {}}', "holds no answers"),
     ('{"meta": {"cascade": {"replies": [1]}}}', "no list of records")],
)  # fmt: skip
def test_a_log_that_is_none_is_one_line(pack, tmp_path, content, message):
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UptakeError, match=message) as error:
        CascadePolicy(pack, config=config(log=str(tmp_path)))
    assert str(tmp_path / "meta.json") in str(error.value) and "\n" not in str(error.value)


# ---- its file


YAML = """\
ear: silero
answer_after_s: 0.5
llm:
  endpoint: {base_url: "http://127.0.0.1:9/v1", model: tester}
  recogniser: READER
  speech: {engine: tone}
"""


def test_a_file_describes_a_cascade_and_its_export_is_the_same_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(YAML.replace("READER", f"{tmp_path / 'reader.py'}:read"))
    policy = load_policy(str(file))
    assert isinstance(policy, CascadePolicy) and policy.model.thresholds_s() == pytest.approx((0.5, 0.3))
    assert policy._talks._replies.voice.voice == "low", "the engine's first, which has no voice of the pack"
    policy.model.answer.bias.data.sub_(1.0)
    policy.export(tmp_path / "kept")
    again = load_policy(str(tmp_path / "kept"))
    assert again.config == policy.config and again.model.thresholds_s() == pytest.approx((0.6, 0.3))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ear: silero", "eer: silero", "unknown key 'eer'; did you mean 'ear'"),
        ("ear: silero", "ear: silver", "ear = 'silver': none; did you mean 'silero'"),
        ("model: tester", "modle: tester", "unknown key 'llm.endpoint.modle'; did you mean 'model'"),
        (", model: tester", "", "llm.endpoint.model is empty"),
        ("http://127", "ftp://127", "must be an http:// or https:// address"),
        ("0.5", "0", "answer_after_s = 0.0: must be more than 0 s"),
        ("0.5", "soon", "answer_after_s: Value 'soon'"),
        ("llm:", "llm:\n  think_s: -1", "llm.think_s = -1.0: must be 0 s or more"),
        ("llm:", "llm:\n  turns: 0", "llm.turns = 0: must be at least 1"),
        ("llm:", "llm:\n  log: nowhere", "nowhere/meta.json: cannot be read"),
        ("engine: tone", "engine: tune", "no speech engine 'tune'; did you mean 'tone'"),
        ("engine: tone", "engine: tone, voice: hihg", "tone has no voice 'hihg'"),
        ("{engine: tone}", "tone", "llm.speech = 'tone': is a section of keys"),
        ("READER", "nobody", "unknown recogniser 'nobody'"),
        ("ear: silero", "pack: nowhere", "no pack 'nowhere'"),
        (YAML, "- 1", "describes no cascade"),
        (YAML, "a: [", "not YAML"),
    ],
)
def test_a_file_that_cannot_work_is_one_clear_line(tmp_path, old, new, message):
    file = tmp_path / "mine.yaml"
    text = YAML.replace(old, new)
    assert text != YAML
    file.write_text(text.replace("READER", f"{tmp_path / 'reader.py'}:read"))
    with pytest.raises(UptakeError, match=re.escape(message)) as error:
        load_policy(str(file))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(UptakeError, match=r"mine\.yaml"):
        load_policy(str(tmp_path / "mine.yaml"))
