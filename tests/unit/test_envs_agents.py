"""Scripted agents, the public checks, and the picture."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest

from envs.activity import activity
from envs.agents import AlwaysBackchannel, AlwaysTalking, EnergyVad, Metronome, Oracle, Silent, converse
from envs.checks import check_duplex_env, check_score, rank_agents
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.pack import Pack
from envs.timeline import draw
from tests.packs import tiny_pack

F = CLOCK.frame


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def talk(pack: Pack, make, names: list[str], frames: int = 150) -> list[Episode]:
    env = DuplexVectorEnv(pack, len(names), frames=frames)
    return converse(env, make(env), seed=1, options={"scenario": names})


def seconds(sample: int) -> float:
    return CLOCK.seconds(int(sample))


def test_the_silent_agent_says_nothing(pack):
    (episode,) = talk(pack, lambda env: Silent(1), ["turn"])
    assert not episode.agent.any() and episode.transcript == ()


def test_the_talking_agent_never_stops(pack):
    (episode,) = talk(pack, lambda env: AlwaysTalking(1, pack), ["barge"])
    assert activity(episode.agent).tolist() == [[F, episode.samples]]
    assert len(episode.transcript) > 20


def test_the_backchannelling_agent_and_the_metronome_keep_their_period(pack):
    (mhm,) = talk(pack, lambda env: AlwaysBackchannel(1, pack, period=1.0), ["story"])
    assert {w.text for w in mhm.transcript} == {"mhm"}
    assert set(np.diff([w.onset for w in mhm.transcript][1:])) == {CLOCK.samples(1.0)}
    (beat,) = talk(pack, lambda env: Metronome(1, pack, period=2.0, on=0.5), ["story"])
    onsets = activity(beat.agent)[:, 0]
    assert set(np.diff(onsets)) == {CLOCK.samples(2.0)} and onsets[0] == CLOCK.samples(1.5)
    lengths = np.diff(activity(beat.agent)[:-1])
    assert lengths.max() <= CLOCK.samples(0.5) and lengths.min() >= CLOCK.samples(0.5) - 1440  # a gap between words


@pytest.mark.parametrize("ms", [200, 700])
def test_the_energy_vad_answers_after_its_silence_and_falls_into_long_pauses(pack, ms):
    turn, pause = talk(pack, lambda env: EnergyVad(2, pack, ms=ms), ["turn", "pause"])
    waited = seconds(activity(turn.agent)[0, 0] - turn.events[0].offset)
    assert ms / 1000 <= waited < ms / 1000 + 0.1
    silence = next(e for e in pause.events if e.type == "B1")
    assert silence.onset < activity(pause.agent)[0, 0] < silence.offset + F  # 0.8 s or more of silence


def test_the_energy_vad_stops_for_whoever_speaks(pack):
    (episode,) = talk(pack, lambda env: EnergyVad(1, pack, ms=200), ["barge"])
    cut = episode.events[-1]
    stopped = activity(episode.agent)[0, 1]
    assert cut.type == "C1" and 0.1 < seconds(stopped - cut.onset) < 0.45


def test_the_oracle_does_what_is_expected_on_time(pack):
    names = ["turn", "pause", "nopause", "dictation", "story", "barge", "ack", "stop", "noise"]
    episodes = dict(zip(names, talk(pack, lambda env: Oracle(len(names), pack, env), names), strict=True))
    for name in ("turn", "pause", "nopause", "dictation", "barge", "ack", "stop"):
        turn = next(e for e in episodes[name].events if e.id in ("ask", "digits"))
        assert abs(seconds(activity(episodes[name].agent)[0, 0] - turn.offset) - 0.25) < 0.011
    assert "sunny" in {w.text for w in episodes["turn"].transcript}
    story = episodes["story"]
    segments = activity(story.agent)
    for i in range(2):
        assert abs(seconds(segments[i, 0] - story.events[0].anchors[f"bc{i}"]) - 0.2) < 0.011
    for name in ("barge", "stop"):
        cut = next(e for e in episodes[name].events if e.type.startswith("C"))
        stopped = seconds(activity(episodes[name].agent)[0, 1] - cut.anchors["sem"])
        assert 0.2 - 0.07 < stopped < 0.2 + 0.011  # earlier by as much as a gap between words
    assert len(activity(episodes["stop"].agent)) == 1 and not episodes["noise"].agent.any()
    assert [w.text for w in episodes["barge"].transcript][-1] == "now"  # it answers about music
    assert activity(episodes["ack"].agent)[0, 1] > episodes["ack"].events[-1].offset + CLOCK.samples(0.5)


def test_words_of_an_agent_lie_where_its_audio_is(pack):
    for episode in talk(pack, lambda env: Oracle(3, pack, env), ["turn", "barge", "story"]):
        for word in episode.transcript:
            assert np.abs(episode.agent[word.onset : word.offset]).max() > 0.01
        spoken = np.zeros(episode.samples, bool)
        for word in episode.transcript:
            spoken[word.onset : word.offset] = True
        assert np.abs(episode.agent[~spoken]).max() < 1e-3


def test_agents_do_the_same_in_any_batch(pack):
    names = ["turn", "barge", "story"]
    together = talk(pack, lambda env: EnergyVad(3, pack, ms=200), names)
    env = DuplexVectorEnv(pack, 3)
    agent = EnergyVad(3, pack, ms=200)
    converse(env, agent, seed=1, options={"scenario": names[::-1]})
    again = converse(env, agent, seed=1, options={"scenario": names})
    for one, two in zip(together, again, strict=True):
        assert np.array_equal(one.agent, two.agent) and one.transcript == two.transcript


def test_an_agent_without_clips_says_what_it_needs():
    empty = type("Empty", (), {"clips": lambda self, kind: []})()
    with pytest.raises(UptakeError, match="AlwaysTalking needs clips of kind 'agent'"):
        AlwaysTalking(1, empty)  # type: ignore[arg-type]


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_our_own_environment_passes_the_public_check(pack):
    check_duplex_env(DuplexEnv(pack))


class Broken(gym.Wrapper):
    """The environment with one fault, given as a function of (mic, action of this step)."""

    def __init__(self, env, fault=lambda mic, action: mic, accept=False):
        super().__init__(env)
        self.fault, self.accept = fault, accept

    def step(self, action):
        if self.accept:
            action = np.nan_to_num(np.resize(action, F))
        obs, *rest = self.env.step(action)
        return {"mic": self.fault(obs["mic"], action).astype(np.float32)}, *rest


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options, message",
    [
        ({"fault": lambda mic, action: np.clip(mic + 0.1 * action, -1, 1)}, "before it could be heard"),
        ({"fault": lambda mic, action: np.where(np.abs(mic) < 0.02, 0, mic)}, "digital silence"),
        ({"accept": True}, "was accepted"),
    ],
)
def test_a_broken_environment_fails_the_public_check(pack, options, message):
    with pytest.raises(UptakeError, match=message):
        check_duplex_env(Broken(DuplexEnv(pack), **options))


def test_an_environment_that_swallows_actions_fails_the_public_check(pack):
    class Swallowing(DuplexEnv):
        def step(self, action):
            first = int(self.vector._frame[0]) == 0
            return super().step(np.zeros_like(action) if first and np.isfinite(action).all() else action)

    with pytest.raises(UptakeError, match="impulse at sample 7 of action 0"):
        check_duplex_env(Swallowing(pack))


def _responds_and_waits(episode: Episode) -> float:
    """Honest enough: speech within a second after each turn, none in pauses, none that outlasts a barge-in."""
    speech = activity(episode.agent)
    marks = []
    for event in episode.events:
        if event.expected("responds") and event.type in ("A1", "A3"):
            marks.append(any(0 <= on - event.offset < CLOCK.sample_rate for on, _ in speech))
        if event.expected("silent"):
            marks.append(not any(on < event.offset and event.onset < off for on, off in speech))
        if event.expected("stops"):
            marks.append(not any(on < event.offset < off for on, off in speech))
    return float(np.mean(marks)) if marks else 0.0


def test_a_score_that_listens_passes_and_one_that_rewards_talk_fails(pack):
    names = ["turn", "pause", "nopause", "dictation", "barge", "stop"]
    means = check_score(pack, _responds_and_waits, scenarios=names)
    assert means["Oracle"] == 1.0 and max(v for k, v in means.items() if k != "Oracle") < 0.8
    with pytest.raises(UptakeError, match="AlwaysTalking scores"):
        check_score(pack, lambda episode: float(np.mean(np.abs(episode.agent) > 0)), scenarios=names)
    assert rank_agents(pack, lambda episode: -np.abs(episode.agent).sum(), scenarios=["turn"])["Silent"] == 0.0


# -- timeline ----------------------------------------------------------------------------------------------------------


@dataclass
class Judgement:
    value: float | None
    window: tuple[int, int]
    term: str


def test_the_picture_shows_words_events_and_verdicts(pack, tmp_path):
    (episode,) = talk(pack, lambda env: Oracle(1, pack, env), ["barge"])
    cut = episode.events[-1]
    verdicts = [Judgement(0.9, (cut.onset, cut.offset), "stops"), Judgement(None, (0, 10), "masked")]
    figure = draw(episode, verdicts)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"weather", "sunny", "C1 cut", "A1 ask", "stops +0.90"} <= texts
    assert not any("masked" in text for text in texts)
    figure.savefig(tmp_path / "timeline.png", dpi=60)
    assert (tmp_path / "timeline.png").stat().st_size > 5_000


def test_an_empty_episode_can_be_drawn(tmp_path):
    draw(Episode(*(np.zeros(0, np.float32) for _ in range(3)))).savefig(tmp_path / "empty.png", dpi=40)
