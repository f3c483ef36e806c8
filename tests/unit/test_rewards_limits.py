"""Rewards are anybody's code: whatever they do costs their own verdict, is named and counted, and the run goes on."""

from __future__ import annotations

import logging
import threading

import pytest

from rewards import Composition, compose, names
from rewards import registry as registry_module
from rewards.limits import TimeLimit, within
from tests.unit.test_rewards_episodes import conversation, event

BAD = """
import asyncio, time
import numpy as np
from rewards import Verdict, reward

def bad(name):
    return reward(name, axis="x", events=["A1"], horizon_s=1.0)

@bad("raises")
def raises(view, event): return 1 / 0
@bad("gives_up")
def gives_up(view, event): raise SystemExit(3)
@bad("cancels")
def cancels(view, event): raise asyncio.CancelledError("the client is closed")
@bad("interrupts")
def interrupts(view, event): raise KeyboardInterrupt
@bad("sees_beyond")
def sees_beyond(view, event): return Verdict(0.5, (0, view.end + 1))
@bad("nan_figure")
def nan_figure(view, event): return Verdict(0.5, (0, 1), {"x": float("nan")})
@bad("says_fault")
def says_fault(view, event): return Verdict(0.5, (0, 1), {"fault": 0.0})
@bad("recurses")
def recurses(view, event): return recurses(view, event)
@bad("is_nan")
def is_nan(view, event): return Verdict(float("nan"), (0, 1))
@bad("overflows")
def overflows(view, event): return Verdict(7.0, (0, 1))
@bad("forgets")
def forgets(view, event): pass
@bad("says_a_number")
def says_a_number(view, event): return 0.5
@bad("says_text")
def says_text(view, event): return Verdict("good", (0, 1))
@bad("says_many")
def says_many(view, event): return Verdict(np.ones(3), (0, 1))
@bad("half_a_window")
def half_a_window(view, event): return Verdict(0.5, (0.25, 0.75))
@bad("one_edge")
def one_edge(view, event): return Verdict(0.5, (4,))
@bad("odd_figures")
def odd_figures(view, event): return Verdict(0.5, (0, 1), {"figure": "high"})
@bad("writes")
def writes(view, event): view.agent[:] = 0; return Verdict(1.0, (0, 1))
@bad("spins")
def spins(view, event):
    while True: pass
@bad("waits")
def waits(view, event): time.sleep(3600)
@bad("spins_and_swallows")
def spins_and_swallows(view, event):
    while True:
        try: time.sleep(0.001)
        except Exception: pass
@reward("in_numpy", axis="x", events=["A1"], horizon_s=1.0)
def in_numpy(view, event): return Verdict(np.float32(0.5), (np.int64(0), np.int64(1)), {"figure": np.float64(2.0)})
"""
QUICK = ("raises", "gives_up", "recurses", "is_nan", "overflows", "forgets", "says_a_number", "says_text", "says_many")
QUICK += ("half_a_window", "one_edge", "odd_figures", "writes", "cancels", "interrupts", "sees_beyond", "nan_figure")
QUICK += ("says_fault",)
ENDLESS = ("spins", "waits", "spins_and_swallows")


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Makes a composition of bad rewards and one good one."""
    names()
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    monkeypatch.setattr(registry_module, "_FILES", {})
    path = tmp_path / "bad.py"
    path.write_text(BAD)
    return lambda *wanted: Composition({**{f"{path}:{name}": 1.0 for name in wanted}, "turn_taking": 1.0})


def talk(turns: int = 1):
    episode = conversation([(4.3, 6.3)], [event("A1", 1.0 + i / 100, 4) for i in range(turns)])
    episode.meta.update(scenario="turn/one", variant=2)
    return episode


@pytest.mark.parametrize("name", QUICK)
def test_a_bad_reward_is_masked_counted_and_named_with_its_episode(bad, name, caplog):
    composition, episode = bad(name), talk()
    with caplog.at_level(logging.WARNING):
        faulty, good = composition.score(episode)
    assert (faulty.value, faulty.raw, good.value) == (None, {"fault": 1.0}, 1.0)
    assert dict(composition.faults) == {name: 1}
    assert composition.total([faulty, good]) == 1.0
    (line,) = caplog.messages
    assert line.startswith(f"reward {name} failed on event A1@1 of scenario turn/one, variant 2: ")
    assert episode.agent.any()


@pytest.mark.parametrize("name", ENDLESS)
def test_a_reward_that_never_returns_is_left_behind_and_after_three_times_not_asked_again(
    bad, name, monkeypatch, caplog
):
    monkeypatch.setattr(compose, "LIMIT_SECONDS", 0.05)
    composition = bad(name)
    asked: list[str] = []
    term = composition.rewards[0]
    judge = term.judge_function
    monkeypatch.setattr(term, "judge_function", lambda view, event: (asked.append(event.id), judge(view, event))[1])
    with caplog.at_level(logging.WARNING):
        verdicts = [v for v in composition.score(talk(turns=5)) if v.term == name]
    assert [v.value for v in verdicts] == [None] * 5
    assert len(asked) == compose.STRIKES == 3
    assert composition.faults[name] == 5
    assert sum("did not return within 0.05 s" in line for line in caplog.messages) == 3
    assert sum("not asked any more" in line for line in caplog.messages) == 2


def test_a_call_that_is_left_behind_ends_as_soon_as_it_runs_python_again():
    left: list[threading.Thread] = []

    def spin() -> None:
        left.append(threading.current_thread())
        while True:
            pass

    with pytest.raises(TimeLimit):
        within(0.05, spin)
    left[0].join(timeout=60)
    assert not left[0].is_alive()


def test_a_hopeless_reward_does_not_flood_the_log(bad, caplog):
    composition = bad("raises")
    with caplog.at_level(logging.WARNING):
        composition.score(talk(turns=50))
    assert composition.faults["raises"] == 50
    assert len(caplog.messages) == compose.LOGGED
    assert "counted and not logged" in caplog.messages[-1]


def test_figures_in_numpys_types_are_plain_numbers_in_a_verdict(bad):
    verdict = bad("in_numpy").score(talk())[0]
    assert (verdict.value, verdict.window, verdict.raw) == (0.5, (0, 1), {"figure": 2.0})
    assert [type(x) for x in (verdict.value, *verdict.window, verdict.raw["figure"])] == [float, int, int, float]


def test_a_limited_call_returns_raises_and_runs_in_order():
    assert within(60.0, divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        within(60.0, divmod, 7, 0)
    release = threading.Event()
    with pytest.raises(TimeLimit, match=r"within 0\.01 s"):
        within(0.01, release.wait)
    assert within(60.0, "next".upper) == "NEXT"  # and not what the call before it would have returned
    release.set()
    assert within(60.0, "after".upper) == "AFTER"


def test_limited_calls_from_several_threads_do_not_wait_for_each_other():
    both = threading.Barrier(2, timeout=60)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(within(60.0, both.wait))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1]
