"""What a conversation begins with before its first frame: a voice, a role, or a stretch of silence.

PersonaPlex (arXiv 2602.06053) is told who it is by frames that it is made to live through: a voice that it spoke with,
half a second of silence, the role's text at one token a frame, half a second of silence. All the while the user's
channel holds a 440 Hz tone. Of its frames the first one has no effect in the published code, whose first step reads
initial tokens whatever it is given; so it is left out here, and prompted conversations are equal token by token.

Moshi opens with a phrase of its own; arXiv 2606.11167 gives it 3 s of silence for that before the user begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from align.codecs.base import codes_of_silence
from align.policies.moshi.checkpoint import Tokenizer
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import SAMPLE
from envs.codec import Codec
from envs.errors import UptakeError

SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Mimi's codes of a frame of 440 Hz and of nothing, as PersonaPlex writes them."""
WRAPPER = "<system>"
"""Stands before and after a role's text."""
SPACER_SECONDS = 0.5
LOUDNESS = -24.0
"""LUFS of the voice (ITU-R BS.1770)."""
MAX_VOICE_SECONDS = 30.0


@dataclass
class PromptConfig:
    """What every conversation begins with. Empty: nothing, and the policy starts with the first frame."""

    text: str = ""
    """A role, for PersonaPlex: `You enjoy having a good conversation.`"""
    voice: str = ""
    """A recording of the voice to speak with, for PersonaPlex: any file of speech, some seconds long."""
    silence_s: float = 0.0
    """Seconds in which nobody speaks to it and it may open by itself. Published for Moshi: 3."""


def make_prompt(policy: MoshiPolicy, config: PromptConfig) -> np.ndarray | None:
    """The prompt that a configuration describes, for `MoshiPolicy.prompted`; None if it describes none.

    Raises:
        UptakeError: role or voice for a codec that is not Mimi with eight codebooks, silence together with them or of
            no length that can be, a text that the tokenizer does not know, a voice that cannot be read.
    """
    if config.text or config.voice:
        if config.silence_s:
            raise UptakeError("prompt.silence_s is Moshi's, prompt.text and prompt.voice are PersonaPlex'; give one")
        _check_codes(policy.model.config)
        voice = load_voice(Path(config.voice), policy.codec) if config.voice else None
        return persona(policy.model.config, _role(policy.tokenizer, config.text), voice)
    if not config.silence_s:
        return None
    frame = policy.codec.frame / policy.codec.sample_rate
    longest = (policy.spec.context - 1) * frame
    if not frame <= config.silence_s <= longest:
        raise UptakeError(
            f"prompt.silence_s = {config.silence_s}: must be 0, or from a frame of {frame:g} s to the {longest:g} s "
            "that the policy's context leaves for it"
        )
    return silence(policy, config.silence_s)


def persona(config: MoshiConfig, role: Sequence[int], voice: np.ndarray | None) -> np.ndarray:
    """PersonaPlex' system prompt, (1 + codebooks, frames).

    Args:
        role: text tokens of the role.
        voice: (agent codebooks, frames) codes of the voice, or None.
    """
    _check_codes(config)
    pad = config.existing_text_padding_id
    spacer = [pad] * int(SPACER_SECONDS * 12.5)
    spoken = np.zeros((len(SILENCE), 0), np.int64) if voice is None else np.asarray(voice, np.int64)
    text = np.array([pad] * spoken.shape[1] + [*spacer, *role, *spacer])  # (P,)
    quiet = np.repeat(np.array(SILENCE)[:, None], len(text) - spoken.shape[1], axis=1)
    agent = np.concatenate((spoken, quiet), axis=1)  # (Q, P)
    user = np.repeat(np.array(SINE)[:, None], len(text), axis=1)
    return np.concatenate((text[None], agent, user))[:, 1:]


def _check_codes(config: MoshiConfig) -> None:
    if config.dep_q != len(SINE) or config.n_q != 2 * len(SINE) or config.card <= max(SINE + SILENCE):
        raise UptakeError(
            f"prompt: a role and a voice are written in Mimi's codes, {len(SINE)} codebooks of 2048; this policy has "
            f"{config.dep_q} of {config.card}"
        )


def silence(policy: MoshiPolicy, seconds: float) -> np.ndarray:
    """So long a silence of the user, in which the agent says what it likes, (1 + codebooks, frames)."""
    codec = policy.codec
    frames = round(seconds * codec.sample_rate / codec.frame)
    heard = codes_of_silence(codec, frames)
    free = np.full((1 + policy.model.config.dep_q, frames), SAMPLE)
    return np.concatenate((free, heard.T))


def load_voice(path: Path, codec: Codec) -> np.ndarray:
    """Codes (codebooks, frames) of a recording at `LOUDNESS`, its last unfinished frame filled up with silence.

    Raises:
        UptakeError: it cannot be read, is not mono, silent, too long, or a pickle.
    """
    if path.suffix == ".pt":
        raise UptakeError(f"{path}: a pickle, which is not opened; give the recording that it was made from")
    try:
        pcm, rate = soundfile.read(path, dtype="float32")
    except (OSError, soundfile.LibsndfileError) as error:
        raise UptakeError(f"{path}: not a recording that can be read ({error}); give wav, flac or ogg") from error
    if pcm.ndim != 1:
        raise UptakeError(f"{path}: {pcm.shape[1]} channels; a voice has one")
    if not np.isfinite(pcm).all():
        raise UptakeError(f"{path}: NaN or infinite samples; repair the audio")
    if not codec.frame / codec.sample_rate <= len(pcm) / rate <= MAX_VOICE_SECONDS:
        raise UptakeError(f"{path}: {len(pcm) / rate:.2f} s; a voice is a frame to {MAX_VOICE_SECONDS:.0f} s long")
    pcm = soxr.resample(pcm, rate, codec.sample_rate) if rate != codec.sample_rate else pcm
    pcm = _at_loudness(pcm, codec.sample_rate, path)
    whole = np.pad(pcm, (0, -len(pcm) % codec.frame)).reshape(-1, 1, codec.frame).astype(np.float32)
    state = codec.init_state(1)
    return np.array([codec.encode(state, frame)[0] for frame in whole]).T


def _at_loudness(pcm: np.ndarray, rate: int, path: Path) -> np.ndarray:
    import pyloudnorm

    block = min(0.4, len(pcm) / rate)  # the standard's 400 ms, or what there is
    loudness = pyloudnorm.Meter(rate, block_size=block).integrated_loudness(pcm)
    if not np.isfinite(loudness):
        raise UptakeError(f"{path}: silent; a voice is speech")
    return np.clip(pcm * 10 ** ((LOUDNESS - loudness) / 20), -1.0, 1.0)


def _role(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a role in its wrapper. A character without one would become the token that ends a padding.

    The wrapper is what the published code makes of it, whatever that is with this tokenizer: the model has learned so.
    """
    role = _wrapped(text)
    if unknown := "".join(char for char in _unknown(tokenizer, role) if char not in WRAPPER):
        raise UptakeError(
            f"prompt.text: this policy's tokenizer has no piece for {unknown!r}; write the role without them"
        )
    return tokenizer.encode(role)


def _unknown(tokenizer: Tokenizer, text: str) -> str:
    """The characters that it has no piece for, each once."""
    tokens, pieces = tokenizer.encode(text), tokenizer.encode(text, out_type=str)
    unknown = (piece for token, piece in zip(tokens, pieces, strict=True) if token == tokenizer.unk_id())
    return "".join(dict.fromkeys("".join(unknown).replace("\u2581", "")))


def _wrapped(text: str) -> str:
    """As PersonaPlex was trained with it."""
    clean = text.strip()
    if not clean or (clean.startswith(WRAPPER) and clean.endswith(WRAPPER)):
        return clean
    return f"{WRAPPER} {clean} {WRAPPER}"
