"""Acoustics in the environment: configured, drawn, recorded, forked, and gone when they are off."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from envs.acoustics.config import find_acoustics, presets
from envs.acoustics.room_tone import room_tone
from envs.checks import check_duplex_env
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode, from_pcm16
from envs.errors import UptakeError
from envs.pack import Pack
from envs.scenario import json_schema, parse_scenarios
from envs.seeding import Seeds
from envs.users.drivers import bind
from tests.packs import SCENARIOS, tiny_pack, write_tiny_pack

F = CLOCK.frame
# Everything at once, without the library of rooms.
ALL = {
    "noise": {"snr_db": [5, 15], "slope": 1.0, "drift_db": 3},
    "bursts": {"per_min": 60, "snr_db": 5},
    "babble": {"talkers": 3, "snr_db": 10},
    "speaker": {"snr_db": 10, "talk": 0.5},
    "echo": {"return_loss_db": 10, "delay_ms": [20, 90], "cancel_db": 15, "converge_s": 0.5, "nonlinear": 0.1},
    "gain_db": -3,
    "telephone": {"codec": "g711u"},
    "network": {"delay_ms": 50, "jitter_ms": 10, "buffer_ms": 20, "loss": 0.1},
    "clock_ppm": [-100, 100],
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def talk(frame: int, rows: int) -> np.ndarray:
    """What the agent says: half a second in every second."""
    voice = 0.2 * np.sin(np.arange(F) * 0.2) * (frame // 6 % 2)
    return np.tile(voice, (rows, 1)).astype(np.float32)


def listen(env: DuplexVectorEnv, frames: int, **reset) -> np.ndarray:
    obs, _ = env.reset(**reset)
    heard = [obs["mic"]] + [env.step(talk(k, env.num_envs))[0]["mic"] for k in range(frames)]
    return np.concatenate(heard, axis=1)


def sha(audio: np.ndarray) -> str:
    return hashlib.sha256(audio.tobytes()).hexdigest()


def test_with_everything_off_the_microphone_is_the_sum_of_what_is_said_and_room_tone(pack):
    clean, plain = (DuplexVectorEnv(pack, 1, frames=40, acoustics=which) for which in ("clean", None))
    options = {"scenario": "pause", "variant": 2}
    heard = listen(plain, 40, seed=4, options=options)
    assert np.array_equal(listen(clean, 40, seed=4, options=options), heard)
    assert plain.episode(0).meta["acoustics"] == {} == clean.episode(0).meta["acoustics"]
    seeds = Seeds(4, "weather-pause", 2)
    tone = from_pcm16(room_tone(41 * F, -62.0, seeds.rng("noise"), seeds.rng("room")))
    assert np.array_equal(heard[0], tone + plain.episode(0).user)


def test_the_same_seed_gives_the_same_audio_in_any_batch_whatever_is_on(pack):
    names = ["turn", "statement", "pause"]
    batch = DuplexVectorEnv(pack, 3, frames=25, acoustics=ALL)
    heard = listen(batch, 25, seed=9, options={"scenario": names, "variant": [0, 1, 2]})
    for row in (2, 0):
        alone = DuplexVectorEnv(pack, 1, frames=25, acoustics=ALL)
        assert sha(listen(alone, 25, seed=9, options={"scenario": names[row], "variant": row})[0]) == sha(heard[row])
    assert len({sha(row) for row in heard}) == 3


def test_one_effect_more_shifts_no_other(pack):
    def truth(acoustics) -> dict:
        scenario = pack.scenario("turn")
        return bind(pack, scenario, 3, 0, acoustics=find_acoustics(acoustics)).conditions.to_json()

    everything, without = truth(ALL), truth({key: value for key, value in ALL.items() if key != "noise"})
    assert everything.pop("noise")["snr_db"] != 10.0 and everything == without


def test_forks_and_restored_states_go_on_exactly_whatever_is_on(pack):
    env = DuplexVectorEnv(pack, 3, frames=30, acoustics=ALL)
    env.reset(seed=6, options={"scenario": ["turn", "barge", "turn"], "variant": [0, 1, 2]})
    for k in range(12):
        env.step(talk(k, 3))
    env.fork(1, [0])
    state = env.get_state()

    def rest(other: DuplexVectorEnv) -> np.ndarray:
        return np.stack([other.step(talk(k, 3))[0]["mic"] for k in range(12, 30)])

    first = rest(env)
    assert np.array_equal(first[:, 0], first[:, 1]) and not np.array_equal(first[:, 0], first[:, 2])
    env.set_state(state)
    elsewhere = DuplexVectorEnv(pack, 3, frames=30, acoustics=ALL)
    elsewhere.set_state(state)
    assert np.array_equal(rest(env), first) and np.array_equal(rest(elsewhere), first)
    assert env.episode(0).meta == env.episode(1).meta == elsewhere.episode(0).meta
    env.reset(options={"scenario": "turn", "reset_mask": np.array([True, False, False])})
    quiet = DuplexVectorEnv(pack, 3, frames=30)
    quiet.reset(seed=6)
    env.set_state(quiet.get_state())
    assert env.episode(0).meta["acoustics"] == {}


def test_forks_of_a_noisy_row_part_when_the_agent_does(pack):
    env = DuplexVectorEnv(pack, 2, frames=20, acoustics={"echo": {"delay_ms": 10}})
    env.reset(seed=6, options={"scenario": "turn"})
    env.fork(0, [1])
    actions = np.zeros((2, F), np.float32)
    actions[1] = 0.2
    env.step(actions)
    mic = np.stack([env.episode(row).mic for row in (0, 1)])
    assert np.array_equal(mic[0, :F], mic[1, :F]) and np.abs(mic[0] - mic[1])[: F + 240].max() < 1e-4
    assert np.abs(mic[0] - mic[1])[F + 240 :].max() > 0.01


@pytest.mark.parametrize("sample, delay_ms", [(0, 0), (7, 40), (1919, 85)])
def test_the_echo_of_an_action_is_heard_at_its_sample_of_the_next_frame_plus_the_delay(pack, sample, delay_ms):
    acoustics = {"echo": {"return_loss_db": 0, "delay_ms": delay_ms}}
    tracks = []
    for loud in (False, True):
        env = DuplexVectorEnv(pack, 1, frames=20, acoustics=acoustics)
        env.reset(seed=1, options={"scenario": "turn"})
        for k in range(6):
            action = np.zeros((1, F), np.float32)
            action[0, sample] = float(loud and k == 3)
            env.step(action)
        tracks.append(env.episode(0).mic)
    assert int(np.flatnonzero(np.abs(tracks[0] - tracks[1]) > 1e-3)[0]) == 4 * F + sample + delay_ms * 24
    assert np.flatnonzero(env.episode(0).agent).tolist() == [4 * F + sample]


def test_the_network_delays_what_the_agent_hears_and_what_the_user_hears_by_what_the_record_says(pack):
    network = {"network": {"delay_ms": 100, "buffer_ms": 0}}
    near, far = (DuplexVectorEnv(pack, 1, frames=80, acoustics=which) for which in (None, network))
    for env in (near, far):
        env.reset(seed=3, options={"scenario": "barge"})
        for k in range(80):
            *_, info = env.step(np.full((1, F), 0.1 * np.sin(k), np.float32) if k >= 30 else np.zeros((1, F)))
    late = far.episode(0).meta["acoustics"]["uplink_samples"]
    assert late == far.episode(0).meta["acoustics"]["downlink_samples"] == 2880
    assert info["latency_ledger"]["network_ms"].tolist() == [240.0]
    ask = near.episode(0).events[0]
    assert np.array_equal(far.episode(0).mic[late : ask.offset + late], near.episode(0).mic[: ask.offset])
    assert np.abs(far.episode(0).mic[: 2 * late].reshape(-1, 480)).max(axis=1).all()  # comfort noise, never nothing
    cuts = [env.episode(0).events[-1] for env in (near, far)]
    assert len({cut.anchors["agent_speaking_since"] for cut in cuts}) == 1  # the agent's own time
    assert abs(cuts[1].onset - cuts[0].onset - 2 * late) < F  # the user heard it late, and is heard late


def test_the_direct_sound_of_a_room_moves_no_onset_and_the_record_names_the_room(pack):
    env = DuplexVectorEnv(pack, 2, frames=30, acoustics={"room": {"rt60_s": 0.3, "distance_m": 0.5}})
    env.reset(seed=1, options={"scenario": ["turn", "noise"]})
    for _ in range(30):
        env.step(np.zeros((2, F), np.float32))
    episode, bang = env.episode(0), env.episode(1)
    onset = int(np.flatnonzero(episode.user)[0])
    tone = np.abs(episode.mic[:onset]).max()
    assert np.abs(episode.mic[onset : onset + 240]).max() > 2 * tone
    assert episode.meta["acoustics"]["room"]["rt60_s"] == 0.3
    (event,) = bang.events
    assert np.abs(bang.mic[event.offset + 240 : event.offset + 2400]).max() > 3 * tone  # noises ring too


def test_twins_in_a_cafe_share_every_sample_until_the_pause_ends(pack):
    acoustics = {key: ALL[key] for key in ("noise", "bursts", "babble", "speaker", "gain_db")}
    env = DuplexVectorEnv(pack, 2, frames=50, acoustics=acoustics)
    env.reset(seed=3, options={"scenario": ["pause", "nopause"]})
    heard = np.concatenate([env.step(np.zeros((2, F)))[0]["mic"] for _ in range(50)], axis=1)
    pause = next(e for e in env.privileged(0) if e.type == "B1")
    assert int(np.flatnonzero(heard[0] != heard[1])[0]) + F >= pause.offset


def test_a_scenario_that_says_how_it_sounds_is_not_overruled(tmp_path):
    text = "".join(
        SCENARIOS.split("---")[0].replace("id: turn", f"id: {name}") + f"acoustics: {spec}\n---\n"
        for name, spec in [
            ("own", "{noise: {snr_db: 5}}"),
            ("quiet", "clean"),
            ("tone", "{room_tone_db: -70}"),
            ("named", "{preset: telephone, gain_db: 2, network: {delay_ms: 10}}"),
        ]
    ).removesuffix("---\n")
    env = DuplexVectorEnv(Pack.load(write_tiny_pack(tmp_path / "p", text)), 4, frames=5, acoustics={"gain_db": -6})
    env.reset(seed=1, options={"scenario": ["own", "quiet", "tone", "named"]})
    own, quiet, tone, named = (env.episode(row).meta["acoustics"] for row in range(4))
    assert own["noise"]["snr_db"] == 5.0 and "gain_db" not in own
    assert quiet == {} and tone["gain_db"] == -6.0
    assert named["preset"] == "telephone" and named["gain_db"] == 2.0 and named["telephone"] == {"codec": "g711u"}
    assert named["network"]["delay_ms"] == 10.0 and named["network"]["jitter_ms"] == 0.0  # the section is replaced


def test_the_record_of_a_noisy_conversation_is_stored_and_loaded_as_it_was(pack, tmp_path):
    env = DuplexVectorEnv(pack, 1, frames=20, acoustics=ALL)
    listen(env, 20, seed=1, options={"scenario": "turn"})
    episode = env.episode(0)
    again = Episode.load(episode.save(tmp_path / "e"))
    assert again.meta == episode.meta and np.array_equal(again.mic, episode.mic)
    truth = episode.meta["acoustics"]
    assert {"noise", "bursts", "babble", "speaker", "echo", "telephone", "network"} <= set(truth)
    assert len(truth["speaker"]["spans"]) and truth["network"]["missing_up"] <= 1


def test_babble_is_of_other_voices_of_the_split_and_one_without_any_is_named(tmp_path):
    text = SCENARIOS.rsplit("---", 1)[1] + "acoustics: {babble: {talkers: 2}}\n"
    pack = Pack.load(write_tiny_pack(tmp_path / "p", text))
    assert {clip.voice for clip in pack.other_voices("train", "low")} == {"high"}
    with pytest.raises(UptakeError, match=r"all\.yaml:\d+: .*test clips of another voice than 'other'"):
        DuplexVectorEnv(pack, 1, split="test", frames=5).reset(seed=1)


@pytest.mark.parametrize("name", ["speakerphone", "bad_network"])
def test_the_contract_of_a_duplex_environment_holds_in_any_acoustics(pack, name):
    check_duplex_env(DuplexEnv(pack, frames=14, acoustics=name))


def test_every_preset_is_in_the_published_schema_and_draws():
    assert json_schema()["$defs"]["preset"]["enum"] == sorted(presets())
    for acoustics in presets().values():
        for variant in range(20):
            acoustics.draw(Seeds(1, "x", variant), {})


MINIMAL = """\
schema: duplex.scenario/1
id: a
split: train
vars: {late: {dist: uniform, a: 20, b: 90}, huge: {dist: lognormal, median: 20, sigma: 1}}
user: {script: [{id: ask, type: A1, clip: ask, at: 1.0s}]}
acoustics:
  preset: cafe
  room: {rt60_s: [0.3, 0.5], distance_m: 0.5}
  network: {loss: 0.02, burst_ms: {dist: uniform, a: 20, b: 90}}
  echo:
    delay_ms: $late
    cancel_db: {choice: [0, 10, 20]}
"""


def test_a_section_may_hold_numbers_ranges_distributions_and_variables():
    (scenario,) = parse_scenarios(MINIMAL)
    drawn = scenario.acoustics.draw(Seeds(1, "a", 0), {"late": 33.0})
    assert drawn.echo.delay_ms == 33.0 and drawn.echo.cancel_db in (0, 10, 20) and drawn.babble is not None
    assert 0.3 <= drawn.room.rt60_s <= 0.5 and 20 <= drawn.network.burst_ms <= 90 and drawn.telephone is None


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        ("preset: cafe", "preset: caffe", 7, "'caffe'.*did you mean 'cafe'"),
        ("preset: cafe", "presett: cafe", 7, "unknown key 'presett'.*did you mean 'preset'"),
        ("rt60_s", "rt60", 8, "unknown key 'rt60' in acoustics.room; did you mean 'rt60_s'"),
        ("[0.3, 0.5]", "[0.5, 0.3]", 8, "lower bound is above"),
        ("[0.3, 0.5]", "[0.3, 5]", 8, "room.rt60_s can be 0.3 to 5; it must stay within 0.05 to 1.2"),
        ("[0.3, 0.5]", "[0.3]", 8, "must be a number, .a, b."),
        ("[0.3, 0.5]", "long", 8, "must be a number, .a, b."),
        ("rt60_s: [0.3, 0.5], distance_m: 0.5", "rt60_s: 0.05, distance_m: 4", 8, "no room has rt60_s 0.05"),
        ("loss: 0.02", "loss: 0.9", 9, "network.loss can be 0.9 to 0.9"),
        ("loss: 0.02", "loss: 0.3, loss_in_burst: 0.2", 9, "raise loss_in_burst"),
        ("loss: 0.02", "loss: 0.5, loss_in_burst: 0.6", 9, "a share of 0.3 is lost at most, not 0.5"),
        ("  echo", "  underrun: {share: 0.5, burst_ms: 80}\n  echo", 10, "a share of 0.45 is late at most, not 0.5"),
        ("burst_ms: {dist: uniform, a: 20", "burst_ms: {dist: uniform, a: 99", 9, "lower bound is above"),
        ("burst_ms: {dist: uniform", "burst_ms: {dist: unifrom", 9, "did you mean 'uniform'"),
        ("$late", "$lat", 11, "no variable '.lat'; did you mean 'late'"),
        ("$late", "$huge", 11, "echo.delay_ms can be 0 to inf; it must stay within 0 to 500, perhaps by clip"),
        ("$late", ".nan", 11, "must be"),
        ("delay_ms: $late", "delay_ms: -3", 11, "can be -3 to -3"),
        ("  echo:", "  room_tone_db: loud\n  echo:", 10, "must be dBFS"),
        ("  echo:", "  telephone: {codec: mp3}\n  echo:", 10, "'mp3', which is not allowed"),
    ],
)
def test_an_error_names_the_line_the_value_and_the_fix(old, new, line, message):
    text = MINIMAL.replace(old, new, 1)
    assert text != MINIMAL
    with pytest.raises(UptakeError) as error:
        parse_scenarios(text, "dir/file.yaml")
    assert str(error.value).startswith(f"dir/file.yaml:{line}: "), error.value
    assert re.search(message, str(error.value)) and "\n" not in str(error.value), error.value


def test_acoustics_that_are_neither_a_preset_nor_a_mapping_are_named():
    for wrong in ("loud", "7", "[cafe]"):
        with pytest.raises(UptakeError, match=r"f\.yaml:6: acoustics is .*must be a preset's name, or a mapping"):
            parse_scenarios(MINIMAL.split("acoustics:")[0] + f"acoustics: {wrong}\n", "f.yaml")


def drawn(acoustics, variant: int) -> dict:
    return find_acoustics(acoustics).draw(Seeds(1, "x", variant), {}).to_json()


def test_a_mix_draws_by_weight_and_what_it_draws_sounds_as_it_does_alone(tmp_path):
    street = tmp_path / "street.yaml"
    street.write_text("noise: {snr_db: [0, 10]}\n")
    (tmp_path / "own.yaml").write_text("mix:\n  cafe: 3\n  street.yaml: 1\n  car: 0\n")
    found = [drawn(tmp_path / "own.yaml", variant) for variant in range(400)]
    cafes = [variant for variant, one in enumerate(found) if one.get("preset") == "cafe"]
    assert 270 < len(cafes) < 330
    for variant, one in enumerate(found):
        assert one == drawn("cafe" if variant in cafes else street, variant)
    shipped = {drawn("mixed", variant).get("preset") for variant in range(200)}
    assert shipped == set(presets()) - {"mixed"}  # clean among them
    assert find_acoustics("mixed").effects >= {"echo", "babble", "network"} and not find_acoustics("clean").effects


def test_a_scenario_may_draw_from_a_mix_and_the_record_says_what_came(pack, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(MINIMAL.split("acoustics:")[0] + "acoustics: {mix: {telephone: 1, bad_network: 1}}\n")
    env = DuplexVectorEnv(pack.with_users(path), 12, frames=2)
    env.reset(seed=1, options={"scenario": "a", "variant": list(range(12))})
    told = {env.episode(row).meta["acoustics"]["preset"] for row in range(12)}
    assert told == {"telephone", "bad_network"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("mix: {caffe: 1}", r"m\.yaml:1: mix: 'caffe' is neither a preset nor a file; did you mean 'cafe'"),
        ("mix: {cafe: 0}", r"m\.yaml:1: mix: no weight is above 0"),
        ("mix: {}", r"m\.yaml:1: mix: no weight is above 0"),
        ("mix: {cafe: -1}", r"m\.yaml:1: mix.cafe is -1; it must be at least 0"),
        ("mix: {mixed: 1}", r"m\.yaml:1: mix: 'mixed' is a mix itself"),
        ("mix: {m.yaml: 1}", r"m\.yaml:1: mix: 'm.yaml' is a mix itself"),
        ("mix: {cafe: 1}\ngain_db: 3", r"m\.yaml:1: mix: stands alone, beside no gain_db"),
        ("mix: {cafe: 1}\npreset: car", r"m\.yaml:1: mix: stands alone, beside no preset"),
        ("preset: mixed\ngain_db: 3", r"m\.yaml:2: gain_db: mixed is a mix; mix files of your own"),
        ("mix: {tone.yaml: 1}", r"tone\.yaml:1: room_tone_db belongs to a scenario"),
    ],
)
def test_a_mix_that_makes_no_sense_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "tone.yaml").write_text("room_tone_db: -60\n")
    (tmp_path / "m.yaml").write_text(text + "\n")
    with pytest.raises(UptakeError, match=message):
        find_acoustics(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    "what, message",
    [
        ("caffe", "no acoustics 'caffe'.*did you mean 'cafe'"),
        ({"eco": {}}, "unknown key 'eco'.*did you mean 'echo'"),
        ({"echo": {"delay_ms": "$late"}}, "no variable '.late'; there are no vars"),
        ({"room_tone_db": -60}, "belongs to a scenario"),
        ({"noise": {"snr_db": True}}, "must be a number"),
    ],
)
def test_a_default_that_makes_no_sense_is_refused_before_anything_starts(pack, what, message):
    with pytest.raises(UptakeError, match=message):
        DuplexVectorEnv(pack, 1, acoustics=what)


def test_a_default_can_be_a_file_whose_mistakes_have_lines(tmp_path):
    path = tmp_path / "street.yaml"
    path.write_text("noise: {snr_db: [0, 10]}\ngain_db: 3\n")
    assert set(find_acoustics(path).sections) == {"noise", "gain_db"}
    path.write_text("noise: {snr_db: [0, 10]}\ngain: 3\n")
    with pytest.raises(UptakeError, match=r"street\.yaml:2: unknown key 'gain'.*did you mean 'gain_db'"):
        find_acoustics(path)
    path.write_text("--- {}\n--- {}\n")
    with pytest.raises(UptakeError, match="holds 2 documents"):
        find_acoustics(path)
