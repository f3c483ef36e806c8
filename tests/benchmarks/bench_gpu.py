"""Stepping and learning of a Moshi-class model with random weights, as shares of what the hardware can do.

    python tests/benchmarks/bench_gpu.py                               # one H100 or H200, the 7B and 1B shapes
    python tests/benchmarks/bench_gpu.py --shape pocket --device cpu   # the same code, figures of the CPU

Prints one JSON line a batch size: frames a second over conversations of 20 s, step by step and with CUDA graphs, the
same for their last two seconds alone, what capturing took, memory a stream, and the share of the roofline
`rows · bandwidth / (weights + rows · frames so far · bytes a frame of cache)`: a frame reads every weight once.

And one line a batch size end to end, as a rollout plays: `MoshiPolicy.step` from microphone to loudspeaker through a
Mimi of the released shape (random weights, every row with a user of its own), and how much of it the codec alone takes.

Then one line a shape about learning from the text stream: tokens a second of scoring without gradient, of an update
(forward, backward, AdamW) and of both, beside a plain transformer (transformers' Llama) of the same width, depth and
vocabulary under the same loss, in turn, medians; and model FLOP utilisation: 2 a weight and token to score, 6 to update
all weights, 4 with LoRA adapters (7b), and attention's, over the hardware's dense peak. On hardware whose peaks are not
in `PEAKS` the shares are null. On a CPU everything is float32 and nothing is captured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MimiConfig, MimiModel

from align.codecs.mimi import MimiCodec
from align.loading import find_folder
from align.lora import add_lora
from align.policies.base import Trajectory, scores_of
from align.policies.graphs import Graphs
from align.policies.moshi.config import MoshiConfig, gated_width
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.policies.moshi.streaming import MoshiStream
from align.policies.sampling import Sampling, truncated_log_probs

SHAPES = ("7b", "1b", "pocket")
ADAPTED = "7b"
"""This shape learns through LoRA adapters, as the recipe for one 80 GB card does; the others with all weights."""
PEAKS = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12)}
"""Part of a GPU's name -> bytes a second, dense bf16 FLOP a second (NVIDIA's data sheets, SXM)."""
SAMPLING = Sampling(text_top_k=25)
LAST = 25  # frames: two seconds


def config(shape: str) -> MoshiConfig:
    """7b: the published; 1b: Kyutai's smaller temporal transformer; pocket: the one in the repository."""
    if shape == "pocket":
        return replace(MoshiConfig.load(find_folder("pocket") / "config.json"), extra={})
    return MoshiConfig() if shape == "7b" else MoshiConfig(dim=2048, num_layers=16, num_heads=16)


def randomised(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """A model that was built without memory, with random weights on the device."""
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.shape[-1] == parameter.numel():
                parameter.fill_(1.0)  # a norm
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


class Clock:
    """Seconds of the wall, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak(self, into: dict[str, Any], name: str) -> Iterator[None]:
        """Write the peak of the GPU's memory meanwhile, in GiB, to `into[name]`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        on_gpu = self.device.type == "cuda"
        into[name] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if on_gpu else None


def peaks(device: torch.device) -> tuple[float | None, float | None]:
    """Bytes and FLOP a second that the device can do at most, if known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((values for part, values in PEAKS.items() if part in name), (None, None))


def share(measured: float, most: float | None) -> float | None:
    """Of the most that is possible, if that is known."""
    return None if most is None else round(measured / most, 3)


def stepping(model: MoshiModel, batch: int, frames: int, clock: Clock) -> dict[str, Any]:
    """Conversations of `frames` frames: one step by step and, on a GPU, one that captures and one that only replays."""
    c, bandwidth = model.config, peaks(clock.device)[0]
    user = np.random.default_rng(0).integers(0, c.card, (frames, batch, c.n_q - c.dep_q))
    out: dict[str, Any] = {"batch": batch, "frames": frames}
    graphs = Graphs.on(model, clock.device)
    streams = {"eager": MoshiStream(model, SAMPLING, batch)}
    if graphs is not None:
        streams["graphed"] = MoshiStream(model, SAMPLING, batch, graphs)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    kept = 2 * c.num_layers * c.dim * model.text_linear.weight.element_size()  # bytes a row and frame in the cache
    for name, stream in streams.items():
        active = np.ones(batch, bool)

        def converse(stream: MoshiStream = stream, active: np.ndarray = active) -> list[float]:
            stream.reset(np.arange(batch), np.arange(batch, dtype=np.uint64))
            return [clock(lambda heard=heard: stream.step(heard, active)) for heard in user]  # type: ignore[misc]

        if name == "eager":  # libraries load at the first call
            stream.step(user[0], active)
        with clock.peak(out, f"{name}_peak_gib"):
            first = converse()
            times = converse() if name == "graphed" else first
        if name == "graphed":
            out["capturing_s"] = round(sum(first) - sum(times), 2)
        for what, part in (("", slice(0, None)), ("_last_2_s", slice(-LAST, None))):
            rate = batch * len(times[part]) / sum(times[part])
            read = sum(weights + batch * (n + 1) * kept for n in range(frames)[part])
            most = bandwidth and batch * len(times[part]) * bandwidth / read
            out[f"{name}_frames_per_s{what}"] = round(rate, 1)
            out[f"{name}_of_roofline{what}"] = share(rate, most)
        out[f"{name}_times_real_time"] = round(batch * frames * 0.08 / sum(times), 1)
    if graphs is not None:
        out["speedup"] = round(out["graphed_frames_per_s"] / out["eager_frames_per_s"], 2)
    state = streams["eager"].rows
    held = (*state.cache, state.depth_cache, state.inputs, state.tokens, state.logp)
    out["stream_mib"] = round(sum(tensor.nbytes for tensor in held) / batch / 2**20, 2)
    return out


class Wordless:
    """A tokenizer of no pieces: what a token is called costs nothing here."""

    def get_piece_size(self) -> int:
        """No token means anything."""
        return 0


def end_to_end(model: MoshiModel, batch: int, frames: int, clock: Clock) -> dict[str, Any]:
    """Conversations of `frames` frames from sound to sound: one to capture where that is done, and one to be timed."""
    codec = MimiCodec(MimiModel(MimiConfig(codebook_size=model.config.card)), model.config.dep_q)
    tokenizer: Any = Wordless()
    policy = MoshiPolicy(model, codec, tokenizer, SAMPLING)
    user = np.random.default_rng(0).normal(0, 0.1, (frames, batch, codec.frame)).astype(np.float32)
    out: dict[str, Any] = {"end_to_end": "mimi", "batch": batch, "frames": frames}
    with torch.inference_mode():
        for part in (user if clock.device.type == "cuda" else user[:2], user):
            policy.reset(np.ones(batch, bool), list(range(batch)))
            with clock.peak(out, "peak_gib"):
                times = [clock(lambda heard=heard: policy.step(heard)) for heard in part]  # type: ignore[misc]
        state, alone = codec.init_state(batch), []
        for heard in user:
            alone.append(clock(lambda heard=heard: codec.decode(state, codec.encode(state, heard))))  # type: ignore[misc]
    out["codec_on"] = codec.device.type
    out["frames_per_s"] = round(batch * frames / sum(times), 1)
    out["times_real_time"] = round(batch * frames * 0.08 / sum(times), 1)
    out["codec_share"] = round(median(alone) / median(times), 3)
    return out


def learning(model: MoshiModel, adapted: bool, batch: int, frames: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Scoring and updating by `batch` conversations, ours and a plain transformer's in turn; the first warms up."""
    c, device = model.config, clock.device
    with torch.device("meta"):
        plain = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=c.dim, intermediate_size=gated_width(c.dim, c.feedforward), num_hidden_layers=c.num_layers,
                num_attention_heads=c.num_heads, num_key_value_heads=c.num_heads, vocab_size=c.text_card,
                rms_norm_eps=1e-8, use_cache=False, pad_token_id=None,
            )
        )  # fmt: skip
    rotary = plain.model.rotary_emb  # its table is computed, not drawn
    plain = randomised(plain, device, model.text_linear.weight.dtype)
    plain.model.rotary_emb = type(rotary)(config=plain.config).to(device)
    codes = torch.randint(0, min(c.card, c.text_card), (batch, c.num_streams, frames), device=device)
    valid = torch.ones(batch, frames, dtype=torch.bool, device=device)
    trajectory = Trajectory(codes, valid, torch.zeros(batch, frames, device=device), 0.7, SAMPLING.text_top_k)
    if adapted:
        add_lora(model, r"transformer\..*", 16, 32)
        add_lora(plain, r"model\.layers\..*", 16, 32)

    def ours() -> Tensor:
        return _loss(trajectory, model.text_forward(codes)[1])

    def theirs() -> Tensor:
        return _loss(trajectory, plain(input_ids=codes[:, 0]).logits)

    # What the text stream trains: the depth transformer is not part of it.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not name.startswith(("depformer", "linears")))
    optimisers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-6) for m in (model, plain)]

    def score(loss: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            loss()

    def update(loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer) -> None:
        loss().backward()
        optimiser.step()
        optimiser.zero_grad()

    tokens, flops = batch * frames, peaks(device)[1]
    matrices = c.num_layers * (4 * c.dim**2 + 3 * c.dim * gated_width(c.dim, c.feedforward)) + c.dim * c.text_card
    attention = 2 * c.num_layers * c.dim * (frames + 1)  # FLOP a token, half of the square being masked
    forward = 2 * matrices + attention
    backward = (1 if adapted else 2) * 2 * matrices + 2 * attention
    out: dict[str, Any] = {"learns": "lora" if adapted else "all", "batch": batch, "frames": frames}
    times: dict[str, list[float]] = {}
    for turn in range(1 + rounds):
        for name, loss, optimiser in (("", ours, optimisers[0]), ("plain_", theirs, optimisers[1])):
            with clock.peak(out, f"{name}update_peak_gib"):
                pair = clock(lambda loss=loss: score(loss)), clock(lambda loss=loss, by=optimiser: update(loss, by))  # type: ignore[misc]
            if turn:
                for kind, seconds in zip(("score", "update"), pair, strict=True):
                    times.setdefault(name + kind, []).append(seconds)
                times.setdefault(f"{name}score_and_update", []).append(sum(pair))
    work = {"score": forward, "update": forward + backward, "score_and_update": 2 * forward + backward}
    for kind, cost in work.items():
        for name in ("", "plain_"):
            rate = tokens / median(times[name + kind])
            out[f"{name}{kind}_tokens_per_s"] = round(rate)
            out[f"{name}{kind}_mfu"] = share(rate * cost, flops)
        out[f"{kind}_of_plain"] = round(
            median(b / a for a, b in zip(times[kind], times[f"plain_{kind}"], strict=True)), 2
        )
    return out


def _loss(trajectory: Trajectory, logits: Tensor) -> Tensor:
    """Of a policy gradient: log-probabilities and entropy of what was said, over the distribution sampled from."""
    taken = trajectory.codes[:, 0]
    log_probs = truncated_log_probs(logits, trajectory.temperature, trajectory.top_k, taken)
    scores = scores_of(trajectory, log_probs, full=False)
    return -(scores.logp.mean() + 0.01 * scores.entropy.mean())


def main(arguments: list[str] | None = None) -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["7b", "1b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--learn-batch", type=int, default=8, help="conversations in an update")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is at hand; --shape pocket --device cpu runs the same code on the CPU")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    clock = Clock(device)
    figures_of = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for shape in options.shape:
        with torch.device("meta"):
            model = MoshiModel(config(shape))
        model = randomised(model, device, dtype)
        count = sum(p.numel() for p in model.parameters())
        said = {
            "figures_of": figures_of,
            "shape": shape,
            "parameters": count,
            "dtype": str(dtype).removeprefix("torch."),
        }
        for batch in options.batch:
            print(json.dumps(said | stepping(model, batch, options.frames, clock)), flush=True)
            print(json.dumps(said | end_to_end(model, batch, options.frames, clock)), flush=True)
        learnt = learning(model, shape == ADAPTED, options.learn_batch, options.frames, options.rounds, clock)
        print(json.dumps(said | learnt), flush=True)
        del model


if __name__ == "__main__":
    main()
