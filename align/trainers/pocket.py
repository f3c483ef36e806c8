"""How pocket was made: three supervised stages on composed conversations, a model from nothing.

For recordings of your own and a checkpoint that exists already, see `align.trainers.sft`.

Three stages over conversations that are composed from a pack (`envs.conversations`) and differ in voice, speed,
level, room tone and timing each time:

1. *listen*: a user who does not stop talking, half of it words in random order; the text stream is what the **user**
   says, two frames after each word. A dense way to learn to hear; the head and the vocabulary are those of stage 2.
   (Kyutai's delayed-streams models are trained so, arXiv 2509.08753.)
2. *answer*: question upon question; the text stream is what the agent says. Dense material to learn what answers what:
   in ordinary conversations the choice of an answer is one token in a hundred, and was not learned in 17,000 of them.
3. *talk*: conversations with human timing and faults; the depth transformer learns the agent's codes.

Losses are Moshi's (arXiv 2410.00037 §4.4): cross-entropy per stream, padding of the text stream weighted down, the
first codebook weighted up. What differs: the depth transformer is scored on a random part of the frames (an unbiased
loss for a fraction of the work), and columns are shifted by the policy's emission lag, so that a policy that streams is
in time with the data.

    python -m align.trainers.pocket compose --pack WIDE --codec codec.safetensors --out shards --count 8000
    python -m align.trainers.pocket train --shards shards --codec codec.safetensors --out align/policies/pocket

`docs/pocket.md` has the exact commands behind the shipped weights: two processes that composed half each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from align.codecs.pocket import PocketCodec
from align.files import write_tensors
from align.imitation import codebook_weights, text_weights, weighted_nll
from align.memory import keep_memory
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.streams import EPAD, PAD, align, encode, text_stream
from envs.acoustics.room_tone import room_tone
from envs.clock import CLOCK
from envs.codec import Codec
from envs.conversations import Composer, Conversation
from envs.episode import from_pcm16
from envs.errors import UptakeError
from envs.event import Word
from envs.files import whole
from envs.pack import Pack

EMISSION_FRAMES = 2
"""From the frame of a text token to the frame in which its audio is played: one of the model, one of the clock."""
_LISTEN_DELAY = 2  # frames after a word's end at which stage 1 writes it


STAGES = ("listen", "answer", "talk")


@dataclass(frozen=True)
class StagesConfig:
    """What a run of all stages needs to know."""

    listen_steps: int = 800
    answer_steps: int = 500
    talk_steps: int = 400
    batch: int = 32
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.05
    clip: float = 1.0
    text_padding_weight: float = 0.3
    onset_weight: float = 4.0
    """Of the first words after a silence: they decide what the answer is about, the rest of it follows from them."""
    first_codebook_weight: float = 2.0
    depth_share: float = 0.5
    """Share of the frames in which the agent sounds that the depth transformer is scored on."""
    depth_silence_share: float = 0.06
    """The same for frames in which it does not."""
    answer_depth_share: float = 0.2
    """How much of that already in the stage *answer*, which is about words."""
    bf16: bool = True
    seed: int = 0


POCKET = MoshiConfig(
    dim=192,
    num_layers=6,
    num_heads=6,
    context=256,
    card=256,
    text_card=512,
    depformer_dim=128,
    depformer_num_layers=2,
    depformer_num_heads=4,
)


# -- data --------------------------------------------------------------------------------------------------------------


def train_tokenizer(pack: Pack, path: Path, size: int = 512) -> None:
    """A sentencepiece model over what is said in training, with Moshi's ids: EPAD 0, BOS 1, EOS 2, PAD 3."""
    said = [c.text for kind in ("agent", "agent_backchannel") for c in pack.clips(kind)] * 40
    said += [c.text for c in pack.clips("user") if c.split == "train"]
    words = [word for text in said for word in text.split()]
    with whole(path) as partial, partial.open("wb") as out:  # several processes may compose at once
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_writer=out,
            vocab_size=size,
            model_type="bpe",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=PAD,
            character_coverage=1.0,
            minloglevel=2,
        )


@dataclass
class Examples:
    """Aligned conversations."""

    codes: torch.Tensor  # (N, K, T) int16
    listen: torch.Tensor  # (N, T) int16: the text stream of stage 1
    sounding: torch.Tensor  # (N, T) bool: the agent's frame holds speech

    def save(self, path: Path) -> None:
        with whole(path) as partial:
            save_file({k: v.contiguous() for k, v in vars(self).items()}, partial)


def load_examples(folder: Path) -> Examples:
    """All shards of a folder."""
    shards = [load_file(p) for p in sorted(folder.glob("*.safetensors"))]
    if not shards:
        raise UptakeError(f"{folder}: no composed conversations; run `python -m align.trainers.pocket compose` first")
    return Examples(**{k: torch.cat([s[k] for s in shards]) for k in ("codes", "listen", "sounding")})


def compose(
    talks: Sequence[Conversation],
    codec: Codec,
    tokenizer: sentencepiece.SentencePieceProcessor,
    rng: np.random.Generator,
) -> Examples:
    """Conversations of one length, heard through the codec in rooms that differ."""
    count, frames = len(talks), CLOCK.frames(len(talks[0].user))
    heard = np.stack([talk.user + _tone(talk, rng) for talk in talks])
    spoken = np.stack([talk.agent for talk in talks])
    user = encode(codec, heard)
    agent = encode(codec, spoken)
    said = np.stack([text_stream(talk.agent_words, tokenizer, frames) for talk in talks])
    listen = np.stack([text_stream(_late(talk.user_words), tokenizer, frames) for talk in talks])
    loud = np.abs(spoken).reshape(count, frames, -1).max(-1) > 1e-3
    # The agent's column t is audible EMISSION_FRAMES later; the user's column is heard in its own frame.
    lag = EMISSION_FRAMES
    codes = align(said[:, lag:], agent[:, :, lag:], user[:, :, :-lag])
    return Examples(
        codes=torch.from_numpy(codes.astype(np.int16)),
        listen=torch.from_numpy(listen[:, : codes.shape[2]].astype(np.int16)),
        sounding=torch.from_numpy(loud[:, lag:-1]),
    )


def _tone(talk: Conversation, rng: np.random.Generator) -> np.ndarray:
    return from_pcm16(room_tone(len(talk.user), float(rng.uniform(-68, -52)), rng, rng))


def _late(words: list[Word]) -> list[Word]:
    delay = CLOCK.sample_of(_LISTEN_DELAY)
    return [Word(w.text, w.offset + delay, w.offset + delay + CLOCK.frame) for w in words]


# -- training ----------------------------------------------------------------------------------------------------------


def text_loss(
    logits: torch.Tensor, text: torch.Tensor, padding_weight: float, onset_weight: float = 1.0
) -> torch.Tensor:
    """Weighted mean cross-entropy: logits (B, T, V), text (B, T)."""
    silent = (text == PAD) | (text == EPAD)
    weight = text_weights(text, (PAD, EPAD), padding_weight)  # (B, T)
    weight = torch.where(_begins(text) & ~silent, onset_weight, weight)
    return weighted_nll(logits, text, weight) / weight.sum()


def _begins(text: torch.Tensor, silence: int = 4, reach: int = 7) -> torch.Tensor:
    """Frames (B, T) less than `reach` after at least `silence` frames of padding."""
    padded = F.pad((text == PAD).float(), (silence, 0), value=1.0)[:, :-1]
    silent = padded.unfold(1, silence, 1).amin(-1)  # (B, T): all of the frames before are padding
    return F.pad(silent, (reach - 1, 0)).unfold(1, reach, 1).amax(-1) > 0


def audio_loss(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, first: float) -> torch.Tensor:
    """Weighted mean cross-entropy: logits (N, Q, card), targets and mask (N, Q); codebook 0 weighs `first`."""
    weight = codebook_weights(mask, first)
    return weighted_nll(logits, targets, weight) / weight.sum()


def batches(folder: Path, size: int, generator: torch.Generator) -> Iterator[tuple[Examples, torch.Tensor]]:
    """Shuffled batches, for ever. Every pass reads the folder anew: composing may go on while training has begun."""
    while True:
        examples = load_examples(folder)
        order = torch.randperm(len(examples.codes), generator=generator)
        for index in order[: len(order) // size * size].view(-1, size):
            yield examples, index


def fit(model: MoshiModel, shards: Path, config: StagesConfig, stage: str, log: Path, save: Path) -> None:
    """One stage; writes figures to `log` every 25 steps, weights to `save` at the end and to *.latest every 250."""
    steps = {"listen": config.listen_steps, "answer": config.answer_steps, "talk": config.talk_steps}[stage]
    generator = torch.Generator().manual_seed(config.seed + STAGES.index(stage))
    held = load_examples(shards / "dev" / stage)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    half = max(1, steps // 2)  # constant first, then a cosine to a twentieth

    def rate(step: int) -> float:
        fall = 0.5 * (1 + np.cos(np.pi * max(0, step - half) / max(1, steps - half)))
        return min(1.0, (step + 1) / config.warmup) * (0.05 + 0.95 * float(fall))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    began = time.monotonic()
    drawn = batches(shards / "train" / stage, config.batch, generator)
    for step, (examples, index) in zip(range(steps), drawn, strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            losses, *_ = _forward(model, examples, index, config, stage, generator)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        if (step + 1) % 25 == 0:
            figures = {k: round(v.item(), 4) for k, v in losses.items()} | {"grad_norm": round(float(norm), 3)}
            if (step + 1) % 250 == 0:
                figures |= evaluate(model, held, config, stage)
                with whole(save.with_suffix(".latest")) as partial:
                    save_file(model.state_dict(), partial)
            line = {"stage": stage, "step": step + 1, "seconds": round(time.monotonic() - began)} | figures
            with open(log, "a") as out:
                out.write(json.dumps(line) + "\n")
    write_tensors(save, model.state_dict())


def _forward(
    model: MoshiModel,
    examples: Examples,
    index: torch.Tensor,
    config: StagesConfig,
    stage: str,
    generator: torch.Generator,
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Losses by name, the text (B, T) that they ask for and its logits (B, T, V)."""
    codes = examples.codes[index].long()  # (B, K, T)
    text = examples.listen[index].long() if stage == "listen" else codes[:, 0]
    if stage == "listen":
        codes = torch.cat([text[:, None], codes[:, 1:]], dim=1)
    hidden, logits = model.text_forward(codes)
    onset_weight = 1.0 if stage == "listen" else config.onset_weight
    losses = {"text": text_loss(logits, text, config.text_padding_weight, onset_weight)}
    if stage != "listen":
        part = 1.0 if stage == "talk" else config.answer_depth_share
        share = part * torch.where(examples.sounding[index], config.depth_share, config.depth_silence_share)
        chosen = torch.rand(share.shape, generator=generator) < share  # (B, T)
        scores = model.depth_scores(hidden, codes, chosen)
        losses["audio"] = audio_loss(scores.logits, scores.targets, scores.mask, config.first_codebook_weight)
    return losses, text, logits


@torch.no_grad()
def evaluate(model: MoshiModel, held: Examples, config: StagesConfig, stage: str) -> dict[str, float]:
    """Losses on conversations of the dev split, and how often the words that come are the likeliest ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
        losses, text, logits = _forward(model, held, torch.arange(len(held.codes)), config, stage, generator)
    words = (text != PAD) & (text != 0)
    right = logits.argmax(-1) == text
    shares = {"dev_words": right[words].float().mean(), "dev_onsets": right[words & _begins(text)].float().mean()}
    return {k: round(float(v), 4) for k, v in ({f"dev_{k}": v for k, v in losses.items()} | shares).items()}


# -- command line ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    composing = commands.add_parser("compose", help="compose conversations and hear them through the codec")
    composing.add_argument("--pack", required=True)
    composing.add_argument("--count", type=int, default=8_000)
    composing.add_argument("--frames", type=int, default=150)
    composing.add_argument("--seed", type=int, default=0)
    training = commands.add_parser("train", help="listen, then answer, then talk")
    training.add_argument("--shards", type=Path, required=True)
    training.add_argument("--listen-steps", type=int, default=StagesConfig.listen_steps)
    training.add_argument("--answer-steps", type=int, default=StagesConfig.answer_steps)
    training.add_argument("--talk-steps", type=int, default=StagesConfig.talk_steps)
    training.add_argument("--threads", type=int, default=2)
    for command in (composing, training):
        command.add_argument("--codec", required=True)
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    keep_memory()
    (_compose if args.command == "compose" else _train)(args)


def _compose(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pack, codec = Pack.load(args.pack), PocketCodec.load(args.codec)
    tokenizer_path = args.out / "tokenizer_spm.model"
    args.out.mkdir(parents=True, exist_ok=True)
    if not tokenizer_path.is_file():
        train_tokenizer(pack, tokenizer_path)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    for split, count in (("dev", 64), ("train", args.count)):
        composer = Composer(pack, split, args.frames, scrambled=0.4 if split == "train" else 0.0)
        for stage, draw in (("listen", composer.chatter), ("answer", composer.quiz), ("talk", composer.draw)):
            folder = args.out / split / stage
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(-(-count // 64)):
                path = folder / f"{args.seed:02d}-{number:05d}.safetensors"
                if not path.is_file():
                    rng = np.random.default_rng([args.seed, number, split == "dev", STAGES.index(stage)])
                    talks = [draw(rng) for _ in range(min(64, count))]
                    compose(talks, codec, tokenizer, rng).save(path)


def _train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    config = StagesConfig(listen_steps=args.listen_steps, answer_steps=args.answer_steps, talk_steps=args.talk_steps)
    args.out.mkdir(parents=True, exist_ok=True)
    model = MoshiModel(POCKET, seed=config.seed)
    work = args.shards / "work"  # not beside the policy: what lies there is shipped
    work.mkdir(exist_ok=True)
    (work / "sft.json").write_text(json.dumps(asdict(config)))
    for stage in STAGES:
        path = work / f"{stage}.safetensors"
        if path.is_file():  # a stage that is done is not done again
            model.load_state_dict(load_file(path))
        else:
            if path.with_suffix(".latest").is_file():
                model.load_state_dict(load_file(path.with_suffix(".latest")))
            fit(model, args.shards, config, stage, work / "sft.jsonl", path)
    export(model, args.shards / "tokenizer_spm.model", Path(args.codec), args.out)


def export(model: MoshiModel, tokenizer: Path, codec: Path, out: Path) -> None:
    """The folder that `MoshiPolicy` loads; weights in half precision."""
    names = {"tokenizer_name": "tokenizer_spm.model", "mimi_name": "codec.safetensors"}
    config = model.config.to_dict() | names | {"moshi_name": "model.safetensors"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tensors(out / "model.safetensors", {k: v.half() for k, v in model.state_dict().items()})
    shutil.copyfile(tokenizer, out / "tokenizer_spm.model")
    shutil.copyfile(codec, out / "codec.safetensors")


if __name__ == "__main__":
    main()
