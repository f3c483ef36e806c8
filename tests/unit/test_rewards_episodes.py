"""Conversations made of bursts of a simple voice, for the tests of rewards and measures; what a view may show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clock import CLOCK
from envs.episode import Episode
from envs.event import Event, Expect, Word
from rewards import EpisodeView, get, names
from rewards.registry import EPISODE, whole
from rewards.view import GAP_SECONDS

RATE = CLOCK.sample_rate
Spans = Sequence[tuple[float, float]]


def at(seconds: float) -> int:
    """Seconds to samples."""
    return round(seconds * RATE)


@cache
def _voice(samples: int) -> np.ndarray:
    swing = np.sin(2 * np.pi * 4 * np.arange(samples) / RATE)  # four syllables a second
    hertz, level = 250.0 * 2.4**swing, 0.28 * 10.0 ** (6.0 * np.cos(2 * np.pi * 4 * np.arange(samples) / RATE) / 20.0)
    return (level * np.sin(2 * np.pi * np.cumsum(hertz) / RATE + 0.3)).astype(np.float32)


def bursts(spans: Spans, seconds: float) -> np.ndarray:
    """A voice of one formant, 100 to 600 Hz, about -14 dBFS, in each span: (N,) float32. Spans are cut at the end."""
    audio = np.zeros(at(seconds), np.float32)
    voice = _voice(audio.size)
    for on, off in spans:
        audio[at(max(0.0, on)) : at(max(0.0, off))] = voice[at(max(0.0, on)) : at(max(0.0, off))]
    return audio


def words(text: str, start: float, each: float = 0.3) -> tuple[Word, ...]:
    """The words of a text, one every `each` seconds from `start`."""
    return tuple(Word(w, at(start + i * each), at(start + (i + 0.9) * each)) for i, w in enumerate(text.split()))


def event(kind: str, on: float, off: float, expects: Sequence[Expect] = (), **anchors: float) -> Event:
    """An event of the user from `on` to `off` seconds, its anchors in seconds."""
    marks = {name: at(second) for name, second in anchors.items()}
    return Event(f"{kind}@{on:g}", kind, "user", at(on), at(off), marks, expects=tuple(expects))


def conversation(
    agent: Spans,
    events: Sequence[Event],
    user: Spans = (),
    seconds: float = 14.0,
    transcript: Sequence[Word] | None = None,
    meta: Mapping[str, object] | None = None,
) -> Episode:
    """An episode in which the agent and the user speak in the given spans (seconds)."""
    heard = bursts(user, seconds)
    told = {} if transcript is None else {"text_stream": True}
    return Episode(
        mic=heard,
        user=heard.copy(),
        agent=bursts(agent, seconds),
        events=sorted(events, key=lambda e: e.onset),
        transcript=tuple(transcript or ()),
        meta={**told, **(meta or {})},
    )


def value(term: str, episode: Episode, of: int = 0) -> float | None:
    """The value that a term gives the episode's event number `of`."""
    return get(term).judge(episode, episode.events[of]).value


MANY = (
    event("B1", 3.0, 4.0),
    event("B4", 3.0, 3.6),
    event("A1", 1.0, 4.0, [Expect("responds", content=("noon",))]),
    event("A3", 1.0, 3.0),
    event("B7", 1.0, 6.0, bc0=2.0, bc1=4.5),
    event("C1", 3.0, 4.5, [Expect("responds", content=("noon",))], sem=3.6),
    event("C2", 3.0, 4.5, sem=3.4),
    event("C3", 3.0, 3.6, sem=3.4),
    event("D1", 3.0, 3.4),
    event("D3", 3.0, 3.3),
    event("D5", 3.0, 4.5),
    event("A2", 1.0, 3.0),
    event("A5", 0.0, 0.0),
    event("A6", 3.0, 4.5, collision=3.1),
    event("B2", 3.0, 4.0),
    replace(event("B3", 1.0, 2.2), words=words("wait a second please", 1.0)),
    event("B3", 3.0, 5.0),
    event("C4", 3.0, 4.5),
    event("C8", 3.0, 3.6),
    event("D2", 3.0, 3.4),
    event("D7", 1.0, 6.0),
    event("D8", 1.0, 6.0),
    event("E1", 2.0, 12.0, [Expect("speaks_up", {"early": 1.0, "full": 1.0, "zero": 3.0})], due=5.0),
    event("E2", 2.0, 2.0),
    event("E3", 3.0, 3.5),
    event("E4", 3.0, 5.0),
    replace(event("E4", 3.0, 4.0), words=words("on monday", 3.0)),
    event("E5", 3.0, 3.5, [Expect("speaks_up", content=("noon",))]),
    event("E5", 3.0, 3.5, [Expect("silent")]),
    event("E6", 1.0, 2.0, [Expect("speaks_up")], due=6.0),
    event("A7", 3.0, 4.5, [Expect("yields")], collision=3.0),
    event("G2", 3.0, 3.5, [Expect("speaks_up")]),
    event("G3", 3.0, 5.0, [Expect("stops", {"full": 1.0, "zero": 2.0})]),
    event("G3", 3.0, 5.0, [Expect("continues")]),
    event("G4", 3.0, 3.5, [Expect("resumes", content=("noon",))]),
    event("A1", 1.0, 3.0, [Expect("declines"), Expect("silent", content=("noon",))]),
)
spans = st.lists(
    st.tuples(st.floats(0.0, 13.0), st.floats(0.05, 4.0)).map(lambda s: (round(s[0], 2), round(s[0] + s[1], 2))),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(agent=spans, user=spans, noise=st.integers(0, 2**31), kind=st.sampled_from(MANY))
def test_whatever_happens_after_the_window_changes_no_verdict(agent, user, noise, kind):
    said = words("at noon we open at noon", 5.0)
    calm = conversation(agent, [kind], user, transcript=said)
    rng = np.random.default_rng(noise)
    for name in names():
        term = get(name)
        if not term.applies(kind):
            continue
        end = term.window_end(kind)
        wild = {}
        for track in ("mic", "user", "agent"):
            audio = getattr(calm, track).copy()
            audio[end:] = rng.uniform(-1, 1, audio[end:].size)
            wild[track] = audio
        late = [Event("late", "A1", "user", end + 10, end + 5000), replace(kind, id="later", onset=end, offset=end + 9)]
        garbage = tuple(w for w in said if w.onset < end) + words("yes no yes no", end / RATE)
        noisy = replace(calm, **wild, events=[kind, *late], transcript=garbage)
        assert term.judge(noisy, kind) == term.judge(calm, kind), name


@settings(max_examples=25, deadline=None)
@given(agent=spans, user=spans, kind=st.sampled_from(MANY))
def test_a_reward_called_online_as_its_window_closes_says_what_it_says_after_the_rollout(agent, user, kind):
    whole = conversation(agent, [kind], user, seconds=16.0, transcript=words("at noon we open", 5.0))
    for name in names():
        term = get(name)
        if not term.applies(kind):
            continue
        end = min(term.window_end(kind), whole.samples)
        tracks = {track: getattr(whole, track)[:end] for track in ("mic", "user", "agent")}
        so_far = replace(whole, **tracks, transcript=tuple(w for w in whole.transcript if w.onset < end))
        assert term.judge(so_far, kind) == term.judge(whole, kind), name


@settings(max_examples=25, deadline=None)
@given(agent=spans, kind=st.sampled_from(MANY), seconds=st.floats(0.5, 14.0))
def test_whether_a_turn_or_pause_is_judged_depends_on_the_script_and_never_on_the_agent(agent, kind, seconds):
    scripted = ("pause_handling", "pause_by_length", "turn_taking", "backchannel", "proactivity", "duplexpo_onset")
    for name in (*scripted, "duplexpo_backchannel", "published_pause", "published_turn", "steerduplex_yield"):
        if get(name).applies(kind):
            acted = get(name).judge(conversation(agent, [kind], seconds=seconds), kind)
            idle = get(name).judge(conversation([], [kind], seconds=seconds), kind)
            assert (acted.value is None) == (idle.value is None)


@settings(max_examples=25, deadline=None)
@given(agent=spans, user=spans, kind=st.sampled_from(MANY), seconds=st.floats(0.5, 14.0))
def test_every_verdict_lies_in_range_and_its_credit_inside_the_view(agent, user, kind, seconds):
    episode = conversation(agent, [kind], user, seconds=seconds)
    for name in names():
        if get(name).applies(kind):
            verdict = get(name).judge(episode, kind)
            assert verdict.value is None or -1 <= verdict.value <= 1
            assert verdict.term == name
            assert verdict.event == kind.id
            assert 0 <= verdict.window[0] <= verdict.window[1] <= episode.samples


def test_a_view_ends_where_it_is_told_to():
    asked = event("B7", 1.0, 6.0, bc0=2.0, bc1=5.0)
    spoken = replace(asked, words=words("one two three four", 1.0, each=1.5), text="one two three four")
    episode = conversation([(2.0, 9.0)], [spoken, event("A1", 7, 8)], [(1, 6)], transcript=words("a b c d", 3.0, 0.5))
    view = EpisodeView(episode, at(4.0))
    assert view.agent.shape == view.user.shape == view.mic.shape == (at(4.0),)
    assert view.agent_activity.tolist() == [[at(2.0), at(4.0)]]
    assert [word.text for word in view.transcript] == ["a", "b"]
    (seen,) = view.events
    assert (seen.offset, dict(seen.anchors), seen.text) == (at(4.0), {"bc0": at(2.0)}, "one two")


def test_a_word_belongs_to_the_sound_that_follows_it_closely():
    episode = conversation([(2.0, 2.5), (4.0, 5.0)], [], transcript=words("yes well then", 1.7, each=1.1))
    first, second = EpisodeView(episode, episode.samples).utterances
    assert [w.text for w in first.words or ()] == ["yes"]
    assert [w.text for w in second.words or ()] == ["then"]  # "well" at 2.8 s was said in silence


def test_more_than_two_words_take_the_floor_however_fast():
    quick = conversation([(2.0, 2.8)], [], transcript=words("so here we go", 2.0, each=0.2))
    short = conversation([(2.0, 2.8)], [], transcript=words("oh right", 2.0))
    assert EpisodeView(quick, quick.samples).utterances[0].takes_floor
    assert not EpisodeView(short, short.samples).utterances[0].takes_floor


def test_an_injected_transcript_replaces_the_agents_own():
    episode = conversation([(2.0, 4.0)], [], transcript=words("no idea", 2.0))
    heard = words("at noon", 2.0)
    assert EpisodeView(episode, episode.samples, heard).transcript == heard


@pytest.mark.parametrize("start, stop, expected", [(1.0, 6.0, 2.0), (2.0, 3.0, 0.0), (2.0, 5.0, 1.0), (7.0, 8.0, 1.0)])
def test_the_longest_silence_is_measured_inside_its_window(start, stop, expected):
    episode = conversation([(2.0, 4.0), (6.0, 6.5)], [])
    assert EpisodeView(episode, episode.samples).longest_silence(at(start), at(stop)) == pytest.approx(
        expected, abs=0.01
    )


@settings(max_examples=15, deadline=None)
@given(agent=spans, user=spans, kind=st.sampled_from(MANY), seconds=st.floats(0.5, 14.0))
def test_whole_conversations_are_judged_in_range_and_up_to_their_end(agent, user, kind, seconds):
    said = words("at noon we open at noon", 5.0)
    episode = conversation(agent, [e for e in [kind] if e.offset < at(seconds)], user, seconds, transcript=said)
    overall = [get(name) for name in names() if get(name).events == (EPISODE,)]
    assert {term.name for term in overall} == {"aspirin", "repetition", "talk_ratio", "waveform"}
    for term in overall:
        verdict = term.judge(episode, whole(episode))
        assert verdict.value is None or -1 <= verdict.value <= 1
        assert (verdict.window, verdict.closes) == ((0, episode.samples), episode.samples)
        assert term.judge(episode, whole(episode)) == verdict


def test_bursts_with_mere_breaths_between_them_are_one_utterance_and_take_the_floor_together():
    episode = conversation([(1.0, 1.4), (1.85, 2.25), (2.9, 3.3)], [])
    view = EpisodeView(episode, episode.samples)
    assert [(u.onset, u.offset) for u in view.utterances] == [(at(1.0), at(2.25)), (at(2.9), at(3.3))]
    assert [u.takes_floor for u in view.utterances] == [True, False], "0.65 s apart: a backchannel by itself"
    assert [u.takes_floor for u in view.bursts] == [False, False, False]
    assert view.utterance_at(at(1.6)) is view.utterances[0] and view.burst_at(at(1.6)) is None


def test_words_of_bursts_are_counted_together():
    episode = conversation([(1.0, 1.3), (1.7, 2.0)], [], transcript=words("yes I know that", 1.0, 0.25))
    (said,) = EpisodeView(episode, episode.samples).utterances
    assert [word.text for word in said.words or ()] == ["yes", "I", "know", "that"]
    assert said.seconds == pytest.approx(1.0) and said.takes_floor


@pytest.mark.parametrize("kind, utterances", [("A1", 2), ("C1", 2), ("D3", 1), ("C8", 1)])
def test_the_end_of_a_users_turn_divides_a_backchannel_before_it_from_the_answer(kind, utterances):
    episode = conversation([(2.6, 2.9), (3.3, 5.0)], [event(kind, 1.0, 3.1)])
    assert len(EpisodeView(episode, episode.samples).utterances) == utterances


@pytest.mark.parametrize("silence, utterances", [(0.4, 1), (0.6, 2)])
def test_a_turn_of_the_agents_ends_by_its_silence_alone(silence, utterances):
    episode = conversation([(1.5, 2.9), (2.9 + silence, 5.0)], [event("C1", 1.0, 3.1)])
    assert len(EpisodeView(episode, episode.samples).utterances) == utterances


@given(agent=spans, kind=st.sampled_from(MANY))
def test_utterances_are_the_bursts_that_stand_more_than_a_breath_apart(agent, kind):
    episode = conversation(agent, [kind])
    view = EpisodeView(episode, episode.samples)
    starts, ends = ({getattr(u, edge) for u in view.utterances} for edge in ("onset", "offset"))
    assert starts <= {u.onset for u in view.bursts} and ends <= {u.offset for u in view.bursts}
    for before, after in pairwise(view.bursts):
        if after.onset - before.offset > at(GAP_SECONDS):
            assert before.offset in ends and after.onset in starts
        elif view.utterance_at(before.onset).takes_floor or not before.offset <= kind.offset <= after.onset:
            assert before.offset not in ends and after.onset not in starts
