"""A recorded step is the step, whatever rows do; what was recorded is dropped when it is no longer true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.lora import adapters_off, add_lora, merge_lora
from align.policies import checks
from align.policies.graphs import SWITCH, Graphs
from align.policies.moshi import frame, streaming
from align.policies.moshi import model as moshi_model
from align.policies.moshi.frame import Rows, Sight, advance
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.streaming import MoshiStream
from align.policies.sampling import SAMPLE, Sampling
from tests.moshi_streams import ALL, BATCH, SAMPLING, assert_same, heard, live, open_rows, random_model
from tests.on_one_device import OnOneDevice
from tests.tape import Tape
from tests.tiny_moshi import config, policy


@pytest.fixture(autouse=True)
def as_on_an_accelerator_and_without_rounding(monkeypatch):
    """No look at values, and double precision throughout: in float32 two orders of a sum may draw two tokens."""
    monkeypatch.setattr(moshi_model, "_seen_whole", lambda codes: False)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def model(**changes: Any) -> MoshiModel:
    return random_model(**changes).double()


def taped(of: MoshiModel, sampling: Sampling = SAMPLING, batch: int = BATCH) -> tuple[MoshiStream, list[Tape]]:
    """A stream that replays, and the recorders that it has used so far."""
    tapes: list[Tape] = []

    def recorder() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    return MoshiStream(of, sampling, batch, Graphs(of, recorder)), tapes


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), delayed=st.booleans())
def test_a_replayed_conversation_is_the_conversation_whatever_its_rows_do(seed, delayed):
    of = model(**({} if delayed else {"delays": (0,) * 17}))
    replayed, tapes = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    open_rows(plain, replayed)
    live(np.random.default_rng(seed), 35, plain, replayed)  # more than two windows of context
    assert [tape.recorded for tape in tapes] == [1]


def test_what_attention_sees_grows_in_strides_and_moves_with_the_cache(monkeypatch):
    monkeypatch.setattr(frame, "_SLOTS", 8)
    monkeypatch.setattr(streaming, "_GRAIN", 4)
    of = model(context=20)
    replayed, tapes = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    rng = np.random.default_rng(0)
    for _ in range(2):
        open_rows(plain, replayed)
        for _ in range(25):  # in step, and around the ring
            user = heard(rng)
            assert_same(replayed.step(user, ALL), plain.step(user, ALL))
    live(rng, 25, plain, replayed)
    # 4 and 8 slots, 12 and 16 in the next cache, 20 in the last; then again those before.
    assert [tape.recorded for tape in tapes] == [2, 2, 5]


@pytest.mark.parametrize("context", [16, 100, 3000])
def test_few_graphs_serve_a_whole_context_and_none_sees_much_more_than_it_must(context):
    stream = MoshiStream(model(context=context), SAMPLING, 1)
    seen = {}
    for step in range(context + 50):
        stream.steps[0] = step
        seen[step] = stream._bucket()
    assert len(set(seen.values())) <= 18
    for step, slots in seen.items():
        used = min(step + 1, context)
        assert used <= slots <= context and slots - used < max(64, used / 4 + 1)


def test_a_policy_that_replays_passes_every_check_of_a_policy(monkeypatch):
    monkeypatch.setattr(Graphs, "on", classmethod(lambda cls, of, device: cls(of, Tape)))
    p = policy()
    prompt = np.full((9, 4), SAMPLE)
    prompt[0, :2] = [3, 20]
    checks.check_policy(p, lambda folder: MoshiPolicy.load(folder, p.sampling, p.codec), 18, prompt)


def test_a_copy_of_what_a_policy_lives_shares_the_model_and_records_for_itself(monkeypatch):
    monkeypatch.setattr(Graphs, "on", classmethod(lambda cls, of, device: cls(of, Tape)))
    p, other = policy(), policy()
    p.reset(np.ones(2, bool), [1, 2])
    checks.play(p, checks.noise_user(p, 2, 3))
    state = p.get_state()
    kept = state["lived"]["_stream"].graphs
    assert kept is not p._stream.graphs and kept._model is p.model and not kept._replays
    other.set_state(state)
    assert other._stream.graphs._model is other.model
    assert all(a is b for a, b in zip(other._stream.graphs._weights, other.model.parameters(), strict=False))


def test_weights_that_change_in_place_are_used_without_a_new_recording():
    of = model()
    replayed, tapes = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    open_rows(plain, replayed)
    rng = np.random.default_rng(0)
    for n in range(6):
        if n == 3:
            with torch.no_grad():
                for weight in of.parameters():
                    weight.mul_(1.1)
        user = heard(rng)
        assert_same(replayed.step(user, ALL), plain.step(user, ALL))
    assert [tape.recorded for tape in tapes] == [1]


def test_weights_that_move_between_two_frames_are_recorded_anew():
    of = model()
    replayed, tapes = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    open_rows(plain, replayed)
    rng = np.random.default_rng(0)
    for n in range(8):
        if n == 4:  # as a gather of ZeRO-3, and as `.to()`
            of.text_linear.weight.data = of.text_linear.weight.data * 1.5
        user = heard(rng)
        assert_same(replayed.step(user, ALL), plain.step(user, ALL))
    assert [tape.recorded for tape in tapes] == [1, 1]


def test_adapters_put_in_switched_and_merged_are_recorded_anew_at_the_next_reset():
    of = model()
    replayed, tapes = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    rng = np.random.default_rng(0)

    def converse() -> np.ndarray:
        open_rows(plain, replayed)
        said = []
        for _ in range(4):
            user = heard(rng)
            expected = plain.step(user, ALL)
            assert_same(replayed.step(user, ALL), expected)
            said.append(expected.text_logp)
        return np.stack(said)

    converse()
    add_lora(of, r"transformer\..*", 2, 4)
    with torch.no_grad():
        for name, weight in of.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    converse()
    with adapters_off(of):
        converse()
    converse()
    merge_lora(of)
    converse()
    assert [tape.recorded for tape in tapes] == [1] * 5


def test_adapters_switched_between_two_frames_count_from_the_next_frame_on():
    of = model()
    add_lora(of, r"transformer\..*", 2, 4)
    with torch.no_grad():
        for name, weight in of.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    replayed, _ = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    open_rows(plain, replayed)
    rng = np.random.default_rng(0)

    def frames() -> None:
        for _ in range(4):
            user = heard(rng)
            assert_same(replayed.step(user, ALL), plain.step(user, ALL))

    frames()
    with adapters_off(of):
        frames()
    frames()


def test_another_sampling_is_recorded_anew():
    of = model()
    replayed, _ = taped(of)
    plain = MoshiStream(of, SAMPLING, BATCH)
    open_rows(plain, replayed)
    rng = np.random.default_rng(0)
    for n in range(9):
        if n == 3:
            plain.sampling = replayed.sampling = Sampling(text_temperature=2.0, text_top_k=0, audio_top_k=0)
        user = heard(rng)
        assert_same(replayed.step(user, ALL), plain.step(user, ALL))


def test_what_a_step_returned_is_not_changed_by_the_next():
    replayed, _ = taped(model())
    open_rows(replayed)
    rng = np.random.default_rng(0)
    out = [replayed.step(heard(rng), ALL) for _ in range(5)]
    kept = [(step.tokens.copy(), step.text_logp.copy()) for step in out]
    for _ in range(3):
        replayed.step(heard(rng), ALL)
    for step, (tokens, logp) in zip(out, kept, strict=True):
        assert np.array_equal(step.tokens, tokens) and np.array_equal(step.text_logp, logp)


@pytest.mark.parametrize("lora", [False, True])
def test_a_frame_neither_waits_for_its_device_nor_touches_the_hosts_memory(lora):
    with torch.device("meta"):
        of = MoshiModel(config()).to(torch.bfloat16)
    if lora:
        add_lora(of, r"transformer\..*", 2, 4)
    rows = Rows(of, BATCH)
    with torch.inference_mode(), OnOneDevice() as device:  # the meta device has no values to look at
        advance(of, SAMPLING, rows, Sight(16))
    assert device.calls > 100


def test_a_function_that_looks_at_a_value_is_told_apart_by_the_tape():
    """The test double is as strict as a capture."""
    x = torch.ones(3)
    graphs = Graphs(model(), Tape)

    def look() -> None:
        if x.sum() > 2:
            x.mul_(2)

    graphs.run("look", look)
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.run("look", look)


def test_recording_runs_nothing_and_each_key_is_recorded_once():
    tape = Tape()
    graphs, count = Graphs(model(), lambda: tape), torch.zeros(1)
    seen = []

    def add() -> None:
        count.add_(1)

    for key in ("a", "a", "b", "a", "b", "b"):
        graphs.run(key, add)
        seen.append(int(count))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert (tape.warmed, tape.recorded) == (2, 2)


def test_graphs_are_for_gpus_and_can_be_turned_off(monkeypatch):
    assert Graphs.on(model(), torch.device("cpu")) is None
    monkeypatch.setenv(SWITCH, "1")
    assert Graphs.on(model(), torch.device("cuda")) is None
