"""Speech codecs behind one protocol (`align.codecs.base.Codec`)."""

from __future__ import annotations

from pathlib import Path

from align.codecs.base import Codec
from envs.errors import UptakeError

POCKET, MIMI = "codec.safetensors", "mimi"


def load_codec(folder: str | Path, codebooks: int = 8) -> Codec:
    """The codec of a checkpoint folder: `codec.safetensors` is the pocket codec, `mimi/` is Mimi."""
    folder = Path(folder)
    if (folder / POCKET).is_file():
        from align.codecs.pocket import PocketCodec

        return PocketCodec.load(folder / POCKET)
    if (folder / MIMI).is_dir():
        from align.codecs.mimi import MimiCodec  # imports transformers: seconds

        return MimiCodec.load(folder / MIMI, codebooks)
    raise UptakeError(f"{folder}: no codec; it needs {POCKET}, or {MIMI}/ with the files of kyutai/mimi (transformers)")


def save_codec(folder: str | Path, codec: Codec) -> None:
    """Write a codec into a checkpoint folder, where `load_codec` finds it."""
    folder = Path(folder)
    if hasattr(codec, "save"):
        codec.save(folder / POCKET)
        return
    from align.codecs.mimi import MimiCodec

    if not isinstance(codec, MimiCodec):
        raise UptakeError(f"a {type(codec).__name__} cannot be saved: it has no save(path)")
    codec.model.save_pretrained(folder / MIMI)
