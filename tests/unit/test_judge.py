"""A language model as judge: what it is asked, what becomes of its answers, and every way in which it can fail."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.chat import chat as chat_module
from envs.chat.breaker import Breaker
from envs.chat.cache import Cache
from envs.chat.endpoint import Endpoint, Fault, retry_after
from envs.errors import UptakeError
from rewards import Composition, EpisodeView, Verdict, get, names, reward
from rewards import registry as registry_module
from rewards.judge import judge as judge_module
from rewards.judge.config import JudgeConfig
from rewards.judge.dialogue import dialogue
from rewards.judge.judge import Judge
from rewards.judge.rubric import PUBLISHED, SAFETY, Question, Rubric, Unreadable
from tests.judge_server import JudgeServer
from tests.unit.test_rewards_episodes import at, conversation, event, words

KEY = 'sk-not/to"be-seen-0123456789'
ASKED = event("A1", 1.0, 4.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "FIRST_WAIT_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def judges(tmp_path: Path) -> Iterator:
    """Makes judges that are closed afterwards."""
    made = []

    def make(url: str, listen=None, **settings) -> Judge:
        defaults = {"model": "tester", "cache": str(tmp_path / "cache"), "retries": 0}
        made.append(Judge(JudgeConfig(base_url=url, **{**defaults, **settings}), listen))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


def spoken(text: str = "the weather is sunny", **meta):
    """The user asks about the weather from 1 to 4 s, the agent says a text from 4.3 s on."""
    return conversation(
        [(4.3, 7.0)] if text else [],
        [event("A1", 1.0, 4.0)],
        [(1.0, 4.0)],
        transcript=words(text, 4.3),
        meta={"scenario": "turn/weather", "variant": 3, "policy_seed": 77, **meta},
    )


def question(number: int = 0, rubric: Rubric = PUBLISHED) -> Question:
    return Question(rubric, (("USER", f"what about the weather {number}"),), "the weather is sunny")


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


# ---- what is asked


def test_the_published_judge_is_asked_as_published() -> None:
    rubric = get("published_judge").rubric
    assert rubric is not None
    assert (rubric.low, rubric.high) == (0, 2)
    assert [rubric.value(score) for score in (0, 1, 2)] == [-1.0, 0.0, 1.0]
    assert get("published_judge").events == ("A1", "A3", "C1", "C2")  # turn and interruption only
    first, second = Question(rubric, (("USER", "hi"), ("MODEL", "yes?"), ("USER", "when?")), "at noon").messages
    assert first["role"] == "system"
    assert first["content"].startswith(
        "You are evaluating a spoken dialogue model's response in a turn-taking scenario."
    )
    assert first["content"].endswith("Output ONLY a single integer from 0 to 2.")
    assert second == {
        "role": "user",
        "content": "Conversation history:\nUSER: hi\nMODEL: yes?\nUSER: when?\n\nMODEL response:\nat noon",
    }


def test_an_answer_that_began_before_the_turn_was_over_is_judged_whole() -> None:
    episode = conversation([(3.0, 6.0)], [ASKED], [(1, 4)], transcript=words("it is sunny and warm today", 3.0, 0.5))
    assert dialogue(EpisodeView(episode, at(9.0)), ASKED)[1] == "it is sunny and warm today"


def test_speech_that_an_interruption_cuts_off_is_history_and_what_follows_is_the_response() -> None:
    cut = event("C1", 6.0, 8.0, sem=7.0)
    said = words("the weather is sunny and warm", 4.3, 0.5) + words("the train leaves at noon", 8.5)
    episode = conversation([(4.3, 7.3), (8.5, 10.5)], [ASKED, cut], [(1, 4), (6, 8)], transcript=said)
    history, response = dialogue(EpisodeView(episode, at(13.0)), cut)
    assert [speaker for speaker, _ in history] == ["MODEL"]  # tone bursts say nothing for the user
    assert history[0][1] == "the weather is sunny and warm"
    assert response == "the train leaves at noon"


def test_a_model_that_talks_on_through_an_interruption_is_judged_by_how_it_goes_on() -> None:
    cut = event("C1", 6.0, 8.0, sem=7.0)
    episode = conversation([(4.3, 10.0)], [ASKED, cut], [], transcript=words("a b c d e f g h i j", 4.3, 0.5))
    history, response = dialogue(EpisodeView(episode, at(13.0)), cut)
    assert history == (("MODEL", "a b c d e f g"),)
    assert response == "h i j"


def test_history_alternates_and_ends_with_the_user_whatever_was_said_inside_a_turn() -> None:
    from dataclasses import replace

    first = replace(event("A1", 1.0, 2.0), text="hello")
    story = replace(event("B7", 4.0, 8.0), text="so then")
    end = replace(event("A3", 4.0, 8.0), text="so then")
    backchannel = replace(event("D1", 3.0, 3.2), text="yeah")
    said = words("hi there", 2.2) + words("right", 3.3) + words("mm-hm", 6.0) + words("how lovely", 8.4)
    spans = [(2.2, 2.8), (3.3, 3.6), (6.0, 6.3), (8.4, 9.0)]
    episode = conversation(spans, [first, backchannel, story, end], [], transcript=said)
    history, response = dialogue(EpisodeView(episode, at(13.0)), end)
    assert history == (("USER", "hello"), ("MODEL", "hi there right"), ("USER", "so then"))
    assert response == "how lovely"


@pytest.mark.parametrize("term", ["published_judge", "safety_judge"])
def test_silence_has_the_lowest_score_and_nobody_is_asked(term: str) -> None:
    verdict = get(term).judge(spoken(""), ASKED)
    assert (verdict.value, verdict.question, verdict.raw["score"]) == (-1.0, None, 0.0)


def test_without_words_or_time_to_answer_nothing_is_judged() -> None:
    deaf = conversation([(4.3, 7.0)], [ASKED], [])
    short = conversation([(4.3, 5.0)], [ASKED], [], seconds=5.0, transcript=words("yes", 4.3))
    for episode in (deaf, short):
        verdict = get("published_judge").judge(episode, ASKED)
        assert (verdict.value, verdict.question) == (None, None)


# ---- what is read out of a reply


@pytest.mark.parametrize("reply", ["2", " 2\n", "**2**", '"2"', "2.", "<think>maybe 0\nor 1</think>\n2", "+2"])
def test_one_number_and_nothing_else_is_a_score(reply: str) -> None:
    assert PUBLISHED.read(reply) == 2


@pytest.mark.parametrize(
    "reply, kind",
    [("", "prose"), ("Score: 2", "prose"), ("1 or 2", "prose"), ("2/2", "prose"), ("1.5", "prose"), ("²", "prose"),
     ("<think>2", "prose"), ("3", "out_of_scale"), ("-1", "out_of_scale"), ("9" * 5000, "out_of_scale")],
)  # fmt: skip
def test_everything_else_is_a_fault(reply: str, kind: str) -> None:
    with pytest.raises(Unreadable) as caught:
        PUBLISHED.read(reply)
    assert caught.value.kind == kind


@settings(deadline=None)
@given(st.text(max_size=40) | st.integers().map(str))
def test_whatever_the_reply_it_is_a_score_on_the_scale_or_refused(reply: str) -> None:
    try:
        assert PUBLISHED.read(reply) in (0, 1, 2)
    except Unreadable as error:
        assert error.kind in ("prose", "out_of_scale")


# ---- answers


def test_an_answer_becomes_a_verdict_that_says_who_judged_what(judges) -> None:
    with JudgeServer() as server:
        composition = Composition({"published_judge": 1.0, "turn_taking": 1.0}, judge=judges(server.url))
        verdicts = {verdict.term: verdict for verdict in composition.score(spoken())}
        judged = verdicts["published_judge"]
        assert judged.value == 0.0 - 1.0  # the user's bursts have no words in common with anything
        assert judged.raw == {"words": 4.0, "score": 0.0}
        assert judged.question is None
        record = judged.to_json()["judge"]
        assert (record["model"], record["reply"], record["rubric"]) == ("tester", "0", "published_judge")
        assert record["asked"].endswith("MODEL response:\nthe weather is sunny")
        assert "judge" not in verdicts["turn_taking"].to_json()
        sent = server.requests[0]
        assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tester", 0.0, 16)


def test_verdicts_come_in_the_order_of_events_then_terms_with_a_judge_or_without(judges) -> None:
    episode = conversation([(4.3, 6.3)], [ASKED, event("B1", 2.0, 3.0), event("A1", 8.0, 9.0)], [],
                           transcript=words("at noon", 4.3))  # fmt: skip
    with JudgeServer() as server:
        terms = {"pause_handling": 1.0, "published_judge": 1.0, "turn_taking": 1.0}
        verdicts = Composition(terms, judge=judges(server.url)).score(episode)
    plain = Composition({name: 1.0 for name in terms if name != "published_judge"}).score(episode)
    assert [v for v in verdicts if v.term != "published_judge"] == plain
    assert [v.term for v in verdicts if v.event == ASKED.id] == ["published_judge", "turn_taking"]


def test_the_same_question_is_asked_once_now_and_later_and_by_another_process(judges) -> None:
    with JudgeServer(latency=0.05) as server:
        one = judges(server.url)
        futures = [one.ask(question()) for _ in range(5)]
        assert {future.result().score for future in futures} == {2}
        assert len(server.requests) == 1
        other = judges(server.url)
        again = other.ask(question()).result()
        assert (again.score, again.cached, len(server.requests)) == (2, True, 1)


@pytest.mark.parametrize("change", [{"model": "tester-2"}, {"body": {"temperature": 1.0}}])
def test_another_model_or_another_setting_is_another_question(judges, change) -> None:
    with JudgeServer() as server:
        judges(server.url).ask(question()).result()
        assert not judges(server.url, **change).ask(question()).result().cached
        assert not judges(server.url).ask(question(rubric=SAFETY)).result().cached
        assert len(server.requests) == 3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"v": 1}', '{"v": 1, "key": "KEY", "score": 9}'])
def test_a_damaged_answer_on_disk_is_asked_for_again(judges, tmp_path: Path, damage: str) -> None:
    with JudgeServer() as server:
        first = judges(server.url).ask(question()).result()
        path = Cache(tmp_path / "cache").path(first.key)
        path.write_text(damage.replace("KEY", first.key))
        assert judges(server.url).ask(question()).result().score == 2
        assert len(server.requests) == 2
        assert json.loads(path.read_text())["score"] == 2
        assert not list(tmp_path.rglob("*.partial"))


def test_a_cache_that_cannot_be_written_costs_no_answer(judges, tmp_path: Path, caplog) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with JudgeServer() as server:
        assert judges(server.url).ask(question()).result().score == 2
    assert "answers are not kept" in caplog.text


def test_requests_run_side_by_side_up_to_the_limit(judges) -> None:
    with JudgeServer(latency=0.05) as server:
        judge = judges(server.url, concurrency=4)
        futures = [judge.ask(question(number)) for number in range(20)]
        assert all(future.result().score is not None for future in futures)
        assert 1 < server.most_at_once <= 4


def test_nothing_waits_for_a_judge_before_its_verdicts_are_called_for(judges) -> None:
    go = threading.Event()

    def hold(number: int) -> str:
        go.wait(20)
        return ""

    with JudgeServer(fault=hold) as server:
        composition = Composition({"published_judge": 1.0}, judge=judges(server.url))
        pending = [composition.start(spoken(f"sunny number {number}")) for number in range(8)]  # returns: not blocked
        go.set()
        assert [give()[0].value for give in pending] == [-1.0] * 8
        assert len(server.requests) == 8


def test_a_rubric_of_ones_own_is_one_decorator_and_a_wrong_one_is_a_fault(judges, monkeypatch) -> None:
    names()
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    kind = Rubric("kind", "ours", "Is the MODEL response kind? Output ONLY 0 or 1.", high=1)

    @reward("kindness", axis="quality", events=["A1"], horizon_s=4.0, rubric=kind)
    def kindness(view, event):
        return Verdict(None, (0, view.end), question=Question(kind, (("USER", "sunny"),), "sunny"))

    @reward("muddle", axis="quality", events=["A1"], horizon_s=4.0)
    def muddle(view, event):
        return Verdict(None, (0, view.end), question=Question(kind, (("USER", "sunny"),), "sunny"))

    with JudgeServer() as server:
        composition = Composition({"kindness": 1.0, "muddle": 1.0}, judge=judges(server.url))
        first, second = composition.score(spoken())
    assert first.value == 1.0
    assert (second.value, second.raw["fault"], composition.faults["muddle"]) == (None, 1.0, 1)


def test_a_term_that_asks_a_judge_is_refused_without_one() -> None:
    with pytest.raises(UptakeError, match="'published_judge' asks a language model"):
        Composition({"published_judge": 1.0})
    assert Composition({"published_judge": 0.0, "turn_taking": 1.0}).rubrics == ()


def test_speech_recognition_can_take_the_place_of_the_text_stream_for_the_judge_alone(judges) -> None:
    with JudgeServer() as server:
        judge = judges(server.url, listen=lambda episode: words("rain all day", 4.3))
        said = Composition({"published_judge": 1.0, "quality": 1.0}, judge=judge).score(spoken())
        assert server.requests[0]["messages"][1]["content"].endswith("MODEL response:\nrain all day")
        assert [v.raw.get("words") for v in said] == [3.0, 4.0]


def test_speech_recognition_that_fails_costs_the_judges_verdicts_only(judges, caplog) -> None:
    def broken(episode):
        raise RuntimeError("no model")

    with JudgeServer() as server:
        composition = Composition({"published_judge": 1.0, "turn_taking": 1.0}, judge=judges(server.url, listen=broken))
        judged, turn = composition.score(spoken())
    assert (judged.value, judged.answer.fault, judged.answer.detail) == (None, "transcript", "RuntimeError: no model")
    assert turn.value == 1.0
    assert "scenario turn/weather, variant 3, policy_seed 77" in caplog.text


def test_speech_recognition_that_never_ends_is_given_up(judges) -> None:
    go = threading.Event()
    with JudgeServer() as server:
        judge = judges(server.url, listen=lambda episode: go.wait(20) and (), patience_s=0.1)
        judged, turn = Composition({"published_judge": 1.0, "turn_taking": 1.0}, judge=judge).score(spoken())
        go.set()
    assert (judged.value, judged.answer.fault, turn.value) == (None, "transcript", 1.0)


class Clock:
    """Real time, and what is added to it."""

    added = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.added


def test_no_more_requests_leave_than_a_minute_allows(judges) -> None:
    with JudgeServer() as server:
        judge = judges(server.url, requests_per_minute=2.0)
        asked = [judge.ask(question(number)) for number in range(4)]
        for future in as_completed(asked):
            assert future.result().fault == ""
            if sum(one.done() for one in asked) == 2:
                break
        assert (len(server.requests), [one.done() for one in asked]) == (2, [True, True, False, False])


def test_waiting_for_a_share_of_the_minute_costs_no_question_its_patience(judges, monkeypatch) -> None:
    clock = Clock()
    with JudgeServer() as server:
        judge = judges(server.url, requests_per_minute=1.0, patience_s=20.0, timeout_s=1000.0, concurrency=1)
        monkeypatch.setattr(judge._chat._start(), "time", clock.monotonic)
        first, second = judge.ask(question(0)), judge.ask(question(1))
        assert first.result().score == 2
        clock.added += 61.0
        judge.ask(question(2))  # wakes the loop
        assert second.result().score == 2


def test_a_question_does_not_pay_for_those_before_it(judges, monkeypatch) -> None:
    clock = Clock()

    def slow(number: int) -> str:
        clock.added += 60.0
        return ""

    with JudgeServer(fault=slow) as server:
        judge = judges(server.url, patience_s=100.0, timeout_s=1000.0, concurrency=1)
        monkeypatch.setattr(judge._chat._start(), "time", clock.monotonic)
        assert [f.result().score for f in [judge.ask(question(number)) for number in range(4)]] == [2] * 4


def test_an_episode_does_not_pay_for_those_that_are_listened_to_before_it(judges, monkeypatch) -> None:
    asked, last, go, clock = threading.Event(), threading.Event(), threading.Event(), Clock()
    monkeypatch.setattr(judge_module, "time", clock)

    def listen(episode):
        asked.wait(20)
        if episode.transcript[-1].text == "3":
            last.set()
            go.wait(20)
        clock.added += 60.0
        return words("rain all day", 4.3)

    with JudgeServer() as server:
        judge = judges(server.url, listen=listen, patience_s=100.0)
        composition = Composition({"published_judge": 1.0}, judge=judge)
        pending = [composition.start(spoken(f"sunny number {number}")) for number in range(4)]
        asked.set()
        assert last.wait(20)
        threading.Timer(0.1, go.set).start()
        assert [give()[0].answer.fault for give in reversed(pending)] == [""] * 4


def test_a_judge_that_never_answers_in_time_is_left_alone(judges, caplog) -> None:
    with JudgeServer(fault=lambda number: "slow") as server:
        judge = judges(server.url, patience_s=0.1, retries=9, breaker_faults=2, concurrency=1)
        kinds = [f.result().fault for f in [judge.ask(question(number)) for number in range(6)]]
    assert kinds == ["late", "late", *["breaker_open"] * 4]
    assert "failed 2 times in a row" in caplog.text


# ---- faults

FAULTS = {
    "slow": "timeout", "trickle": "timeout", "busy": "rate_limited", "busy_date": "rate_limited",
    "error": "server_error", "prose": "prose", "off_scale": "out_of_scale", "truncated": "malformed",
    "no_json": "malformed", "empty": "malformed", "huge": "malformed", "broken_gzip": "malformed",
    "hang_up": "malformed", "wrong_model": "wrong_model", "denied": "refused", "echo": "prose",
}  # fmt: skip


def check_contained(composition: Composition, kind: str, caplog) -> None:
    """One judgement fails in a known way, everything else is as it was, and the log says whose it was."""
    judged, turn = composition.score(spoken())
    assert (judged.value, judged.raw["fault"], judged.answer.fault) == (None, 1.0, kind)
    assert turn.value == 1.0
    assert composition.total([judged, turn]) == 1.0  # masked, not counted as zero
    assert composition.faults == {"published_judge": 1}
    assert composition.judge.counts[kind] == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "scenario turn/weather, variant 3, policy_seed 77, event A1@1, published_judge: " + kind in line
    assert "\n" not in line


@pytest.mark.parametrize("fault, kind", FAULTS.items())
def test_each_fault_of_a_judge_is_contained_counted_and_named(judges, caplog, fault: str, kind: str) -> None:
    with JudgeServer(fault=lambda number: fault) as server:
        judge = judges(server.url, timeout_s=0.3 if kind == "timeout" else 20.0)
        check_contained(Composition({"published_judge": 1.0, "turn_taking": 1.0}, judge=judge), kind, caplog)


def test_a_judge_that_is_down_is_contained_counted_and_named(judges, caplog) -> None:
    judge = judges(closed_port())
    check_contained(Composition({"published_judge": 1.0, "turn_taking": 1.0}, judge=judge), "unreachable", caplog)


def test_a_question_is_given_up_when_patience_ends_and_not_kept(judges, caplog) -> None:
    with JudgeServer(fault=lambda number: "slow") as server:
        judge = judges(server.url, patience_s=0.2, retries=9)
        check_contained(Composition({"published_judge": 1.0, "turn_taking": 1.0}, judge=judge), "late", caplog)
        server.fault = lambda number: ""
        assert not judges(server.url).ask(question()).result().cached


@pytest.mark.parametrize("fault", ["error", "busy", "busy_date", "truncated", "hang_up", "no_json", "slow"])
def test_a_failure_that_passes_is_tried_again(judges, fault: str) -> None:
    with JudgeServer(fault=lambda number: fault if number == 0 else "") as server:
        answer = judges(server.url, retries=1, timeout_s=2.0 if fault == "slow" else 20.0).ask(question()).result()
        assert (answer.score, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("fault", ["prose", "off_scale", "wrong_model", "denied"])
def test_a_failure_that_would_come_again_is_not_tried_again(judges, fault: str) -> None:
    with JudgeServer(fault=lambda number: fault) as server:
        assert judges(server.url, retries=5).ask(question()).result().fault == FAULTS[fault]
        assert len(server.requests) == 1


def test_a_model_that_thinks_before_it_answers_is_understood(judges) -> None:
    with JudgeServer(fault=lambda number: "thinks") as server:
        assert judges(server.url).ask(question()).result().score == 2


@pytest.mark.parametrize(
    "header, seconds",
    [("3", 3.0), ("-1", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", 0.0), ("", 0.0), ("9" * 400, 0.0)],
)
def test_how_long_to_wait_is_read_from_seconds_or_a_date(header: str, seconds: float) -> None:
    assert retry_after(header) == seconds


def test_a_judge_that_fails_again_and_again_is_left_alone_and_the_rest_is_masked(judges, caplog) -> None:
    with JudgeServer(fault=lambda number: "error") as server:
        judge = judges(server.url, breaker_faults=3, breaker_s=3600.0, concurrency=1)
        kinds = [judge.ask(question(number)).result().fault for number in range(10)]
        assert kinds == ["server_error"] * 3 + ["breaker_open"] * 7
        assert len(server.requests) == 3
    assert "failed 3 times in a row" in caplog.text


def test_one_question_tries_a_judge_that_was_left_alone_and_the_others_follow(judges, caplog) -> None:
    with JudgeServer(latency=0.02, fault=lambda number: "error" if number < 4 else "") as server:
        judge = judges(server.url, breaker_faults=3, breaker_s=0.0)
        for number in range(3):
            judge.ask(question(number)).result()
        half_open = [judge.ask(question(number)).result().fault for number in (3,)]
        server.most_at_once = 0
        recovered = [judge.ask(question(number)) for number in range(4, 12)]
        assert half_open == ["server_error"]
        assert [future.result().score for future in recovered] == [2] * 8
        assert len(server.requests) == 12
    assert "answers again" in caplog.text


@settings(deadline=None)
@given(st.lists(st.sampled_from(["fail", "pass", "wait"]), max_size=60))
def test_a_breaker_opens_after_failures_in_a_row_only_and_never_for_longer_than_said(steps: list[str]) -> None:
    now, row, opened = 0.0, 0, None
    breaker = Breaker(3, 10.0, lambda: now)
    for step in steps:
        if step == "wait":
            now += 4.0
        elif step == "pass":
            assert breaker.succeeded() == (opened is not None)
            row, opened = 0, None
        else:
            row += 1
            opens = row >= 3 and (opened is None or now >= opened + 10.0)
            assert breaker.failed() == opens
            opened = now if opens else opened
        expected = "closed" if opened is None else "open" if now < opened + 10.0 else "half_open"
        assert breaker.state == expected


# ---- keys


def test_a_key_reaches_the_judge_and_nothing_else(judges, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    order = ["denied", "echo", "error", "prose", "truncated", "wrong_model", "hang_up", "broken_gzip", ""]
    told: list[str] = []
    with JudgeServer(fault=lambda number: order[number % len(order)]) as server:
        judge = judges(server.url, api_key_env="TEST_JUDGE_KEY", breaker_faults=99)
        judge.record_in(tmp_path, (PUBLISHED, SAFETY))
        composition = Composition({"published_judge": 1.0}, judge=judge)
        for number in range(len(order)):
            told += [
                repr(verdict) + json.dumps(verdict.to_json()) for verdict in composition.score(spoken(str(number)))
            ]
        server.fault = lambda number: "denied"
        try:
            judge.probe(PUBLISHED)
        except UptakeError:
            told.append(traceback.format_exc())
        assert set(server.keys) == {f"Bearer {KEY}"}
        told += [repr(judge), repr(judge.config), repr(vars(judge)), caplog.text]
        server.fault = lambda number: "slow"
        slow = judges(server.url, api_key_env="TEST_JUDGE_KEY", timeout_s=0.1, cache=str(tmp_path / "other"))
        down = judges(closed_port(), api_key_env="TEST_JUDGE_KEY", cache=str(tmp_path / "other"))
        told += [repr(judge.ask(question()).result()) for judge in (slow, down)]
    told += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    spellings = [KEY, json.dumps(KEY)[1:-1], KEY[:12]]
    assert not [text for text in told for spelling in spellings if spelling in text]
    assert any("[key]" in text for text in told)  # it was there to be found
    assert (tmp_path / "judge.json").is_file()
    assert len((tmp_path / "judgements.jsonl").read_text().splitlines()) == len(order)


@pytest.mark.parametrize("held", [None, "", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_missing_or_cannot_be_sent_is_named_by_its_variable_only(judges, monkeypatch, held) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("TEST_JUDGE_KEY", held)
    with pytest.raises(UptakeError, match="TEST_JUDGE_KEY") as caught:
        judges("http://127.0.0.1:1/v1", api_key_env="TEST_JUDGE_KEY")
    assert not held or held not in str(caught.value)


@pytest.mark.parametrize(
    "settings, says",
    [({"base_url": ""}, "judge.base_url is empty"), ({"model": ""}, "judge.model is empty"),
     ({"base_url": "http://me:sk-secret@host/v1"}, "holds a user"), ({"base_url": "http://h/v1?k=sk-secret"}, "query"),
     ({"base_url": "host:8000"}, "must be an http:// or"), ({"api_key_env": "sk-secret"}, "never the key"),
     ({"concurrency": 0}, "at least 1"), ({"timeout_s": 0.0}, "more than 0"), ({"retries": -1}, "0 or more"),
     ({"patience_s": float("nan")}, "more than 0"), ({"transcript": "voice"}, "one of text, asr"),
     ({"base_url": "http://h/v1/sk-secret0"}, "or a key"), ({"body": {"api_key": "sk-secret"}}, "'api_key' would be"),
     ({"body": {"extra_headers": {"Authorization": "sk-secret"}}}, "'Authorization' would be written"),
     ({"body": {"messages": []}}, "set by uptake"), ({"body": {"seed": float("nan")}}, "as JSON")],
)  # fmt: skip
def test_a_section_that_cannot_work_is_one_line_without_a_secret(settings, says: str) -> None:
    with pytest.raises(UptakeError, match=says) as caught:
        JudgeConfig(**{"base_url": "http://127.0.0.1/v1", "model": "m", **settings}).check()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_tokens_are_no_keys() -> None:
    body = {"max_tokens": 16, "max_completion_tokens": 16, "logit_bias": {"50256": -100}}
    JudgeConfig(base_url="http://h/openai/deployments/gpt-4o", model="m", body=body).check()


@pytest.mark.parametrize(
    ("model", "same"),
    [("gpt-4o", True), ("gpt-4o-2024-08-06", True), ("gpt-4o-20240806", True), ("gpt-4o-0613", True),
     ("openai/gpt-4o", True), ("gpt-4o-mini", False), ("gpt-4o-mini-2024-07-18", False), ("-2024-08-06", False)],
)  # fmt: skip
def test_a_dated_snapshot_is_the_model_and_a_smaller_sibling_is_another(model: str, same: bool) -> None:
    endpoint = Endpoint(JudgeConfig(base_url="http://h/v1", model="gpt-4o"))
    content = json.dumps({"model": model, "choices": [{"message": {"content": "2"}}]}).encode()
    if same:
        assert endpoint._read(content).model == model
    else:
        with pytest.raises(Fault, match="asked for 'gpt-4o', answered by"):
            endpoint._read(content)


@pytest.mark.parametrize("fault", ["denied", "prose", "wrong_model"])
def test_a_judge_that_cannot_judge_is_found_before_the_run(judges, fault: str) -> None:
    with (
        JudgeServer(fault=lambda number: fault) as server,
        pytest.raises(UptakeError, match=f"the judge tester at {server.url} gave no score to a test question: "),
    ):
        judges(server.url).probe(PUBLISHED)
