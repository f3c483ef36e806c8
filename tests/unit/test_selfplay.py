"""Two sides in one conversation: they hear each other to the sample, seeds reproduce it, and either can be judged."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pettingzoo.test import parallel_api_test, parallel_seed_test

from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from envs.pack import Pack
from envs.selfplay import AGENT, USER, SelfPlayEnv
from envs.users import partner as partner_module
from envs.users.partner import measured
from rewards.compose import Composition
from tests.reactive_pack import reactive_pack

F = CLOCK.frame
SILENCE = np.zeros(F, np.float32)


def tone(frames: int, spans: list[tuple[float, float]], step: float = 0.1) -> np.ndarray:
    """(frames, F) float32: speech in these intervals of seconds."""
    audio = np.zeros(frames * F, np.float32)
    for start, stop in spans:
        first, last = CLOCK.nearest_sample(start), CLOCK.nearest_sample(stop)
        audio[first:last] = 0.1 * np.sin(np.arange(last - first) * step)[: max(0, audio.size - first)]
    return audio.reshape(frames, F)


def play(env: SelfPlayEnv, user: np.ndarray, agent: np.ndarray, seed: int = 5) -> dict[str, np.ndarray]:
    """What both sides hear, (samples,), when these frames are played from frame 1 on."""
    heard, _ = env.reset(seed=seed)
    tracks = {name: [heard[name]] for name in (USER, AGENT)}
    for said, answered in zip(user[1:], agent[1:], strict=True):
        heard = env.step({USER: said, AGENT: answered})[0]
        for name in tracks:
            tracks[name].append(heard[name])
    return {name: np.concatenate(pieces) for name, pieces in tracks.items()}


def test_pettingzoo_finds_nothing_wrong():
    parallel_api_test(SelfPlayEnv(frames=8), num_cycles=30)
    parallel_seed_test(lambda: SelfPlayEnv(frames=8, delay_ms=40), num_cycles=20)


@pytest.mark.parametrize("delay_ms", [0, 40, 137])
def test_each_side_hears_the_other_after_the_delay_to_the_sample_and_itself_never(delay_ms):
    env = SelfPlayEnv(frames=20, delay_ms=delay_ms)
    quiet = np.zeros((21, F), np.float32)
    background = play(env, quiet, quiet)
    for speaker, listener in ((USER, AGENT), (AGENT, USER)):
        click = quiet.copy()
        click[3, 700] = 0.5
        heard = play(env, click if speaker == USER else quiet, click if speaker == AGENT else quiet)
        changed = np.flatnonzero(heard[listener] != background[listener])
        assert changed.tolist() == [3 * F + 700 + CLOCK.nearest_sample(delay_ms / 1000)]
        assert np.array_equal(heard[speaker], background[speaker])
    assert not np.array_equal(background[USER], background[AGENT])  # a room tone each


def test_the_earliest_reaction_to_a_frame_is_the_next_one_on_both_sides():
    env = SelfPlayEnv(frames=4)
    heard, _ = env.reset(seed=1)
    loud = 0.5 * np.ones(F, np.float32)
    heard = env.step({USER: loud, AGENT: -loud})[0]  # frame 1 of both
    assert np.allclose(heard[USER], -0.5, atol=0.02) and np.allclose(heard[AGENT], 0.5, atol=0.02)


def test_the_same_seed_gives_the_same_samples_and_another_one_others():
    said = [tone(31, [(0.5, 1.2)]), tone(31, [(1.4, 2.2)])]

    def digest(seed: int) -> str:
        heard = play(SelfPlayEnv(frames=30, acoustics="bad_network"), *said, seed=seed)
        return hashlib.sha256(heard[USER].tobytes() + heard[AGENT].tobytes()).hexdigest()

    assert digest(3) == digest(3) != digest(4)


def test_acoustics_lie_between_the_sides_as_they_do_for_every_user():
    quiet, talk = np.zeros((31, F), np.float32), tone(31, [(0.5, 1.5)])
    clear = play(SelfPlayEnv(frames=30), quiet, talk)
    echo = play(SelfPlayEnv(frames=30, acoustics={"echo": {"return_loss_db": 6, "delay_ms": 60}}), quiet, talk)
    assert np.array_equal(clear[USER], echo[USER])
    heard_itself = np.abs(echo[AGENT] - clear[AGENT])
    assert heard_itself.max() > 0.01


def test_two_sides_that_are_set_back_go_on_the_same():
    env = SelfPlayEnv(frames=30, delay_ms=60, acoustics="speakerphone")
    said = [tone(31, [(0.5, 1.2)], 0.1), tone(31, [(1.0, 2.2)], 0.13)]
    env.reset(seed=3)
    states, heard = {}, {}
    for turn in ("first", "again"):
        for k in range(0 if turn == "first" else 12, 30):
            if k == 12 and turn == "first":
                states = env.get_state()
            heard[turn, k] = env.step({USER: said[0][k + 1], AGENT: said[1][k + 1]})[0]
        mics = {side: env.episode(side).mic for side in (USER, AGENT)}
        heard[turn, "mics"] = mics
        assert env.agents == []
        env.set_state(states)
        assert env.agents == [USER, AGENT]
    for k in range(12, 30):
        assert all(np.array_equal(heard["first", k][side], heard["again", k][side]) for side in (USER, AGENT))
    assert all(np.array_equal(heard["first", "mics"][side], heard["again", "mics"][side]) for side in (USER, AGENT))


def test_either_side_has_a_record_and_the_rewards_judge_it():
    env = SelfPlayEnv(frames=120)
    user, agent = tone(121, [(0.5, 2.0), (6.0, 6.5)], 0.1), tone(121, [(2.3, 5.0), (5.6, 7.4)], 0.13)
    play(env, user, agent)
    own, other = env.episode(AGENT), env.episode(USER)
    assert np.array_equal(own.user, other.agent) and np.array_equal(own.agent, other.user)
    assert [(event.type, round(CLOCK.seconds(event.onset), 1)) for event in own.events if event.type != "B1"] == [
        ("A3", 0.5), ("D1", 6.0)
    ]  # fmt: skip
    assert [(event.type, round(CLOCK.seconds(event.onset), 1)) for event in other.events if event.type != "B1"] == [
        ("B7", 2.3), ("A3", 2.3)
    ]  # fmt: skip
    composition = Composition({"turn_taking": 1.0, "continue": 1.0})
    values = {verdict.term: verdict.value for verdict in composition.score(own)}
    assert values["turn_taking"] == pytest.approx(1.0) and values["continue"] == pytest.approx(1.0)
    assert composition.score(other)


def test_the_score_is_given_to_each_side_once_at_the_end():
    env = SelfPlayEnv(frames=5, score=lambda episode: float(np.abs(episode.agent).max() > 0.05))
    env.reset(seed=1)
    loud = tone(1, [(0.0, 0.08)])[0]
    rewards = [env.step({USER: SILENCE, AGENT: loud})[1] for _ in range(5)]
    assert rewards[-1] == {USER: 0.0, AGENT: 1.0} and not any(any(one.values()) for one in rewards[:-1])
    assert env.agents == []


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({USER: SILENCE}, "actions of user; expected user, agent"),
        ({USER: SILENCE[:5], AGENT: SILENCE}, r"shape \(1, 5\)"),
        ({USER: SILENCE, AGENT: SILENCE * np.nan}, "NaN or infinity"),
    ],
)
def test_an_action_that_cannot_be_played_is_named(actions, message):
    env = SelfPlayEnv(frames=5)
    with pytest.raises(UptakeError, match="call reset"):
        env.step({USER: SILENCE, AGENT: SILENCE})
    env.reset(seed=1)
    with pytest.raises(UptakeError, match=message):
        env.step(actions)


def test_a_delay_that_is_none_is_refused():
    for delay_ms in (-1, 5, 2000):
        with pytest.raises(UptakeError, match=f"delay_ms = {delay_ms}: must be 0, or from 20 to 1000"):
            SelfPlayEnv(delay_ms=delay_ms)
    with pytest.raises(UptakeError, match="the acoustics have a network"):
        SelfPlayEnv(delay_ms=40, acoustics="bad_network")


# ---- a policy as the user of the other environments


class Parrot:
    """Says in the next frame what it heard, 6 dB softer, and counts the frames of each row."""

    context = 10**6

    def __init__(self, batch: int) -> None:
        self.count, self.seeds = np.zeros(batch, np.int64), [0] * batch

    def reset(self, rows, seeds) -> None:
        self.count[rows] = 0
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            self.seeds[row] = seed

    def step(self, heard, active):
        self.count[active] += 1
        return 0.5 * heard

    def words(self, row):
        return ()

    def fork(self, source, rows) -> None:
        self.count[rows] = self.count[source]

    def get_state(self):
        return self.count.copy(), list(self.seeds)

    def set_state(self, state) -> None:
        self.count, self.seeds = state[0].copy(), list(state[1])


@pytest.fixture
def pack(tmp_path, monkeypatch) -> Pack:
    made = []

    def load(name: str, batch: int) -> Parrot:
        assert name == "parrot"
        made.append(Parrot(batch))
        return made[-1]

    monkeypatch.setattr(partner_module, "_loaders", [load])
    text = (
        "schema: duplex.scenario/1\nid: mirror\nsplit: train\nduration_s: {max: 8}\n"
        "user: {driver: policy, policy: parrot}\nexpect: [{event: A3, agent: silent}]\n---\n"
    )
    pack = reactive_pack(tmp_path, text)
    pack.made = made
    return pack


def test_a_policy_is_heard_one_frame_after_it_heard_and_its_events_are_measured(pack):
    env = DuplexVectorEnv(pack, 1, frames=110)
    env.reset(seed=1, options={"scenario": "mirror"})
    agent = tone(111, [(1.0, 3.0)])
    for action in agent[1:]:
        ended = env.step(action[None])[-1]["ended"]
    episode = env.episode(0)
    assert ended.all() and episode.meta["ended"] == "script" and episode.seconds == pytest.approx(8.0, abs=0.1)
    said = episode.user.reshape(-1, F)
    assert np.abs(said[1:90] - 0.5 * agent[:89]).max() < 0.01  # what it heard, and half of its own room tone
    (event,) = [event for event in episode.events if event.type != "B1"]
    assert CLOCK.seconds(event.onset) == pytest.approx(1.08, abs=0.02) and event.source == "user"
    assert event.type == "A3" and event.expected("silent") and not event.expected("responds")  # as the scenario says
    assert pack.made[0].count[0] == 111  # frame 0, and one a step


def test_rows_with_a_policy_and_rows_without_live_side_by_side_and_reset_alone(pack):
    env = DuplexVectorEnv(pack, 3, frames=40)
    env.reset(seed=1, options={"scenario": ["mirror", "script", "mirror"], "variant": [0, 0, 1]})
    agent = np.repeat(tone(41, [(0.5, 1.5)])[:, None], 3, axis=1)
    for action in agent[1:20]:
        env.step(action)
    env.reset(options={"scenario": "mirror", "variant": 0, "reset_mask": np.array([False, False, True])})
    parrot = pack.made[0]
    assert len(pack.made) == 1 and parrot.count.tolist() == [20, 0, 0]
    assert len({parrot.seeds[0], parrot.seeds[2]}) == 1  # the same conversation as row 0 is
    env.fork(0, [1])
    for action in agent[20:]:
        env.step(action)
    assert np.array_equal(env.episode(0).user, env.episode(1).user) and env.episode(1).meta["driver"] == "policy"


def test_a_state_with_a_policy_in_it_has_the_same_future_here_and_elsewhere(pack):
    env, other = DuplexVectorEnv(pack, 2, frames=60), DuplexVectorEnv(pack, 2, frames=60)
    env.reset(seed=1, options={"scenario": ["mirror", "script"]})
    agent = np.repeat(tone(61, [(0.5, 1.5), (2.2, 4.0)])[:, None], 2, axis=1)
    for action in agent[1:25]:
        env.step(action)
    state = env.get_state()
    first = np.stack([env.step(action)[0]["mic"] for action in agent[25:]])
    events = env.episode(0).events
    other.reset(seed=8, options={"scenario": ["script", "mirror"]})
    for world in (env, other):
        world.set_state(state)
        again = np.stack([world.step(action)[0]["mic"] for action in agent[25:]])
        assert np.array_equal(first, again) and world.episode(0).events == events
        assert world.episode(0).meta["driver"] == "policy" and world.episode(1).meta["driver"] == "script"
    assert pack.made[0].count[0] == pack.made[1].count[0] == 61


def test_a_conversation_that_is_longer_than_the_users_memory_is_refused(pack, monkeypatch):
    monkeypatch.setattr(Parrot, "context", 50)
    with pytest.raises(UptakeError, match=r"duration_s.max: the user 'parrot' looks back 50 frames \(4 s\)"):
        DuplexVectorEnv(pack, 1).reset(seed=1, options={"scenario": "mirror"})


def test_two_policies_that_wait_are_begun_with_first_words_from_the_pack(pack, tmp_path):
    text = (
        "schema: duplex.scenario/1\nid: begun\nsplit: train\nuser: {driver: policy, policy: parrot, opens: question}\n"
    )
    path = tmp_path / "begun.yaml"
    path.write_text(text)
    env = DuplexVectorEnv(pack.with_users(path), 2, frames=60)
    env.reset(seed=1, options={"scenario": "begun", "variant": [0, 1]})
    for _ in range(60):
        env.step(np.zeros((2, F), np.float32))
    texts = {clip.text for clip in pack.spoken("train")["question"]}
    for row in range(2):
        (event,) = [event for event in env.episode(row).events if event.type != "B1"]
        assert event.type == "A3" and event.text in texts and 0.4 <= CLOCK.seconds(event.onset) <= 1.1
    path.write_text(text.replace("question", "questions"))
    with pytest.raises(UptakeError, match="no train clip of kind 'questions' in pack 'tiny'; did you mean 'question'"):
        DuplexVectorEnv(pack.with_users(path), 1).reset(seed=1)


def test_a_policy_that_nobody_can_load_is_named(pack, monkeypatch):
    monkeypatch.setattr(partner_module, "_loaders", [])
    with pytest.raises(UptakeError, match=r"user.policy = 'parrot': nothing here can load a policy"):
        DuplexVectorEnv(pack, 1).reset(seed=1, options={"scenario": "mirror"})


SPANS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), max_size=8)


@settings(max_examples=80, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(own=SPANS, other=SPANS, cuts=st.lists(st.integers(0, 500), min_size=2, max_size=4))
def test_measured_events_are_settled_once_and_a_backchannel_is_no_turn(pack_once, own, other, cuts):
    scenario = pack_once.scenario("mirror")

    def laid(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        found, at = [], 0
        for gap, length in spans:
            found.append(((at + gap) * 2400, (at + gap + length) * 2400))
            at += gap + length
        return found

    mine, theirs = laid(own), laid(other)
    known: list = []
    for cut in sorted(cuts):
        now = cut * 2400
        heard = [[(on, min(off, now)) for on, off in spans if on < now] for spans in (mine, theirs)]
        events = measured(heard[0], heard[1], now, scenario)
        ids = [event.id for event in events]
        assert len(set(ids)) == len(ids) and all(event.offset <= now - CLOCK.samples(1.0) for event in events)
        spans = [(event.onset, event.offset) for event in known]
        assert [(event.onset, event.offset) for event in events][: len(spans)] == spans  # nothing is taken back
        known = list(events)
    for event in known:
        if event.type == "D1":
            assert event.offset - event.onset <= CLOCK.samples(1.0)
        assert event.type in ("A1", "A3", "B1", "B7", "C1", "D1")


@pytest.fixture(scope="module")
def pack_once(tmp_path_factory) -> Pack:
    text = "schema: duplex.scenario/1\nid: mirror\nsplit: train\nuser: {driver: policy, policy: parrot}\n---\n"
    return reactive_pack(tmp_path_factory.mktemp("pack"), text)


def test_the_environments_need_neither_torch_nor_pettingzoo_nor_an_http_client_until_they_are_used():
    call = (
        "import sys, envs, envs.duplex_env, envs.pack, envs.agents; "
        "print([name for name in ('torch', 'pettingzoo', 'httpx2', 'tenacity', 'matplotlib') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
