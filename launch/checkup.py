"""`uptake doctor CHECKPOINT`: what a checkpoint is, and whether it streams as it scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from align.loading import CASCADE, find_folder, is_cascade_file, load_policy
from align.policies.base import DuplexPolicy
from align.policies.cascade.config import LlmConfig
from align.policies.cascade.policy import CascadePolicy
from align.policies.checks import TOLERANCE, audio_difference, streaming_difference
from align.policies.moshi.checkpoint import find_layout
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from envs.clock import CLOCK
from envs.codec import Codec
from envs.errors import UptakeError
from envs.pack import AGENT_KINDS
from launch.terminal import make_console

LAYOUT_NAMES = {
    "kyutai": "kyutai: the `moshi` package",
    "kyutai-lora": "kyutai-lora: a LoRA adapter of the `moshi` package, added to its base model",
    "personaplex": "personaplex: the `moshi` package of PersonaPlex; the depth steps of the user are left out",
    "hf": "hf: transformers' MoshiForConditionalGeneration",
}


def run_checkup(name: str, context: int = 0, console: Console | None = None) -> bool:
    """Print one line a property and return whether streaming and scoring agree; `context`: see `load_policy`."""
    console = console or make_console()
    folder = Path(name) if name == CASCADE or is_cascade_file(name) else find_folder(name)
    # What is allowed is a matter of the code, not of rounding.
    policy = load_policy(name, context=context, dtype=torch.float32)
    # A policy that decides seldom, or only when somebody has spoken, needs longer to do something.
    user = _talkers(policy) if isinstance(policy, CascadePolicy) else None
    if (codec := getattr(policy, "codec", None)) is not None:
        _check_codec(codec, folder)
    try:
        difference, actions = streaming_difference(policy, 24 if isinstance(policy, MoshiPolicy) else 96, user)
    except FloatingPointError as error:
        raise UptakeError(f"{folder}: {error}; give a checkpoint from before that") from error
    audio_apart, audio_actions = audio_difference(policy)
    good = difference <= TOLERANCE and audio_apart <= TOLERANCE
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, text in _moshi(folder, policy) if isinstance(policy, MoshiPolicy) else _other(policy):
        table.add_row("[green]ok[/]", f"[bold]{label}[/]", text)
    parity = f"at most {difference:.1e} nats apart in {actions} actions"
    if audio_actions:
        parity += f" of the text and {audio_apart:.1e} in {audio_actions} of the voice"
    parity += f" on {_device(policy)}, {TOLERANCE:.0e} is allowed"
    if not good:
        parity += "; in float32 that is a fault of the model's code: please report it with this table"
    table.add_row("[green]ok[/]" if good else "[red]fix[/]", "[bold]streaming and scoring[/]", parity)
    console.print(f"[bold]{folder}[/]", soft_wrap=True, highlight=False)
    console.print(table)
    return good


def _check_codec(codec: Codec, folder: Path) -> None:
    """Let it hear a frame and say it again; raises UptakeError if what it says is no sound."""
    state = codec.init_state(1)
    heard = np.random.default_rng(0).normal(0.0, 0.1, (1, codec.frame)).astype(np.float32).clip(-1.0, 1.0)
    if not np.isfinite(codec.decode(state, codec.encode(state, heard))).all():
        raise UptakeError(
            f"{folder}: its codec {_codec(codec)}, makes NaN or infinite sound of a frame of noise, expected samples "
            "of -1 to 1; put the codec there that the checkpoint came with"
        )


def _moshi(folder: Path, policy: MoshiPolicy) -> list[tuple[str, str]]:
    return [
        ("layout", LAYOUT_NAMES[find_layout(folder)]),
        ("streams", _streams(policy.model.config)),
        ("temporal transformer", _temporal(policy.model, policy.spec.frame / policy.spec.sample_rate)),
        ("depth transformer", _depth(policy.model)),
        ("embeddings and heads", _millions(_count(policy.model) - _count(policy.model, "transformer.", "depformer."))),
        ("parameters", _millions(_count(policy.model))),
        ("codec", _codec(policy.codec)),
        ("tokenizer", f"{policy.tokenizer.get_piece_size()} pieces"),
    ]


def _other(policy: DuplexPolicy) -> list[tuple[str, str]]:
    spec = policy.spec
    found = [
        ("policy", type(policy).__name__),
        ("streams", f"{len(spec.streams)}: {', '.join(stream.name for stream in spec.streams)}"),
        ("decides", f"every {spec.decision_frames} frames of {1000 * spec.frame / spec.sample_rate:.0f} ms at most"),
        ("parameters", f"{sum(p.numel() for p in policy.model.parameters()):,}"),
    ]
    if isinstance(policy, CascadePolicy):
        answer, stop = policy.model.thresholds_s()
        found.append(("hears by", policy.config.ear))
        found.append(("answers", _answers(policy.config.llm)))
        found.append(("even odds", f"to answer after {answer:.2f} s of silence, to stop after {stop:.2f} s of speech"))
    return found


def _answers(llm: LlmConfig | None) -> str:
    if llm is None:
        return "the pack's, in turn"
    source = llm.log or f"{llm.endpoint.model} at {llm.endpoint.base_url}"
    return f"{source}, asked after {llm.ask_after_s:g} s of silence, sound {llm.think_s:g} s later at the earliest"


def _talkers(policy: CascadePolicy) -> np.ndarray:
    """(T, 3, frame): three users of its pack, each of whom says something twice; not every ear takes noise for one."""
    spoken = [clip for clip in policy.pack.clips() if clip.kind not in AGENT_KINDS and clip.words][:3]
    pause = np.zeros(CLOCK.samples(2.0), np.float32)
    rows = [np.concatenate((pause, clip.audio, pause, clip.audio, pause)) for clip in spoken]
    frames = CLOCK.frames_covering(max(row.size for row in rows))
    heard = [np.pad(row, (0, frames * CLOCK.frame - row.size)).reshape(frames, CLOCK.frame) for row in (rows * 3)[:3]]
    return np.stack(heard, axis=1)


def _device(policy: DuplexPolicy) -> str:
    return next(policy.model.parameters()).device.type


def _streams(c: MoshiConfig) -> str:
    return (
        f"{c.num_streams}: text ({c.text_card} tokens), {c.dep_q} agent and {c.n_q - c.dep_q} user codebooks of "
        f"{c.card}, delays {' '.join(map(str, c.delays))}"
    )


def _temporal(model: MoshiModel, seconds: float) -> str:
    c = model.config
    return (
        f"{_millions(_count(model, 'transformer.'))}: {c.num_layers} layers of {c.dim}, {c.num_heads} heads, looks "
        f"back {c.context} frames ({c.context * seconds:.0f} s)"
    )


def _depth(model: MoshiModel) -> str:
    c = model.config
    return (
        f"{_millions(_count(model, 'depformer.'))}: {c.depformer_num_layers} layers of {c.depformer_dim}, "
        f"{c.depformer_num_heads} heads, {c.dep_q} steps with {max(c.depth_weights) + 1} sets of weights"
    )


def _codec(codec: Codec) -> str:
    name = type(codec).__name__.removesuffix("Codec").lower()
    return f"{name}: {codec.sample_rate} Hz, {codec.frame} samples a frame, {codec.codebooks} codebooks of {codec.card}"


def _count(model: MoshiModel, *parts: str) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if not parts or name.startswith(parts))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
