"""Speech codecs behind one protocol (`envs.codec.Codec`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.codec import Codec
from envs.errors import UptakeError

POCKET, MIMI = "codec.safetensors", "mimi"
RELEASED_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"


def load_codec(folder: str | Path, codebooks: int = 8, values: Mapping[str, Any] | None = None) -> Codec:
    """The codec of a checkpoint folder, of which `values` is the config.json.

    `codec.safetensors` is the pocket codec; `mimi_name`, or the released file name, is Mimi as `moshi` stores it;
    `mimi/` is Mimi as transformers does.
    """
    folder, values = Path(folder), values or {}
    name = values.get("mimi_name")
    file = folder / str(name or RELEASED_MIMI).removeprefix("file://")
    if name in (None, POCKET) and (folder / POCKET).is_file():
        from align.codecs.pocket import PocketCodec

        return PocketCodec.load(folder / POCKET)
    if name != POCKET and file.is_file():
        from align.codecs.mimi_kyutai import load_mimi  # imports transformers: seconds

        shape = values.get("mimi_config_name")
        return load_mimi(file, folder / shape.removeprefix("file://") if shape else None, codebooks)
    if (folder / MIMI).is_dir():
        from align.codecs.mimi import MimiCodec

        return MimiCodec.load(folder / MIMI, codebooks)
    wanted = f"the file {name} that its config.json names" if name else f"{POCKET} or {RELEASED_MIMI}"
    raise UptakeError(f"{folder}: no codec; it needs {wanted}, or {MIMI}/ with the files of kyutai/mimi (transformers)")


def save_codec(folder: str | Path, codec: Codec) -> dict[str, str]:
    """Write a codec into a checkpoint folder; returns what config.json must say, so that `load_codec` finds it."""
    folder = Path(folder)
    if hasattr(codec, "save"):
        codec.save(folder / POCKET)
        return {"mimi_name": POCKET}
    from align.codecs.mimi import MimiCodec

    if not isinstance(codec, MimiCodec):
        raise UptakeError(f"a {type(codec).__name__} cannot be saved: it has no save(path)")
    from align.codecs.mimi_kyutai import save_mimi

    return save_mimi(folder, codec)
