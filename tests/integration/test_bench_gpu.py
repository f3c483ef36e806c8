"""The benchmark for GPUs is whole: it runs on a CPU, says so, and claims no share of hardware that it does not know."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from align.policies.moshi.model import MoshiModel
from tests.benchmarks import bench_gpu, bench_moshi


def test_it_runs_on_a_cpu_and_claims_nothing_of_a_gpu(capsys):
    few = "--batch 1 2 --frames 5 --learn-batch 2 --rounds 1"
    bench_gpu.main(["--shape", "pocket", "--device", "cpu", *few.split()])
    one, heard, two, _, learnt = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["batch"], two["batch"]) == (1, 2) and one["stream_mib"] == two["stream_mib"] > 0
    assert all(said["figures_of"] == "CPU" and said["dtype"] == "float32" for said in (one, heard, two, learnt))
    assert heard["end_to_end"] == "mimi" and heard["codec_on"] == "cpu" and heard["codec_share"] > 0.0
    assert one["eager_frames_per_s"] > 0 and not [name for name in one if name.startswith("graphed")]
    for kind in ("score", "update", "score_and_update"):
        assert learnt[f"{kind}_tokens_per_s"] > 0 and learnt[f"plain_{kind}_tokens_per_s"] > 0
    shares = [name for said in (one, learnt) for name in said if "mfu" in name or "roofline" in name or "peak" in name]
    assert len(shares) > 8 and all((one | learnt)[name] is None for name in shares)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_run_instead(capsys):
    with pytest.raises(SystemExit) as left:
        bench_gpu.main([])
    assert left.value.code == 2 and "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("depth", [False, True])
def test_multiplications_are_those_that_torch_counts(depth):
    model, frames = MoshiModel(bench_moshi.config("pocket")), 30
    c = model.config
    codes = torch.zeros(1, c.num_streams, frames, dtype=torch.long)
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(codes, depth=depth)
    # It counts the masked half of attention as well.
    masked = c.num_layers * c.dim * (frames - 1)
    if depth:
        masked += c.depformer_num_layers * c.depformer_dim * c.dep_q * (c.dep_q - 1)
    ours = bench_moshi.multiplications(model, frames, depth) + masked
    assert counted.get_total_flops() == 2 * frames * ours
