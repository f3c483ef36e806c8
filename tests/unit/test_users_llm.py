"""The llm user: a model decides one act at a time, in simulated time; what it may do to a conversation is bounded, and
its log alone gives the same conversation again."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from envs import agents
from envs.activity import OnlineActivity
from envs.chat import chat as chat_module
from envs.chat.cache import Cache
from envs.chat.endpoint import Endpoint, Fault
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import Pack
from envs.scenario import parse_scenarios
from envs.users.decisions import Decided, Decisions, open_engine
from envs.users.drivers import bind
from envs.users.llm import LlmDriver, State
from envs.users.llm_prompt import ACTS, instructions, read
from envs.users.llm_user import Voice
from envs.users.turn_models import Heard
from tests.judge_server import JudgeServer
from tests.reactive_pack import reactive_pack

F = CLOCK.frame
KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chat_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.chdir(tmp_path)  # the cache is new for every test
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def scenario(url: str = "http://127.0.0.1:9/v1", name: str = "call", more: str = "", endpoint: str = "") -> str:
    return (
        f"schema: duplex.scenario/1\nid: {name}\nsplit: train\nduration_s: {{max: 20}}\n"
        f"terminate: {{after_script_s: 1}}\nuser:\n  driver: llm\n  goal: Find out when the train leaves.\n{more}"
        f"  endpoint: {{base_url: '{url}', model: tester, retries: 0, {endpoint}}}\n---\n"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Pack:
    return reactive_pack(tmp_path_factory.mktemp("packs"), "")


def with_user(base: Pack, tmp_path: Path, text: str) -> Pack:
    path = tmp_path / "users.yaml"
    path.write_text(text.removesuffix("---\n"))
    return base.with_users(path)


def caller(body: dict[str, Any]) -> str:
    """A model that asks, nods once, interrupts once, and leaves."""
    told = body["messages"][1]["content"]
    said = told.count("you:")
    named = {text: name for name, text in re.findall(r"^  (t\d+): (.*)$", body["messages"][0]["content"], re.M)}
    ask, cut, bye = named["is it going to rain"], named["right no i meant the music"], named["bye then"]
    if "just begun" in told:
        return json.dumps({"act": "speak", "words": ask, "when": {"after": 0.5}})
    if "is speaking" in told and said == 1:
        return "```json\n" + json.dumps({"act": "backchannel", "words": "b1"}) + "\n```"
    if "is speaking" in told and said == 2:
        return json.dumps({"act": "barge_in", "words": cut, "intent": "correction"})
    if "seems to be your turn" in told and said >= 3:
        return "<think>enough</think>" + json.dumps({"act": "hang_up", "words": bye})
    return '{"act": "wait"}'


def speech(frames: int, on: list[tuple[float, float]]) -> np.ndarray:
    audio = np.zeros(frames * F, np.float32)
    for start, stop in on:
        first, last = CLOCK.nearest_sample(start), CLOCK.nearest_sample(stop)
        audio[first:last] = 0.1 * np.sin(np.arange(last - first) * 0.1)
    return audio.reshape(frames, F)


AGENT = [(3.0, 9.0), (10.0, 11.0)]


def talk(pack: Pack, on=AGENT, frames: int = 200, rows: int = 1, variant: int = 0, words=None) -> list[Episode]:
    env = DuplexVectorEnv(pack, rows, frames=frames)
    env.agent_words = words
    env.reset(seed=3, options={"scenario": "call", "variant": variant})
    for action in speech(frames + 1, on)[1:]:
        info = env.step(np.repeat(action[None], rows, axis=0))[-1]
        if info["ended"].all():
            break
    return [env.episode(row) for row in range(rows)]


# ---- what it does


def test_a_model_decides_act_by_act_and_the_events_are_those_of_the_taxonomy(base, tmp_path):
    with JudgeServer(answer=caller) as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url)))
    assert [event.type for event in episode.events if ".pause" not in event.id] == ["A1", "D1", "C2", "A8"]
    ask, nod, cut, bye = (event for event in episode.events if ".pause" not in event.id)
    assert ask.expected("responds") and nod.expected("continues") and cut.expected("stops")
    assert CLOCK.seconds(ask.onset) == pytest.approx(0.4 + 0.5, abs=0.08 + 0.03)  # decided at 0, in force at 0.4
    assert nod.anchors["agent_speaking_since"] == cut.anchors["agent_speaking_since"]
    assert bye.onset > CLOCK.samples(11.0) and episode.meta["ended"] == "script"
    llm = episode.meta["llm"]
    assert llm["left"] == "hang_up" and llm["faults"] == {} and llm["decisions"] == len(episode.decisions)
    assert episode.meta["driver"] == "llm" and llm["tokens"] > 0


def test_it_is_told_the_transcript_with_seconds_and_only_what_was_said_by_then(base, tmp_path):
    agent = (Word("the", 72000, 80000), Word("train", 80000, 96000), Word("later", 240000, 250000))
    with JudgeServer(answer=caller) as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url)), words=lambda row: agent)
    line = next(one for one in episode.decisions if one["moment"] == "speech")
    assert "3.0-5.0 assistant: the train\n" in line["situation"] and "later" not in line["situation"]
    assert "0.9-" in line["situation"] and " you: is it going to rain" in line["situation"]
    assert "10.0-11.0 assistant: later\n" in episode.decisions[-1]["situation"]
    silent = next(one for one in episode.decisions if "assistant:" in one["situation"])
    assert "nobody wrote down" not in silent["situation"]


def test_a_decision_takes_effect_after_simulated_thinking_however_slow_the_endpoint_is(base, tmp_path):
    heard = []
    for latency in (0.0, 0.05):
        place = tmp_path / str(latency)
        place.mkdir()
        with JudgeServer(answer=caller, latency=latency) as server:
            pack = with_user(base, place, scenario(server.url, endpoint=f"cache: {place / 'cache'}"))
            heard.append(talk(pack)[0])
    assert np.array_equal(heard[0].mic, heard[1].mic) and heard[0].events == heard[1].events


def test_the_thread_that_steps_neither_asks_nor_looks_into_the_cache(base, tmp_path, monkeypatch):
    threads: dict[str, set[str]] = {"cache": set(), "endpoint": set()}
    get, complete = Cache.get, Endpoint.complete

    def noted_get(self, key):
        threads["cache"].add(threading.current_thread().name)
        return get(self, key)

    def noted_complete(self, *asked):
        threads["endpoint"].add(threading.current_thread().name)
        return complete(self, *asked)

    monkeypatch.setattr(Cache, "get", noted_get)
    monkeypatch.setattr(Endpoint, "complete", noted_complete)
    with JudgeServer(answer=caller) as server:
        pack = with_user(base, tmp_path, scenario(server.url))
        (first,), (again,) = talk(pack), talk(pack)  # the second time every answer is known
    assert again.meta["llm"]["cached"] == again.meta["llm"]["decisions"] > 3 and np.array_equal(first.mic, again.mic)
    assert len(threads["cache"] | threads["endpoint"]) == 1
    assert threading.current_thread().name not in threads["cache"]


def test_all_rows_ask_before_any_row_waits(base, tmp_path):
    with JudgeServer(answer=caller, latency=0.2) as server:
        pack = with_user(base, tmp_path, scenario(server.url))
        env = DuplexVectorEnv(pack, 8, frames=20)
        env.reset(seed=3, options={"scenario": "call", "variant": list(range(8))})
        for _ in range(8):
            env.step(np.zeros((8, F), np.float32))
        assert server.most_at_once >= 4


def test_rows_of_a_group_and_of_the_next_batch_meet_the_same_user_and_the_model_is_asked_once(base, tmp_path):
    with JudgeServer(answer=caller) as server:
        pack = with_user(base, tmp_path, scenario(server.url))
        first = talk(pack, rows=3)
        asked = len(server.requests)
        again = talk(pack, rows=1)[0]
        assert asked == len(server.requests) == len(first[0].decisions)
        assert all(np.array_equal(one.mic, again.mic) and one.events == again.events for one in first)
        assert all(line["cached"] for line in again.decisions)
        other = talk(pack, variant=1)[0]
    assert server.requests[0]["seed"] != server.requests[-1]["seed"] and other.meta["variant"] == 1


def test_the_log_beside_an_episode_gives_the_same_episode_without_the_endpoint(base, tmp_path):
    with JudgeServer(answer=caller) as server:
        text = scenario(server.url)
        (first,) = talk(with_user(base, tmp_path, text))
    first.save(tmp_path / "talk")
    assert Episode.load(tmp_path / "talk").decisions == first.decisions
    replayed = text.replace("  endpoint", "  log: talk/decisions.jsonl\n  endpoint")
    pack = with_user(base, tmp_path, replayed.replace("model: tester", "model: tester, cache: nowhere"))
    (again,) = talk(pack)
    assert np.array_equal(first.mic, again.mic) and first.events == again.events
    assert not (tmp_path / "nowhere").exists()
    (other,) = talk(pack, on=[(3.0, 4.0)])  # this agent was not in the log: stated, and no decision is made up
    assert other.meta["llm"]["faults"].keys() == {"not_in_log"} and other.meta["llm"]["left"] == "faults"


def test_speech_is_synthesised_by_an_engine_and_kept_in_the_log(base, tmp_path, monkeypatch):
    class Tone:
        name, licence, said = "tone", "none", 0

        def voices(self) -> list[str]:
            return ["low"]

        def say(self, text: str, voice: str) -> np.ndarray:
            Tone.said += 1
            return 0.1 * np.sin(np.arange(2400 * len(text.split())) * 0.05).astype(np.float32)

    class Point:
        name, value = "tone", "somewhere:Tone"

        def load(self):
            return Tone

    monkeypatch.setattr("envs.users.decisions.entry_points", lambda group: [Point()])
    open_engine.cache_clear()
    acts = iter(
        [
            {"act": "speak", "words": "Does it rain today?", "when": {"after": 0.1}},
            {"act": "backchannel", "words": "mm-hm"},
            {"act": "hang_up", "words": f"Thank {KEY}."},
        ]
    )

    def answer(body: dict[str, Any]) -> str:
        return json.dumps(next(acts, {"act": "wait"}))

    monkeypatch.setenv("TEST_USER_KEY", KEY)  # a server may say anything, even this
    with JudgeServer(answer=answer) as server:
        speech = "  speech: {engine: tone, voice: low}\n"
        text = scenario(server.url, more=speech, endpoint="api_key_env: TEST_USER_KEY")
        (first,) = talk(with_user(base, tmp_path, text))
    assert [(event.type, event.text) for event in first.events] == [
        ("A1", "Does it rain today?"), ("D1", "mm-hm"), ("A8", "Thank [key].")
    ]  # fmt: skip
    assert first.events[0].words[-1].offset == first.events[0].offset and Tone.said == 3
    first.save(tmp_path / "talk")
    open_engine.cache_clear()
    monkeypatch.setattr("envs.users.decisions.entry_points", lambda group: [])  # the engine is gone
    (again,) = talk(with_user(base, tmp_path, text.replace("  endpoint", "  log: talk/decisions.jsonl\n  endpoint")))
    assert np.array_equal(first.user, again.user) and first.events == again.events and Tone.said == 3
    with pytest.raises(UptakeError, match="no speech engine 'tone'"):
        open_engine(Voice("tone", "low"))


def test_it_breaks_off_when_the_model_yields_to_an_agent_that_talks_over_it(base, tmp_path):
    def answer(body: dict[str, Any]) -> str:
        told, offered = body["messages"][1]["content"], body["messages"][0]["content"]
        if "talks over you" in told:
            return '{"act": "yield"}'
        story = next(line for line in offered.splitlines() if "we had a boat" in line).strip().split(":")[0]
        begin = {"act": "speak", "words": story, "when": {"after": 0}}
        return json.dumps(begin if "just begun" in told else {"act": "wait"})

    with JudgeServer(answer=answer) as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url)), on=[(1.5, 6.0)], frames=100)
    told = episode.events[0]
    assert told.type == "B7" and not told.text.endswith("home")
    # 1.0 s of overlap, 0.4 s of thinking, and the frame that it is noticed in
    assert CLOCK.seconds(told.offset) == pytest.approx(1.5 + 1.0 + 0.4, abs=0.16)
    assert not episode.user[told.offset + 120 : told.offset + F].any()


# ---- faults and bounds


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("slow", "timeout"), ("trickle", "timeout"), ("busy", "rate_limited"), ("error", "server_error"),
     ("prose", "nonsense"), ("off_scale", "nonsense"), ("truncated", "malformed"), ("no_json", "malformed"),
     ("empty", "malformed"), ("wrong_model", "wrong_model"), ("echo", "nonsense"), ("denied", "refused"),
     ("hang_up", "malformed"), ("huge", "malformed"), ("broken_gzip", "malformed")],
)  # fmt: skip
def test_an_endpoint_that_fails_is_contained_counted_and_followed_by_silence_and_a_hang_up(
    base, tmp_path, caplog, monkeypatch, fault, kind
):
    monkeypatch.setenv("TEST_USER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with JudgeServer(fault=lambda number: fault, answer=caller) as server:
        seconds = 0.2 if kind == "timeout" else 30  # a machine that is busy is no fault of the endpoint
        limits = f"timeout_s: {seconds}, patience_s: 60, api_key_env: TEST_USER_KEY"
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url, endpoint=limits)), on=[])
        assert set(server.keys) == {f"Bearer {KEY}"}
    llm = episode.meta["llm"]
    assert llm["faults"] == {kind: 2} and llm["left"] == "faults" and not episode.user.any()
    assert [event.type for event in episode.events] == ["E2"] and episode.meta["ended"] == "script"
    assert caplog.text.count(f"no decision: call, variant 0, at 0.00 s: {kind}: ") == 1
    place = episode.save(tmp_path / "talk")
    told = [path.read_text() for path in place.glob("*.json*")] + [caplog.text, repr(episode.meta)]
    told += [path.read_text() for path in tmp_path.rglob(".user-cache/**/*.json")]
    assert not [text for text in told if KEY in text]


def test_an_endpoint_that_is_down_is_a_fault_and_one_that_comes_back_is_asked_again(base, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    (episode,) = talk(with_user(base, tmp_path, scenario(url)), on=[])
    assert episode.meta["llm"]["faults"] == {"unreachable": 2}
    with JudgeServer(fault=lambda number: "error" if number == 0 else "", answer=caller) as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url)), on=[])
    assert episode.meta["llm"]["faults"] == {"server_error": 1} and episode.decisions[1]["decision"]["act"] == "wait"


def test_a_moment_further_off_than_any_clock_shows_is_nonsense(base, tmp_path):
    with JudgeServer(answer=lambda body: '{"act": "wait", "when": {"after": 1' + "0" * 400 + "}}") as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url)), on=[])
    assert episode.meta["llm"]["faults"] == {"nonsense": 2} and episode.meta["llm"]["left"] == "faults"


def test_what_nobody_foresaw_in_a_reply_costs_its_decision_and_not_the_run(base, tmp_path, monkeypatch):
    def reads(self: Endpoint, content: bytes) -> None:
        raise ZeroDivisionError(f"{KEY}\nof a kind of its own")

    monkeypatch.setenv("TEST_USER_KEY", KEY)
    monkeypatch.setattr(Endpoint, "_read", reads)
    with JudgeServer(answer=caller) as server:
        text = scenario(server.url, endpoint="api_key_env: TEST_USER_KEY")
        (episode,) = talk(with_user(base, tmp_path, text), on=[])
    assert episode.meta["llm"]["faults"] == {"unforeseen": 2} and episode.meta["llm"]["left"] == "faults"
    assert [line["detail"] for line in episode.decisions] == ["ZeroDivisionError"] * 2  # its text may hold a key


def test_a_fault_stands_for_the_question_that_waits_for_it_however_soon_it_comes(base, tmp_path, monkeypatch):
    ask = Decisions.ask

    def ask_and_wait(self, question):
        ask(self, question)
        self._under_way[question.key].result(30)

    monkeypatch.setattr(Decisions, "ask", ask_and_wait)
    with JudgeServer(fault=lambda number: "error" if number == 0 else "", answer=caller) as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url)), on=[])
    assert episode.meta["llm"]["faults"] == {"server_error": 1}


@pytest.mark.parametrize(
    ("limit", "why"), [("turns: 1", "turns"), ("requests: 3", "requests"), ("tokens: 1200", "tokens")]
)
def test_turns_requests_and_tokens_are_bounded_and_their_end_is_a_hang_up(base, tmp_path, limit, why):
    def answer(body: dict[str, Any]) -> str:
        return '{"act": "speak", "words": "t1", "when": {"after": 0}}'

    with JudgeServer(answer=answer) as server:
        (episode,) = talk(with_user(base, tmp_path, scenario(server.url, more=f"  {limit}\n")), on=[], frames=260)
    assert episode.meta["llm"]["left"] == why and episode.events[-1].type == "E2"
    assert len(episode.decisions) <= {"turns": 1, "requests": 3, "tokens": 4}[why]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  goal: Find out when the train leaves.\n", "", r"user has no 'goal'; add it"),
        ("http://127.0.0.1:9/v1", "127.0.0.1:9", r":9: user.endpoint.base_url = '127.0.0.1:9': must be an http"),
        ("http://", "http://me:secret@", r"users.yaml:9: user.endpoint.base_url holds a user, a password"),
        ("model: tester", "modell: tester", r":9: unknown key 'modell' in user.endpoint; did you mean 'model'"),
        ("  endpoint", "  api_key: x\n  endpoint", r"unknown key 'api_key' in user"),
        ("  endpoint", "  think_s: 0\n  endpoint", r"user.think_s is 0; it must be at least 0.16"),
        ("  endpoint", "  persona: {}\n  endpoint", r"'persona' does not belong to the llm driver"),
        ("model: tester", "model: tester, body: {stream: 1}", r"user.endpoint.body.stream: is set by uptake"),
    ],
)  # fmt: skip
def test_a_user_that_cannot_work_is_refused_with_its_line(base, tmp_path, old, new, message):
    text = scenario()
    assert old in text
    with pytest.raises(UptakeError, match=message) as caught:
        with_user(base, tmp_path, text.replace(old, new))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "endpoint", "message"),
    [
        ("  log: nowhere.jsonl\n", "", r"nowhere.jsonl: cannot be read"),
        ("  speech: {engine: flute, voice: x}\n", "", r"no speech engine 'flute'; did you mean 'flite'"),
        ("", "api_key_env: NOT_SET_ANYWHERE", r"NOT_SET_ANYWHERE: this environment variable is not set"),
    ],
)
def test_what_would_make_every_decision_fail_is_found_before_the_first_step(base, tmp_path, more, endpoint, message):
    pack = with_user(base, tmp_path, scenario(more=more, endpoint=endpoint))
    env = DuplexVectorEnv(pack, 1, frames=20)
    with pytest.raises(UptakeError, match=message):
        env.reset(seed=1, options={"scenario": "call"})


HUGE = st.integers(308, 4000).map(lambda digits: 10**digits)  # JSON has no largest number
REPLIES = st.one_of(
    st.text(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.floats() | HUGE | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["act", "words", "when"]), inner),
        max_leaves=6,
    ).map(json.dumps),
    st.fixed_dictionaries(
        {"act": st.sampled_from([*ACTS, "dance"]), "words": st.sampled_from(["t1", "b1", "a1", "t99", "", "hello"])},
        optional={
            "intent": st.sampled_from(["correction", "stop", "spite"]),
            "when": st.none()
            | st.fixed_dictionaries({"after": st.floats(-1, 100) | HUGE})
            | st.fixed_dictionaries(
                {"agent": st.sampled_from(["silent", "speaking", "asleep"]), "for": st.integers(0, 9)}
            ),
        },
    ).map(json.dumps),
)


@pytest.fixture(scope="module")
def plan(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("plan")
    pack = with_user(base, place, scenario(more="  turns: 5\n  requests: 12\n"))
    return bind(pack, pack.scenario("call"), 3, 0)


@settings(max_examples=150, deadline=None)
@given(reply=REPLIES)
def test_any_reply_is_a_decision_that_reads_back_or_nonsense(plan, reply):
    try:
        decision = read(plan, reply)
    except Fault as fault:
        assert fault.kind == "nonsense" and "\n" not in str(fault)[:1]
        return
    assert read(plan, json.dumps(decision.to_json())) == decision
    assert (decision.words in plan.offers) or decision.act in ("wait", "yield", "hang_up")


def test_the_model_is_offered_one_voices_words_and_every_kind_by_its_letter(plan):
    told = instructions(plan)
    assert {offer.clip.voice for offer in plan.offers.values() if offer.clip.words} == {plan.voice}
    assert "b1: yeah" in told and "(cough)" in told and "Find out when the train leaves." in told
    assert len({offer.text for name, offer in plan.offers.items() if name[0] == "t"}) == len(
        [name for name in plan.offers if name[0] == "t"]
    )


# ---- the state machine, with a model that decides anything at all


class Whim:
    """Decisions from a list, over and over; an entry that is no decision is a fault."""

    def __init__(self, replies: list[str]) -> None:
        self.replies, self.asked, self.taken = replies, [], []

    def open(self, user: Any) -> None:
        pass

    def ask(self, question) -> None:
        self.asked.append(question)

    def take(self, question) -> Decided:
        self.taken.append(question)
        try:
            return Decided(read(question.caller, self.replies[question.number % len(self.replies)]), tokens=1)
        except Fault as fault:
            return Decided(fault=fault.kind, detail=str(fault))

    def forget(self, waiting: Any) -> None:
        pass


WHEN = st.none() | st.one_of(
    st.fixed_dictionaries({"after": st.sampled_from([0, 0.3, 2.5, 40])}),
    st.fixed_dictionaries({"agent": st.sampled_from(["silent", "speaking"]), "for": st.sampled_from([0, 0.4, 3])}),
)
DECISIONS = st.lists(
    st.one_of(
        st.builds(
            lambda act, number, when, intent: json.dumps(
                {
                    "act": act,
                    "words": {"backchannel": "b", "aside": "a"}.get(act, "t") + str(number),
                    "when": when,
                    "intent": intent,
                }
            ),
            st.sampled_from([*ACTS]),
            st.integers(1, 2),
            WHEN,
            st.sampled_from(["new_topic", "stop", "repetition"]),
        ),
        st.just("{}"),
        st.just('{"act": "hang_up", "when": {"agent": "speaking", "for": 3}}'),
    ),
    min_size=1,
    max_size=12,
)
SPEECH = st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=10)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(replies=DECISIONS, pattern=SPEECH)
def test_whatever_a_model_decides_the_user_keeps_to_its_rules(plan, replies, pattern):
    source = Whim(replies)
    driver, ear = LlmDriver(1, source), OnlineActivity(1)
    frames = ([speaks for speaks, length in pattern for _ in range(length)] + [False] * 260)[:260]
    cues = driver.reset(0, plan)
    assert not cues
    ear.now[:] = F
    left, wanted, voice = -1, False, 0.1 * np.ones((1, F), np.float32)
    for speaks in frames:
        ear.update(voice if speaks else 0 * voice)
        before: State = driver._states[0]
        turns, said, free = before.turns, before.said, before.free
        for cue in driver.advance(Heard(ear.now, ear, voice)):  # causal, and within one frame
            assert ear.now[0] <= cue.onset and cue.onset + len(cue.pcm) <= ear.now[0] + F
        after = driver._states[0]
        begun = after.said[len(said) :]
        assert len(begun) <= 1
        for one in begun:
            assert one.start >= ear.now[0] and one.start >= free  # one mouth
            assert one.act != "backchannel" or after.turns == turns  # a backchannel takes no turn
        assert left < 0 or (after.left == left and not begun)  # a hang-up is never undone
        left = after.left
        decided = [line["decision"] for line in after.record if line["decision"]]
        wanted = wanted or any(decision["act"] == "hang_up" for decision in decided)
    state = driver._states[0]
    numbers = [question.number for question in source.asked]
    assert numbers == list(range(len(numbers))) and numbers[: len(source.taken)] == [q.number for q in source.taken]
    assert len(state.record) == len(source.taken) <= plan.user.requests  # each decision is taken once
    fired = len(state.said) + len(state.dropped)
    assert fired <= sum(1 for line in state.record if line["decision"])  # no trigger fires twice
    ids = [event.id for event in driver.events(0)]
    assert len(set(ids)) == len(ids)
    assert all(a.stop <= b.start for a, b in pairwise(state.said))
    assert state.turns <= plan.user.turns
    last = [line for line in state.record if line["decision"] and line["decision"]["act"] == "hang_up"]
    if last:  # decided, its moment or its time-out past: then it happened
        waits = last[0]["decision"]["when"].get("after", plan.user.timeout_s)
        assert left >= 0 or CLOCK.seconds(int(ear.now[0]) - last[0]["due"]) < waits + 4.0
    assert driver.done_at(0) <= plan.longest  # it always ends


def test_a_fork_and_a_restored_state_go_on_identically(base, tmp_path):
    with JudgeServer(answer=caller) as server:
        pack = with_user(base, tmp_path, scenario(server.url))
        env = DuplexVectorEnv(pack, 2, frames=150)
        env.reset(seed=3, options={"scenario": "call", "variant": [0, 1]})
        agent = speech(151, AGENT)
        for action in agent[1:45]:
            env.step(np.repeat(action[None], 2, axis=0))
        state = env.get_state()
        env.fork(0, [1])
        first = [env.step(np.repeat(action[None], 2, axis=0))[0]["mic"] for action in agent[45:]]
        assert all((frame[0] == frame[1]).all() for frame in first)
        assert env.episode(0).events == env.episode(1).events
        env.set_state(state)
        again = [env.step(np.repeat(action[None], 2, axis=0))[0]["mic"] for action in agent[45:]]
        assert all((a[0] == b[0]).all() for a, b in zip(first, again, strict=True))


def test_a_fork_of_one_conversation_asks_and_decides_alike_wherever_it_was_made(base, tmp_path):
    with JudgeServer(answer=caller) as server:
        env = DuplexEnv(with_user(base, tmp_path, scenario(server.url)), frames=150, act="canned")
        env.reset(seed=3, options={"scenario": "call"})
        said = [0] * 30 + [1] * 60 + [0] * 60
        for action in said[:35]:  # a question is under way or just decided: the fork asks it anew
            env.step(action)
        twin = env.fork()
        heard = [[one.step(action)[0]["mic"] for action in said[35:]] for one in (env, twin)]
        assert np.array_equal(*map(np.stack, heard))
        own, others = env.episode(), twin.episode()
        assert own.events == others.events and own.meta["llm"]["faults"] == {}
        assert [line["key"] for line in own.decisions] == [line["key"] for line in others.decisions]
        assert any("assistant: it will rain" in line["situation"] for line in own.decisions)  # canned words are known


def test_nothing_is_asked_once_the_conversation_is_over(base, tmp_path):
    with JudgeServer(answer=lambda body: '{"act": "wait"}') as server:
        text = scenario(server.url).replace("max: 20", "max: 6")
        env = DuplexVectorEnv(with_user(base, tmp_path, text), 1, frames=200)
        env.reset(seed=3, options={"scenario": "call"})
        for _ in range(75):
            env.step(np.zeros((1, F), np.float32))
        asked = len(server.requests)
        assert env.episode(0).meta["ended"] == "script" and asked
        for _ in range(120):
            env.step(np.zeros((1, F), np.float32))
        assert len(server.requests) == asked


def test_a_scripted_agents_words_reach_the_model(base, tmp_path):
    with JudgeServer(answer=caller) as server:
        env = DuplexVectorEnv(with_user(base, tmp_path, scenario(server.url)), 1, frames=120)
        (episode,) = agents.converse(env, agents.EnergyVad(1, env.pack, ms=200), 3, {"scenario": "call"})
    assert any("assistant: it will rain" in line["situation"] for line in episode.decisions)


def test_the_schema_names_the_driver():
    (one,) = parse_scenarios(scenario(more="  turns: 2\n").removesuffix("---\n"), "x")
    assert one.driver == "llm" and one.user.turns == 2 and "C2" in one.types
    text = scenario(endpoint="body: {temperature: 0, top_p: null}").removesuffix("---\n")
    (one,) = parse_scenarios(text, "x")
    assert one.user.endpoint.fields == {"temperature": 0, "max_tokens": 200}
