"""On a GPU, a captured step is the step. `test_moshi_graphs` holds all but the capture itself, and needs none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.loading import load_policy
from align.policies.graphs import SWITCH, CudaRecorder, Graphs
from align.policies.moshi.frame import Sight
from align.policies.moshi.model import Head, MoshiModel
from align.policies.moshi.streaming import MoshiStream
from align.policies.sampling import draw, truncate
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


def test_a_head_of_bfloat16_gives_on_a_gpu_what_it_gives_on_a_cpu():
    head, x = Head(256, 40, bias=False).to(torch.bfloat16), torch.randn(3, 5, 256).bfloat16()
    expected = head(x)
    on_gpu = head.to("cuda")(x.to("cuda").requires_grad_())
    assert on_gpu.dtype == torch.float32
    torch.testing.assert_close(on_gpu.cpu(), expected, rtol=0, atol=1e-4)
    on_gpu.sum().backward()
    assert head.weight.grad is not None and head.weight.grad.isfinite().all()


def test_a_row_alone_draws_what_it_draws_in_company():
    torch.manual_seed(0)
    logits, uniform = torch.randn(500, 32_000, device="cuda") * 3, torch.rand(500, device="cuda")
    probs = truncate(logits, 0.8, 25).softmax(-1)
    for row in range(500):
        token = draw(probs[row : row + 1], uniform[row : row + 1])
        assert probs[row, token] > 0 and token == draw(probs[[row, row]], uniform[[row, row]])[0]


def test_a_checkpoint_is_run_in_the_precision_that_it_was_published_in(tmp_path):
    load_policy("pocket").export(tmp_path / "bf16", dtype=torch.bfloat16)
    assert load_policy(str(tmp_path / "bf16")).model.text_linear.weight.dtype == torch.bfloat16
    assert load_policy("pocket").model.text_linear.weight.dtype == torch.float32


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
