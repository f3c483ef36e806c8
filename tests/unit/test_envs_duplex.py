"""The duplex environments: time to the sample, seeds, twins, forks, ends."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.activity import activity
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode, to_pcm16
from envs.errors import UptakeError
from envs.pack import Pack
from envs.scenario import parse_scenarios
from envs.users.drivers import bind
from tests.packs import SCENARIOS, tiny_pack, write_tiny_pack

F = CLOCK.frame
IDS = ["turn", "statement", "pause", "nopause", "dictation", "story", "noise"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def silence(env: DuplexVectorEnv) -> np.ndarray:
    return np.zeros((env.num_envs, F), np.float32)


def tone(rows: int) -> np.ndarray:
    return np.tile(0.2 * np.sin(np.arange(F) * 0.2), (rows, 1)).astype(np.float32)


def listen(env: DuplexVectorEnv, frames: int, **reset) -> np.ndarray:
    """Microphone (B, (frames + 1) * F) while the agent says nothing."""
    obs, _ = env.reset(**reset)
    heard = [obs["mic"]] + [env.step(silence(env))[0]["mic"] for _ in range(frames)]
    return np.concatenate(heard, axis=1)


def sha(audio: np.ndarray) -> str:
    return hashlib.sha256(audio.tobytes()).hexdigest()


def test_gymnasium_accepts_the_registered_environment(pack):
    assert envs.__name__ == "envs"  # importing the package registers the id
    env = gym.make("Uptake/Duplex-v0", pack=pack, frames=20)
    check_env(env.unwrapped)
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs)
    vector = gym.make_vec("Uptake/Duplex-v0", num_envs=3, pack=pack, frames=20)
    assert vector.reset(seed=1)[0]["mic"].shape == (3, F)


def test_an_impulse_in_action_k_is_played_at_its_sample_of_frame_k_plus_1(pack):
    env = DuplexVectorEnv(pack, 3, frames=20)
    env.reset(seed=1, options={"scenario": "turn"})
    for k in range(20):
        action = silence(env)
        action[0, 100 + k] = action[1, 0] = 0.5
        env.step(action)
    agent = env.episode(0).agent
    assert np.flatnonzero(agent).tolist() == [(k + 1) * F + 100 + k for k in range(20)]
    assert np.flatnonzero(env.episode(1).agent).tolist() == [(k + 1) * F for k in range(20)]
    assert not env.episode(2).agent.any() and set(agent[agent != 0]) == {0.5}


def test_reset_gives_frame_0_and_step_the_next_one(pack):
    env = DuplexVectorEnv(pack, 1, frames=30)
    heard = listen(env, 30, seed=4, options={"scenario": "turn"})
    assert np.array_equal(heard[0], env.episode(0).mic)
    event = env.episode(0).events[0]
    assert event.onset == CLOCK.samples(0.8) + pack.clip("ask").words[0].onset
    assert activity(heard[0])[0, 0] == event.onset // 240 * 240


def test_the_same_seed_gives_the_same_audio_in_any_batch_and_order(pack):
    def hashes(names: list[str], variants: list[int]) -> dict[tuple[str, int], str]:
        env = DuplexVectorEnv(pack, len(names), frames=60)
        heard = listen(env, 60, seed=9, options={"scenario": names, "variant": variants})
        return {(n, v): sha(row) for n, v, row in zip(names, variants, heard, strict=True)}

    seven = hashes(IDS, list(range(7)))
    four = hashes(IDS[3::-1], [3, 2, 1, 0])
    alone = {}
    for variant, name in enumerate(IDS):
        alone |= hashes([name], [variant])
    assert seven == alone and four.items() <= seven.items()
    assert len(set(seven.values())) == 7
    other = DuplexVectorEnv(pack, 1, frames=60)
    assert sha(listen(other, 60, seed=10, options={"scenario": "turn"})[0]) != seven["turn", 0]


def test_the_same_seed_gives_the_same_audio_in_another_process(pack):
    code = (
        "import sys, hashlib, numpy as np\n"
        "from envs.duplex_vector_env import DuplexVectorEnv\n"
        "env = DuplexVectorEnv(sys.argv[1], 2, frames=30)\n"
        "obs, _ = env.reset(seed=5, options={'scenario': ['noise', 'pause'], 'variant': 3})\n"
        "heard = [obs['mic'][1]] + [env.step(np.zeros((2, 1920)))[0]['mic'][1] for _ in range(30)]\n"
        "print(hashlib.sha256(np.concatenate(heard).tobytes()).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pack.folder)], capture_output=True, text=True, check=True, timeout=120
    )
    env = DuplexVectorEnv(pack, 1, frames=30)
    heard = listen(env, 30, seed=5, options={"scenario": "pause", "variant": 3})[0]
    assert done.stdout.strip() == sha(heard)


def test_drawn_conversations_follow_from_the_seed(pack):
    env = DuplexVectorEnv(pack, 4, frames=5)
    first = listen(env, 5, seed=2)
    later = listen(env, 5)
    assert np.array_equal(first, listen(env, 5, seed=2)) and np.array_equal(later, listen(env, 5))
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("variant", range(4))
def test_a_pause_and_its_twin_share_every_sample_until_the_pause_ends(pack, variant):
    env = DuplexVectorEnv(pack, 2, frames=70)
    heard = listen(env, 70, seed=3, options={"scenario": ["pause", "nopause"], "variant": variant})
    pause = next(e for e in env.episode(0).events if e.type == "B1")
    turn = next(e for e in env.episode(1).events if e.type == "A1")
    assert turn.offset == pause.onset
    resumed = int(np.flatnonzero(heard[0] != heard[1])[0])
    assert 0 <= resumed - pause.offset < 10  # the first word after it fades in from zero


def test_a_barge_in_and_its_backchannel_twin_share_every_sample_up_to_the_cut(pack):
    env = DuplexVectorEnv(pack, 2, frames=70)
    obs, _ = env.reset(seed=3, options={"scenario": ["barge", "ack"]})
    heard = [obs["mic"]] + [env.step(tone(2) if 30 <= k < 60 else silence(env))[0]["mic"] for k in range(70)]
    mic = np.concatenate(heard, axis=1)
    cut, ack = env.episode(0).events[-1], env.episode(1).events[-1]
    assert (cut.type, ack.type, ack.text) == ("C1", "D1", "yeah")
    assert cut.onset == ack.onset
    assert cut.anchors["agent_speaking_since"] == ack.anchors["agent_speaking_since"] == 31 * F
    first, second = pack.clip("but").words[:2]
    middle = cut.onset - first.onset + (first.offset + second.onset) // 2
    assert np.flatnonzero(mic[0] != mic[1])[0] >= middle
    assert cut.anchors["sem"] == cut.words[2].offset


def test_the_pause_lasts_as_long_as_was_drawn_and_the_turn_ends_after_it(pack):
    env = DuplexVectorEnv(pack, 1, frames=110)
    for variant in range(5):
        listen(env, 110, seed=1, options={"scenario": "pause", "variant": variant})
        episode = env.episode(0)
        turn, pause = episode.events
        assert pause.offset - pause.onset == CLOCK.nearest_sample(episode.meta["vars"]["gap"])
        assert turn.onset < pause.onset and pause.offset < turn.offset
        assert turn.words[3].offset == pause.onset and turn.words[4].onset == pause.offset
        quiet = episode.user[pause.onset : pause.offset]
        assert not quiet.any() and episode.mic[pause.onset : pause.offset].any()


def test_words_lie_where_the_audio_says_so(pack):
    env = DuplexVectorEnv(pack, 3, frames=100)
    listen(env, 100, seed=1, options={"scenario": ["pause", "story", "dictation"]})
    for row in range(3):
        episode = env.episode(row)
        spoken = np.zeros(episode.samples, bool)
        for word in episode.events[0].words:
            spoken[word.onset : word.offset] = True
            assert np.abs(episode.user[word.onset : word.offset]).max() > 0.15
        assert np.abs(episode.user[~spoken]).max() == 0


def test_events_bear_what_the_scenario_expects(pack):
    env = DuplexVectorEnv(pack, 3, frames=100)
    listen(env, 100, seed=1, options={"scenario": ["dictation", "story", "noise"]})
    digits, pause = env.episode(0).events
    assert (digits.type, pause.type, pause.id) == ("A3", "B4", "digits.pause0")
    assert pause.offset - pause.onset == 14_400 and pause.expected("silent") and digits.expected("responds")
    story, turn = env.episode(1).events
    assert (story.type, turn.type, turn.offset) == ("B7", "A3", story.offset)
    assert story.anchors["bc0"] == story.words[5].offset and story.anchors["bc1"] == story.words[9].offset
    (noise,) = env.episode(2).events
    assert noise.source == "other" and not env.episode(2).user.any()
    assert np.abs(env.episode(2).mic[noise.onset : noise.offset]).max() > 0.05


def test_a_trigger_fires_once_the_agent_has_spoken_so_long_and_never_before(pack):
    for start in (30, 37, 44):
        env = DuplexVectorEnv(pack, 1, frames=90)
        env.reset(seed=3, options={"scenario": "barge"})
        for k in range(90):
            env.step(tone(1) if k >= start else silence(env))
        cut = env.episode(0).events[-1]
        clip_start = cut.onset - pack.clip("but").words[0].onset
        waited = clip_start - cut.anchors["agent_speaking_since"]
        assert cut.anchors["agent_speaking_since"] == (start + 1) * F
        assert CLOCK.samples(0.8) <= waited < CLOCK.samples(0.8) + 2 * F


def test_a_trigger_that_never_comes_true_is_recorded_as_skipped(pack):
    env = DuplexVectorEnv(pack, 1, frames=120)
    listen(env, 120, seed=3, options={"scenario": "barge"})
    episode = env.episode(0)
    assert episode.meta["skipped"] == [{"id": "cut", "type": "C1"}]
    assert [e.type for e in episode.events] == ["A1"] and episode.meta["ended"] == "script"


def test_an_item_can_start_at_a_word_of_another(tmp_path):
    text = """\
schema: duplex.scenario/1
id: words
split: train
user:
  script:
    - {id: ask, type: A1, clip: ask, at: 0.2, anchors: {sem: 2}}
    - {id: bang, type: D4, clip: door, when: {word: ask.sem, gap: 100ms}}
"""
    env = DuplexVectorEnv(Pack.load(write_tiny_pack(tmp_path / "p", text)), 1, frames=60)
    listen(env, 60, seed=0, options={"scenario": "words"})
    ask, bang = env.episode(0).events
    assert (ask.id, bang.id) == ("ask", "bang")
    assert ask.anchors["sem"] == ask.words[2].offset < ask.offset
    assert bang.onset == ask.anchors["sem"] + CLOCK.samples(0.1)


def test_what_follows_a_skipped_item_is_skipped_and_silence_of_the_agent_can_trigger(tmp_path):
    text = """\
schema: duplex.scenario/1
id: chain
split: train
user:
  script:
    - {id: ask, type: A1, clip: ask, at: 0.2}
    - {id: cut, type: C1, clip: but, when: {agent: speaking, for: 1, after: ask}, timeout: 1}
    - {id: more, type: A1, clip: ask-high, when: {after: cut, gap: 0.5}}
    - {id: next, type: A1, clip: say, when: {agent: silent, for: 1.5, after: ask}}
    - {id: last, type: A3, clip: digits, when: {after: next, gap: 300ms}}
"""
    env = DuplexVectorEnv(Pack.load(write_tiny_pack(tmp_path / "p", text)), 1, frames=140)
    listen(env, 140, seed=0, options={"scenario": "chain"})
    episode = env.episode(0)
    assert [s["id"] for s in episode.meta["skipped"]] == ["cut", "more"]
    spoken = {e.id: e for e in episode.events}
    assert {"ask", "next", "last"} <= set(spoken)
    waited = spoken["next"].onset - 480 - spoken["ask"].offset
    assert CLOCK.samples(1.5) <= waited < CLOCK.samples(1.5) + 2 * F
    assert spoken["last"].onset == spoken["next"].offset + CLOCK.samples(0.3) + 480


def test_the_agent_changes_nothing_that_the_user_says_at_fixed_times(pack):
    env = DuplexVectorEnv(pack, len(IDS), frames=50)
    quiet = listen(env, 50, seed=8, options={"scenario": IDS})
    obs, _ = env.reset(seed=8, options={"scenario": IDS})
    rng = np.random.default_rng(0)
    heard = [obs["mic"]]
    for _ in range(50):
        heard.append(env.step(rng.uniform(-1, 1, (len(IDS), F)).astype(np.float32))[0]["mic"])
    assert np.array_equal(quiet, np.concatenate(heard, axis=1))


def test_the_microphone_is_never_digital_silence_and_as_loud_as_was_asked(pack):
    env = DuplexVectorEnv(pack, 1, frames=60)
    heard = listen(env, 60, seed=8, options={"scenario": "noise"})[0]
    assert np.abs(heard.reshape(-1, F)).max(axis=1).all()
    level = 20 * np.log10(np.sqrt(np.mean(np.square(heard[-40 * F :], dtype=np.float64))))
    assert abs(level + 62) < 1.0 and not len(activity(heard[-40 * F :]))


def test_a_fork_continues_exactly_like_its_source(pack):
    env = DuplexVectorEnv(pack, 4, frames=90)
    env.reset(seed=6, options={"scenario": ["turn", "barge", "pause", "noise"]})
    for k in range(35):
        env.step(tone(4) if k >= 30 else silence(env))  # the trigger of `barge` is half way to firing
    env.fork(1, [0, 3])
    for k in range(35, 90):
        obs, *_ = env.step(tone(4) if k < 60 else silence(env))
        assert np.array_equal(obs["mic"][0], obs["mic"][1]) and np.array_equal(obs["mic"][3], obs["mic"][1])
        assert not np.array_equal(obs["mic"][2], obs["mic"][1])
    copies = [env.episode(row) for row in (0, 1, 3)]
    assert len(copies[0].events) == 2 and copies[0].events[1].type == "C1"
    for copy in copies[1:]:
        assert copy.events == copies[0].events and copy.meta == copies[0].meta
        assert np.array_equal(copy.mic, copies[0].mic) and np.array_equal(copy.agent, copies[0].agent)


def test_forks_that_act_differently_part(pack):
    env = DuplexVectorEnv(pack, 2, frames=90)
    env.reset(seed=6, options={"scenario": "barge"})
    for _ in range(30):
        env.step(silence(env))
    env.fork(0, [1])
    for _ in range(60):
        env.step(np.concatenate([tone(1), silence(env)[:1]]))
    assert env.episode(0).meta["skipped"] == [] and len(env.episode(0).events) == 2
    assert [e.type for e in env.episode(1).events] == ["A1"]


def test_a_restored_state_continues_exactly(pack):
    env = DuplexVectorEnv(pack, 2, frames=60)
    env.reset(seed=6, options={"scenario": ["barge", "turn"]})
    for k in range(33):
        env.step(tone(2) if k >= 30 else silence(env))
    state = env.get_state()

    def rest(other: DuplexVectorEnv) -> list[Episode]:
        for _ in range(27):
            other.step(tone(2))
        mask = np.array([False, True])
        other.reset(options={"reset_mask": mask})  # draws a new conversation: the sampler is part of the state
        return [other.episode(row) for row in (0, 1)]

    first = rest(env)
    env.set_state(state)
    again = rest(env)
    elsewhere = DuplexVectorEnv(pack, 2, frames=60)
    elsewhere.set_state(state)
    for one, two, three in zip(first, again, rest(elsewhere), strict=True):
        assert np.array_equal(one.mic, two.mic) and np.array_equal(one.mic, three.mic)
        assert one.meta == two.meta == three.meta and one.events == three.events


def test_no_action_is_swallowed_after_an_end_and_other_rows_go_on(pack):
    env = DuplexVectorEnv(pack, 2, frames=10)
    env.reset(seed=1, options={"scenario": "turn"})
    for _ in range(10):
        *_, truncated, info = env.step(silence(env))
    assert truncated.all() and info["ended"].all()
    with pytest.raises(UptakeError, match="row 0 is at its last frame"):
        env.step(silence(env))
    _, info = env.reset(options={"reset_mask": np.array([True, True])})
    impulse = silence(env)
    impulse[:, 5] = 1.0
    env.step(impulse)
    assert np.flatnonzero(env.episode(0).agent).tolist() == [F + 5] and info["frame"].tolist() == [0, 0]


def test_the_record_says_the_seed_of_its_own_conversation(pack):
    env = DuplexVectorEnv(pack, 2, frames=10)
    env.reset(seed=7, options={"scenario": "turn"})
    env.reset(seed=8, options={"scenario": "turn", "reset_mask": np.array([True, False])})
    assert [env.episode(row).meta["seed"] for row in range(2)] == [8, 7]


def test_reset_mask_leaves_other_rows_alone(pack):
    env = DuplexVectorEnv(pack, 2, frames=30)
    plain = listen(env, 20, seed=1, options={"scenario": "turn"})
    env.reset(seed=1, options={"scenario": "turn"})
    for _ in range(10):
        env.step(silence(env))
    env.reset(options={"reset_mask": np.array([True, False]), "scenario": "pause"})
    for _ in range(10):
        env.step(silence(env))
    assert np.array_equal(env.episode(1).mic, plain[1])
    assert env.episode(0).meta["scenario"] == "pause" and env.episode(0).samples == 11 * F


def test_an_early_end_is_a_mask_and_the_score_is_given_once(pack):
    scored = []

    def score(episode: Episode) -> float:
        scored.append(episode)
        return float(len(scored))

    env = DuplexVectorEnv(pack, 2, frames=75, score=score)
    env.reset(seed=1, options={"scenario": ["noise", "pause"]})
    rewards, ended = [], []
    for _ in range(75):
        obs, reward, terminated, truncated, _info = env.step(tone(2))
        rewards.append(reward)
        ended.append((terminated.copy(), truncated.copy()))
        assert np.abs(obs["mic"]).max(axis=1).all()
    rewards = np.array(rewards)
    (first,), (second,) = np.flatnonzero(rewards[:, 0]), np.flatnonzero(rewards[:, 1])
    assert len(scored) == 2 and rewards.sum() == 3.0 and second == 74
    assert first == next(i for i, (done, _) in enumerate(ended) if done[0])
    assert all(done[0] for done, _ in ended[first:]) and not ended[-1][0][1] and ended[-1][1].all()
    noise = env.episode(0)
    assert noise.samples == scored[0].samples == (first + 2) * F and noise.meta["ended"] == "script"
    assert scored[1].meta["ended"] == "frames" and scored[1].samples == 76 * F


def test_an_event_that_is_not_over_is_named_and_left_out(pack):
    env = DuplexVectorEnv(pack, 1, frames=20)
    listen(env, 20, seed=1, options={"scenario": "turn"})
    assert env.episode(0).events == [] and env.episode(0).meta["unfinished"] == ["ask"]
    assert env.privileged(0)[0].offset > env.episode(0).samples


def test_a_recorded_episode_is_stored_without_the_change_of_a_sample(pack, tmp_path):
    env = DuplexVectorEnv(pack, 1, frames=40)
    env.reset(seed=1, options={"scenario": "pause"})
    rng = np.random.default_rng(0)
    for _ in range(40):
        env.step(rng.uniform(-1.2, 1.2, (1, F)).astype(np.float32))
    episode = env.episode(0)
    again = Episode.load(episode.save(tmp_path / "e"))
    assert np.array_equal(again.agent, episode.agent) and np.array_equal(again.mic, episode.mic)
    assert again.events == episode.events and again.meta == episode.meta and np.abs(episode.agent).max() <= 1.0


@pytest.mark.parametrize(
    "action, message",
    [
        (np.full((2, F), np.nan, np.float32), "row 0 holds NaN"),
        (np.stack([np.zeros(F), np.full(F, np.inf)]), "row 1 holds NaN or infinity"),
        (np.zeros((2, F + 1), np.float32), r"shape \(2, 1921\), expected \(2, 1920\)"),
        (np.zeros(F, np.float32), r"shape \(1920,\)"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(pack, action, message):
    env = DuplexVectorEnv(pack, 2, frames=20)
    env.reset(seed=1)
    with pytest.raises(UptakeError, match=message):
        env.step(action)
    assert env.step(silence(env))[-1]["frame"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda e: e.step(np.zeros((2, F))), "row 0 was never reset"),
        (lambda e: e.reset(options={"scenarios": "turn"}), "unknown option 'scenarios'"),
        (lambda e: e.reset(options={"scenario": "trun"}), "did you mean 'turn'"),
        (lambda e: e.reset(options={"scenario": ["turn"]}), "list of 2"),
        (lambda e: e.reset(options={"variant": -1}), "negative"),
        (lambda e: e.reset(options={"reset_mask": [1, 0]}), "reset_mask"),
        (lambda e: e.episode(0), "never reset"),
        (lambda e: e.privileged(7), "row 7"),
    ],
)
def test_misuse_is_named(pack, call, message):
    with pytest.raises(UptakeError, match=message):
        call(DuplexVectorEnv(pack, 2, frames=20))


def test_one_conversation_and_a_batch_of_one_are_the_same_simulator(pack):
    one, batch = DuplexEnv(pack, frames=15), DuplexVectorEnv(pack, 1, frames=15)
    options = {"scenario": "turn", "variant": 2}
    obs, _ = one.reset(seed=3, options=options)
    assert np.array_equal(obs["mic"], batch.reset(seed=3, options=options)[0]["mic"][0])
    for _ in range(15):
        obs, reward, _, truncated, _ = one.step(np.zeros(F, np.float32))
        assert np.array_equal(obs["mic"], batch.step(np.zeros((1, F)))[0]["mic"][0])
    assert truncated and reward == 0.0


def test_a_stretch_of_nothing_leaves_a_clip_as_it_was(pack):
    """The fades on both sides of a cut add up to the clip where no silence is put in between."""
    text = SCENARIOS.split("---")[0].replace("at: 0.8s", "at: 0.8s, pauses: [{after_word: 2, seconds: 0.01}]")
    (scenario,) = parse_scenarios(text)
    line = bind(pack, scenario, 0, 0).lines[0]
    clip = pack.clip("ask")
    assert len(line.pcm) == clip.samples and np.abs(line.pcm.astype(int) - clip.pcm).max() <= 1
    assert line.events[0].words == clip.words


def test_gain_scales_the_voice(pack):
    (scenario,) = parse_scenarios(SCENARIOS.split("---")[0].replace("at: 0.8s", "at: 0.8s, gain_db: -20"))
    line = bind(pack, scenario, 0, 0).lines[0]
    assert np.abs(line.pcm - pack.clip("ask").pcm / 10).max() <= 0.5
    assert to_pcm16(pack.clip("ask").audio).max() > 6000


def test_a_spoken_text_finds_its_clip_whatever_its_case(pack):
    env = DuplexVectorEnv(pack, 1, split="test", frames=40)
    listen(env, 40, seed=1)
    assert env.episode(0).events[0].text == "how is the garden" and env.episode(0).meta["voice"] == "other"


LONG = """\
schema: duplex.scenario/1
id: waits
split: train
duration_s: {max: 1.3}
user:
  script:
    - {id: ask, type: A1, clip: ask, at: 0.1}
    - {id: cut, type: C1, clip: but, when: {agent: speaking, for: 0.8, after: ask}, timeout: 15}
---
schema: duplex.scenario/1
id: talks
split: train
duration_s: {max: 1.3}
ACOUSTICSuser:
  script:
    - {id: tell, type: A3, clip: story, at: 0.5}
    - {id: door, type: D4, clip: door, at: 1.2}
"""


@pytest.mark.parametrize("acoustics", ["", "acoustics: {telephone: {}}\n"])
@pytest.mark.parametrize("name", ["waits", "talks"])
def test_a_conversation_is_over_at_its_longest_whoever_waits_or_talks_then(pack, tmp_path, name, acoustics):
    path = tmp_path / "long.yaml"
    path.write_text(LONG.replace("ACOUSTICS", acoustics))
    env = DuplexVectorEnv(pack.with_users(path), 1, frames=60)
    heard = [env.reset(seed=3, options={"scenario": name})[0]["mic"][0]]
    ends = []
    for _ in range(60):
        obs, _, terminated, _, _ = env.step(silence(env))
        heard.append(obs["mic"][0])
        ends.append(bool(terminated[0]))
    last = CLOCK.frames_covering(CLOCK.nearest_sample(1.3))
    assert ends.index(True) + 2 == last  # frames that were heard by then, frame 0 among them
    levels = 20 * np.log10(np.sqrt(np.mean(np.square(heard), axis=1)))
    assert levels[last - 3 : last].max() > -30
    assert levels[last + 1 :].max() < -50  # one frame for what is still on its way over the line
    assert env.episode(0).meta["ended"] == "script" and env.episode(0).mic.size == last * F
