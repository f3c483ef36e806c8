"""What Gymnasium asks of us: ids, autoreset modes, action spaces, state, pictures."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import soundfile
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.actions import BACKCHANNEL, SILENT, SPEAK
from envs.activity import activity
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from envs.look import write_look
from envs.pack import Pack
from envs.registration import IDS
from rewards.compose import OURS, Composition
from tests.packs import SCENARIOS, tiny_pack, write_tiny_pack
from tests.toy_codec import ToyCodec

F = CLOCK.frame


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def quiet(env: DuplexVectorEnv) -> np.ndarray:
    return np.zeros((env.num_envs, F), np.float32)


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_has_nothing_to_say_about_a_registered_id(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name, render_mode="rgb_array").unwrapped
        check_env(env)
    vector = gym.make_vec(name, num_envs=2)
    obs, _ = vector.reset(seed=1)
    ((sense, heard),) = obs.items()
    codes = IDS[name].get("obs") is not None
    assert heard.shape == ((2, 8) if codes else (2, F)) and sense == ("codes" if codes else "mic")
    assert vector.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    single, _ = env.reset(seed=1)
    assert np.array_equal(single[sense], heard[0])


def test_importing_envs_registers_every_id_and_loads_no_torch():
    code = (
        "import sys, gymnasium, envs, envs.duplex_vector_env, envs.wrappers\n"
        "from envs.registration import IDS\n"
        "assert set(IDS) <= set(gymnasium.registry) and len(IDS) >= 6\n"
        "gymnasium.make('Uptake/DuplexTokens-v0')\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- autoreset ---------------------------------------------------------------------------------------------------------


def conversation(env: DuplexVectorEnv, row: int) -> tuple[str, int]:
    meta = env.episode(row).meta
    return meta["scenario"], meta["variant"]


def test_without_autoreset_an_ended_row_stays_ended(pack):
    env = DuplexVectorEnv(pack, 2, frames=80)
    env.reset(seed=1, options={"scenario": ["noise", "pause"]})
    ends = np.array([env.step(quiet(env))[2] for _ in range(80)])  # (steps, B)
    first = int(np.flatnonzero(ends[:, 0])[0])
    assert ends[first:, 0].all() and conversation(env, 0) == ("noise", 0)
    with pytest.raises(UptakeError, match="at its last frame"):
        env.step(quiet(env))


def test_next_step_swallows_the_action_after_the_end_and_nothing_else(pack):
    env = DuplexVectorEnv(pack, 2, frames=12, autoreset_mode="NextStep", score=lambda episode: 1.0)
    env.reset(seed=1, options={"scenario": "turn"})
    before = [conversation(env, row) for row in range(2)]
    for k in range(12):
        _, reward, terminated, truncated, info = env.step(quiet(env))
        assert truncated.all() == (k == 11) and reward.sum() == 2 * (k == 11) and not terminated.any()
    assert info["ended"].all() and "scenario" not in info
    loud = quiet(env) + 0.5
    obs, reward, terminated, truncated, info = env.step(loud)  # this one is swallowed
    assert not (terminated | truncated).any() and not reward.any() and info["frame"].tolist() == [0, 0]
    assert info["scenario"].tolist() == [conversation(env, row)[0] for row in range(2)]
    assert [conversation(env, row) for row in range(2)] != before
    assert np.array_equal(obs["mic"][0], env.episode(0).mic) and not env.episode(0).agent.any()
    impulse = quiet(env)
    impulse[:, 9] = 0.25
    env.step(impulse)  # and this one is not
    assert np.flatnonzero(env.episode(1).agent).tolist() == [F + 9]


def test_same_step_returns_the_new_conversation_and_keeps_the_old_ones_last_frame(pack):
    env = DuplexVectorEnv(pack, 2, frames=12, autoreset_mode=AutoresetMode.SAME_STEP, score=lambda episode: 1.0)
    plain = DuplexVectorEnv(pack, 2, frames=12)
    for one in (env, plain):
        one.reset(seed=1, options={"scenario": "turn"})
    for k in range(12):
        obs, reward, _, truncated, info = env.step(quiet(env))
        last, *_ = plain.step(quiet(plain))
        assert ("final_obs" in info) == (k == 11)
    assert truncated.all() and reward.tolist() == [1.0, 1.0]  # of the old conversation
    assert np.array_equal(info["final_obs"][1]["mic"], last["mic"][1]) and info["_final_obs"].all()
    assert info["final_info"]["frame"].tolist() == [12, 12] and info["final_info"]["scenario"][0] == "turn"
    assert info["frame"].tolist() == [0, 0] and np.array_equal(obs["mic"][0], env.episode(0).mic)
    impulse = quiet(env)
    impulse[:, 9] = 0.25
    *_, info = env.step(impulse)  # no action is swallowed
    assert np.flatnonzero(env.episode(0).agent).tolist() == [F + 9] and "final_obs" not in info


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_what_a_row_meets_next_does_not_depend_on_when_the_others_end(pack, mode):
    """One batch has a row that ends early and often, in the other all rows end late."""
    seen = []
    for other in ("noise", "story"):
        env = DuplexVectorEnv(pack, 2, frames=60, autoreset_mode=mode)
        env.reset(seed=1, options={"scenario": [other, "pause"], "variant": 4})
        heard = []
        for _ in range(130):
            heard.append(env.step(quiet(env))[0]["mic"][1])
        seen.append(np.stack(heard))
    assert np.array_equal(*seen)


def test_the_modes_agree_with_gymnasiums_own_vectoriser(pack):
    """`SyncVectorEnv` over `DuplexEnv` is the reference for which step says what."""
    for mode in AutoresetMode:
        ours = DuplexVectorEnv(pack, 1, frames=9, autoreset_mode=mode)
        theirs = gym.vector.SyncVectorEnv([lambda: DuplexEnv(pack, frames=9)], autoreset_mode=mode)
        for env in (ours, theirs):
            env.reset(seed=3, options={"scenario": "turn"})
        for _ in range(9 if mode is AutoresetMode.DISABLED else 24):
            one, two = (env.step(np.zeros((1, F), np.float32)) for env in (ours, theirs))
            assert (one[2].tolist(), one[3].tolist()) == (two[2].tolist(), two[3].tolist())
            assert one[4]["frame"].tolist() == two[4]["frame"].tolist()
            assert ("final_obs" in one[4]) == ("final_obs" in two[4])
            if "final_obs" in one[4]:
                assert one[4]["final_info"]["frame"].tolist() == two[4]["final_info"]["frame"].tolist()
                assert one[4]["final_obs"][0]["mic"].shape == two[4]["final_obs"][0]["mic"].shape


def test_an_unknown_mode_is_named(pack):
    with pytest.raises(UptakeError, match=r"autoreset_mode='NextStap'.*did you mean 'NextStep'"):
        DuplexVectorEnv(pack, 1, autoreset_mode="NextStap")


# -- actions -----------------------------------------------------------------------------------------------------------


def test_canned_speech_answers_what_was_asked_and_stops_within_10_ms(pack):
    env = DuplexVectorEnv(pack, 2, frames=100, act="canned")
    env.reset(seed=1, options={"scenario": "turn"})
    for k in range(60):
        env.step(np.array([SPEAK if 40 <= k < 55 else SILENT, SILENT]))
    speaks, waits = env.episode(0), env.episode(1)
    assert " ".join(word.text for word in speaks.transcript).startswith("it is sunny and warm")
    assert not waits.agent.any() and waits.transcript == ()
    sounding = np.flatnonzero(speaks.agent)
    assert sounding[0] >= 41 * F and sounding[0] < 41 * F + 10
    assert sounding[-1] < 56 * F + 240 and np.abs(np.diff(speaks.agent[56 * F : 56 * F + 241])).max() < 0.05
    assert all(word.offset <= 56 * F + 240 for word in speaks.transcript)


def test_a_canned_backchannel_is_said_to_its_end_and_again_when_asked_again(pack):
    env = DuplexEnv(pack, frames=100, act="canned")
    env.reset(seed=1, options={"scenario": "story"})
    for k in range(60):
        env.step(BACKCHANNEL if k in (10, 40) else SILENT)
    assert [word.text for word in env.episode().transcript] == ["mhm", "mhm"]
    spans = activity(env.episode().agent)
    assert len(spans) == 2 and np.abs(spans[:, 0] - np.array([11 * F, 41 * F])).max() <= 240
    env.reset(seed=1, options={"scenario": "story"})
    for _ in range(90):
        env.step(SPEAK)
    texts = [word.text for word in env.episode().transcript]
    assert len(texts) > 15 and "mhm" not in texts  # who goes on speaking goes on to the next clip


def test_tokens_are_played_through_the_codec_that_was_handed_in(pack):
    env = DuplexVectorEnv(pack, 2, frames=20, act=ToyCodec())
    assert env.single_action_space == gym.spaces.MultiDiscrete([16, 16])
    env.reset(seed=1)
    env.step(np.array([[8, 0], [0, 0]]))
    env.step(np.array([[0, 3], [0, 0]]))
    assert env.episode(0).agent[[F, 2 * F, 3 * F - 1]].tolist() == [0.125, 0.125, 0.125]
    env.reset(options={"reset_mask": np.array([True, False])})
    env.step(np.zeros((2, 2), int))
    assert not env.episode(0).agent.any()  # what the codec remembers is gone, too


def test_the_codec_that_ships_speaks_and_forks_exactly(pack):
    env = DuplexVectorEnv(pack, 2, frames=30, act="align.codecs.pocket:shipped")
    codec = env.speech.codec
    clip = pack.clip("agent-weather").audio[: 20 * F].reshape(20, 1, F)
    state = codec.init_state(1)
    codes = np.concatenate([codec.encode(state, frame) for frame in clip])  # (20, Q)
    env.reset(seed=1, options={"scenario": "turn"})
    for k in range(8):
        env.step(np.stack([codes[k], np.zeros_like(codes[k])]))
    env.fork(0, [1])
    for k in range(8, 20):
        env.step(np.stack([codes[k], codes[k]]))
    assert np.array_equal(env.episode(0).agent, env.episode(1).agent) and np.abs(env.episode(0).agent).max() > 0.05


def codes_of(env: DuplexVectorEnv, row: int) -> np.ndarray:
    """(frames, codebooks) of a row's record, through a stream of its own."""
    codec, mic = env.ear.codec, env.episode(row).mic.reshape(-1, 1, F)
    state = codec.init_state(1)
    return np.concatenate([codec.encode(state, frame) for frame in mic])


@pytest.mark.parametrize("codec", ["align.codecs.pocket:shipped", ToyCodec()])
def test_codes_are_heard_row_by_row_as_a_stream_of_its_own_gives_them(pack, codec):
    env = DuplexVectorEnv(pack, 3, frames=40, obs=codec)
    assert env.single_observation_space["codes"].shape == (env.ear.codec.codebooks,)
    heard = [env.reset(seed=1, options={"scenario": ["turn", "story", "pause"]})[0]["codes"]]
    for _ in range(12):
        heard.append(env.step(quiet(env))[0]["codes"])
    again, _ = env.reset(options={"scenario": "barge", "reset_mask": np.array([False, True, False])})
    assert np.array_equal(again["codes"][[0, 2]], heard[-1][[0, 2]])  # the others hear nothing twice
    assert np.array_equal(again["codes"][1], codes_of(env, 1)[0])
    env.fork(2, [1])
    for _ in range(12):
        heard.append(env.step(quiet(env))[0]["codes"])
    for row, own in ((0, 0), (1, 2), (2, 2)):
        assert np.array_equal(np.stack(heard)[13:, row], codes_of(env, own)[13:])
    assert np.array_equal(np.stack(heard)[:, 0], codes_of(env, 0)) and len(np.unique(np.stack(heard)[:, 0])) > 1


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_codes_begin_afresh_with_every_conversation_that_begins_by_itself(pack, mode):
    codec = ToyCodec()
    env = DuplexVectorEnv(pack, 2, frames=9, obs=codec, autoreset_mode=mode)
    plain = DuplexVectorEnv(pack, 2, frames=9, autoreset_mode=mode)
    streams, ends = [codec.init_state(1) for _ in range(2)], 0

    def check(row: int, codes: dict, mic: dict) -> None:
        assert np.array_equal(codes["codes"], codec.encode(streams[row], mic["mic"][None])[0])

    def at(obs: dict, row: int) -> dict:
        return {name: value[row] for name, value in obs.items()}

    codes, mic = env.reset(seed=1)[0], plain.reset(seed=1)[0]
    for _ in range(40):
        for row in range(2):
            check(row, at(codes, row), at(mic, row))
        (codes, *_, told), (mic, *_, info) = env.step(quiet(env)), plain.step(quiet(env))
        for row in range(2):
            if mode == "SameStep" and "final_obs" in info and info["_final_obs"][row]:
                check(row, told["final_obs"][row], info["final_obs"][row])
            if info["frame"][row] == 0:
                streams[row], ends = codec.init_state(1), ends + 1
    assert ends > 4


@pytest.mark.parametrize(
    "act, action, message",
    [
        ("pcm", np.zeros((2, 0), np.float32), "shape .2, 0.*it is empty"),
        ("pcm", np.zeros((2, 1280), np.float32), "1280 samples are a frame at 16000 Hz: resample to 24000"),
        ("pcm", np.zeros((2, F, 2), np.float32), "mix the channels to mono"),
        ("pcm", np.zeros((2, 1900), np.float32), "truncated: pad it"),
        ("pcm", np.zeros((2, F), np.int16), "int16, expected float32 in .-1, 1.; divide 16-bit audio"),
        ("canned", np.array([0, 3]), "action holds 3; canned actions .*are 0 to 2"),
        ("canned", np.array([0.0, 1.0]), "float64.*expected whole numbers"),
        ("codec", np.array([[0, 16], [0, 0]]), "action holds 16; codes of the codec are 0 to 15"),
        ("codec", np.array([[0, -1], [0, 0]]), "action holds -1"),
        ("codec", np.zeros((2, 3), int), r"\(2, 3\), expected whole numbers \(2, 2\)"),
    ],
)
def test_a_bad_action_is_named_and_changes_nothing(pack, act, action, message):
    env = DuplexVectorEnv(pack, 2, frames=20, act=ToyCodec() if act == "codec" else act)
    env.reset(seed=1)
    with pytest.raises(UptakeError, match=message):
        env.step(action)
    env.action_space.seed(0)
    assert env.step(env.action_space.sample())[-1]["frame"].tolist() == [1, 1]


def test_samples_beyond_full_scale_are_clipped_and_counted(pack):
    env = DuplexVectorEnv(pack, 2, frames=20)
    env.reset(seed=1)
    action = quiet(env)
    action[1, :5] = 1.5
    assert env.step(action)[-1]["clipped"].tolist() == [0, 5]
    assert env.episode(1).agent.max() <= 1.0


@pytest.mark.parametrize(
    "obs, message", [("pmc", "obs 'pmc' is none of pcm and"), (object(), "obs: a object is no codec")]
)
def test_observations_that_cannot_be_are_named(pack, obs, message):
    with pytest.raises(UptakeError, match=message):
        DuplexVectorEnv(pack, 1, obs=obs)


@pytest.mark.parametrize(
    "act, message",
    [
        ("cannd", "did you mean 'canned'"),
        ("align.codecs.pocket:shiped", "has no attribute 'shiped'"),
        ("nowhere:codec", "No module named 'nowhere'"),
        (object(), "is no codec"),
        (type("Other", (ToyCodec,), {"frame": 960})(), "frames of 960 samples"),
    ],
)
def test_actions_that_cannot_be_are_named(pack, act, message):
    with pytest.raises(UptakeError, match=message):
        DuplexVectorEnv(pack, 1, act=act)


# -- state -------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("act", ["pcm", "canned", "codec"])
def test_the_same_state_has_the_same_future(pack, act, data):
    """Whatever was done before, a state that is set again, elsewhere or here, and a fork go on alike."""
    hears, sense = (ToyCodec(), "codes") if data.draw(st.booleans()) else ("pcm", "mic")
    kind = ToyCodec() if act == "codec" else act
    acoustics = data.draw(st.sampled_from([None, {"echo": {"delay_ms": 30}, "network": {"loss": 0.1}}]))
    mode = data.draw(st.sampled_from(["Disabled", "NextStep", "SameStep"]))

    def make() -> DuplexVectorEnv:
        return DuplexVectorEnv(pack, 3, frames=70, act=kind, acoustics=acoustics, autoreset_mode=mode, obs=hears)

    env = make()
    env.action_space.seed(data.draw(st.integers(0, 99)))
    env.reset(seed=data.draw(st.integers(0, 99)), options={"scenario": ["barge", "turn", "noise"]})
    before, after = data.draw(st.integers(0, 60)), 9
    talk = [env.action_space.sample() for _ in range(before + after)]
    for action in talk[:before]:
        env.step(action)
    state = env.get_state()

    def future(one: DuplexVectorEnv) -> list:
        return [one.step(action) for action in talk[before:]]

    first = future(env)
    elsewhere = make()
    elsewhere.set_state(state)
    env.set_state(state)
    for found in (future(env), future(elsewhere)):
        for one, two in zip(first, found, strict=True):
            assert np.array_equal(one[0][sense], two[0][sense]) and one[4]["ended"].tolist() == two[4]["ended"].tolist()
            assert all(np.array_equal(one[i], two[i]) for i in (1, 2, 3))
    if mode == "Disabled":
        env.set_state(state)
        env.fork(1, [0, 2])
        for action in talk[before:]:
            action = np.stack([action[1]] * 3)
            obs, *_ = env.step(action)
            heard = obs[sense]
            assert np.array_equal(heard[0], heard[1]) and np.array_equal(heard[2], heard[1])
        assert np.array_equal(env.episode(0).agent, env.episode(2).agent)
        assert env.episode(0).transcript == env.episode(1).transcript


def test_a_state_of_another_ear_is_refused(pack):
    sound, codes = DuplexVectorEnv(pack, 1, frames=5), DuplexVectorEnv(pack, 1, frames=5, obs=ToyCodec())
    for one, other in ((sound, codes), (codes, sound)):
        one.reset(seed=1)
        with pytest.raises(UptakeError, match="one hears sound and the other codes"):
            other.set_state(one.get_state())


def test_a_fork_of_one_conversation_goes_its_own_way(pack):
    env = DuplexEnv(pack, frames=90, act="canned")
    env.reset(seed=6, options={"scenario": "barge"})
    for _ in range(30):
        env.step(SILENT)
    twin = env.fork()
    one = [env.step(SPEAK)[0]["mic"] for _ in range(50)]
    again = twin.fork()
    two = [twin.step(SILENT)[0]["mic"] for _ in range(50)]
    three = [again.step(SPEAK)[0]["mic"] for _ in range(50)]
    assert np.array_equal(one, three) and not np.array_equal(one, two)
    assert env.episode().transcript == again.episode().transcript and twin.episode().meta["skipped"]


# -- truth and pictures ------------------------------------------------------------------------------------------------


def test_the_truth_is_told_only_when_asked_for(pack):
    plain, telling = (DuplexEnv(pack, frames=20, privileged=told) for told in (False, True))
    for env in (plain, telling):
        obs, info = env.reset(seed=1, options={"scenario": "turn"})
        _, *_, later = env.step(np.zeros(F, np.float32))
        assert set(obs) == {"mic"}
        for found in (info, later):
            assert ("privileged" in found) == (env is telling)
    (event,) = telling.step(np.zeros(F, np.float32))[-1]["privileged"]["events"]
    assert event["type"] == "A1" and event["onset"] > 3 * F


def test_what_is_expected_of_the_agent_cannot_be_heard(tmp_path):
    """Other labels and expectations, the same microphone to the last bit."""
    other = SCENARIOS.replace("agent: responds", "agent: silent").replace("type: A1", "type: A3")
    assert other != SCENARIOS
    heard = []
    for name, text in (("a", SCENARIOS), ("b", other)):
        env = DuplexVectorEnv(Pack.load(write_tiny_pack(tmp_path / name, text)), 3, frames=40)
        obs, _ = env.reset(seed=1, options={"scenario": ["turn", "pause", "barge"]})
        heard.append([obs["mic"]] + [env.step(quiet(env) + 0.1)[0]["mic"] for _ in range(40)])
    assert np.array_equal(*heard)


def test_one_call_gives_a_picture_with_verdicts_and_a_stereo_file(pack, tmp_path):
    env = DuplexEnv(pack, frames=60, act="canned")
    env.reset(seed=1, options={"scenario": "turn"})
    for k in range(60):
        env.step(SPEAK if k > 45 else SILENT)
    episode = env.episode()
    verdicts = Composition(OURS).score(episode)
    assert any(verdict.value is not None for verdict in verdicts)
    for name, shown in (("plain", ()), ("judged", verdicts)):
        write_look(episode, tmp_path / name, shown)
    pictures = [(tmp_path / name / "timeline.png").read_bytes() for name in ("plain", "judged")]
    assert pictures[0] != pictures[1] and all(picture[:4] == b"\x89PNG" for picture in pictures)
    sound, rate = soundfile.read(tmp_path / "judged" / "stereo.wav", dtype="float32")
    assert rate == CLOCK.sample_rate and np.array_equal(sound, np.stack([episode.mic, episode.agent], axis=1))


def test_a_conversation_renders_to_a_picture(pack):
    env = DuplexEnv(pack, frames=20, render_mode="rgb_array")
    env.reset(seed=1)
    first = env.render()
    for _ in range(20):
        env.step(np.full(F, 0.3, np.float32))
    later = env.render()
    assert later.dtype == np.uint8 and later.ndim == 3 and later.shape[2] == 3 and later.std() > 5
    assert first.shape != later.shape or not np.array_equal(first, later)
    assert DuplexEnv(pack).render() is None
    with pytest.raises(UptakeError, match="render_mode='human'"):
        DuplexEnv(pack, render_mode="human")
