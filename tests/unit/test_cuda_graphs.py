"""On a GPU, a captured step is the step. `test_moshi_graphs` holds all but the capture itself, and needs none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.policies.graphs import SWITCH, CudaRecorder, Graphs
from align.policies.moshi.frame import Sight
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.streaming import MoshiStream
from envs.errors import UptakeError
from tests.moshi_streams import ALL, BATCH, SAMPLING, assert_same, heard, live, open_rows, random_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def captured_and_plain(of: MoshiModel) -> tuple[MoshiStream, MoshiStream]:
    """One that captures and one with the same arithmetic, launched one by one."""
    captured = MoshiStream(of, SAMPLING, BATCH, Graphs.on(of, of.device))
    plain = MoshiStream(of, SAMPLING, BATCH)
    plain._sight = lambda: Sight(plain._bucket())  # type: ignore[method-assign]
    open_rows(plain, captured)
    return captured, plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_conversation_is_the_conversation(dtype):
    of = random_model().to("cuda", dtype)
    captured, plain = captured_and_plain(of)
    live(np.random.default_rng(0), 60, plain, captured)


def test_capture_follows_weights_that_moved_and_a_cache_that_grew():
    of = random_model(context=200).to("cuda")
    captured, plain = captured_and_plain(of)
    rng = np.random.default_rng(0)
    for n in range(215):
        if n in (50, 100):
            of.text_linear.weight.data = of.text_linear.weight.data * 1.2
        user = heard(rng)
        assert_same(captured.step(user, ALL), plain.step(user, ALL))


def test_a_module_that_cannot_be_captured_is_told_in_one_line_with_the_switch():
    x = torch.ones(3, device="cuda")
    recorder = CudaRecorder(x.device)

    def look() -> None:
        x.mul_(x.sum().item())

    with pytest.raises(UptakeError, match=SWITCH):
        recorder.record(look)
