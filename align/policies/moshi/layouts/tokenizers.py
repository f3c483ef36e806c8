"""The text tokenizer between sentencepiece, which Moshi's own code reads, and transformers' tokenizer.json.

`kmhf/hf-moshika` is published with tokenizer.json only. It has all that sentencepiece needs, so that the folder can be
used as it is.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor as Tokenizer

from align.files import read_json, write_whole
from align.policies.moshi.layouts import kyutai
from envs.errors import UptakeError

JSON = "tokenizer.json"

_UNIGRAM, _BPE = 1, 2  # sentencepiece's ModelType
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # and its piece types


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and what belongs to it for transformers, and the sentencepiece model itself."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    write_whole(folder / kyutai.TOKENIZER, lambda path: path.write_bytes(tokenizer.serialized_model_proto()))
    proto = _protocol().ModelProto.FromString(tokenizer.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    trainer = proto.trainer_spec
    fallback, unknown = trainer.byte_fallback, tokenizer.unk_id()
    model: Any
    if trainer.model_type == _UNIGRAM:
        model = models.Unigram(pieces, unk_id=unknown, byte_fallback=fallback)
    elif trainer.model_type == _BPE:
        vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
        model = models.BPE(
            vocabulary, _merges(pieces), unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=fallback
        )
    else:
        raise UptakeError(
            f"export to hf: a sentencepiece model of type {trainer.model_type}; only unigram and BPE exist"
        )
    fast = Fast(model)
    control = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    fast.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    space, charsmap = "\u2581", proto.normalizer_spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", space)])
    fast.pre_tokenizer = pre_tokenizers.Metaspace(space, prepend_scheme="first", split=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    roles = {"unk_token": unknown, "bos_token": tokenizer.bos_id(), "eos_token": tokenizer.eos_id()}
    roles["pad_token"] = tokenizer.pad_id()
    special = {role: tokenizer.id_to_piece(token) for role, token in roles.items() if token >= 0}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, clean_up_tokenization_spaces=False, **special)
    wrapped.save_pretrained(folder)


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Pairs in the order in which a BPE of sentencepiece merges them: by the score of what they make."""
    known = {piece for piece, _ in pieces}
    made = [
        (score, piece[:cut], piece[cut:])
        for piece, score in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    return [(left, right) for _, left, right in sorted(made, key=lambda merge: -merge[0])]


def _protocol() -> Any:
    """sentencepiece's protocol buffers; their classes are made when they are imported."""
    import sentencepiece.sentencepiece_model_pb2 as generated

    return generated


def load_tokenizer(folder: Path, pieces: int) -> Tokenizer:
    """The sentencepiece model of a transformers folder: its file if it has one, else rebuilt from tokenizer.json.

    Raises UptakeError if there is neither, or if it does not have as many `pieces` as the model has text tokens.
    """
    for name in (kyutai.TOKENIZER, kyutai.RELEASED_TOKENIZER, "tokenizer.model"):
        if (folder / name).is_file():
            return kyutai.open_tokenizer(folder / name, pieces)
    path = folder / JSON
    if not path.is_file():
        raise UptakeError(f"{folder}: no tokenizer; put {kyutai.RELEASED_TOKENIZER} or {JSON} of the checkpoint there")
    try:
        tokenizer = Tokenizer(model_proto=_sentencepiece(read_json(path)))
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        raise UptakeError(
            f"{path}: not a tokenizer made from sentencepiece ({type(error).__name__}: {error}); put "
            f"{kyutai.RELEASED_TOKENIZER} of the original checkpoint there"
        ) from error
    return kyutai.fitting(tokenizer, path, pieces)


def _sentencepiece(values: dict[str, Any]) -> bytes:
    """A serialised sentencepiece model with the pieces, scores and types of a tokenizer.json."""
    model = values["model"]
    kind = {"Unigram": _UNIGRAM, "BPE": _BPE}[model["type"]]
    if kind == _UNIGRAM:
        pieces = [(piece, float(score)) for piece, score in model["vocab"]]
        unknown = pieces[model["unk_id"]][0]
    else:
        merged = {"".join(merge.split(" ") if isinstance(merge, str) else merge): -float(rank)
                  for rank, merge in reversed(list(enumerate(model["merges"])))}  # fmt: skip
        by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
        last = -float(len(merged))  # pieces that no merge makes: single characters
        pieces = [(piece, merged.get(piece, last)) for piece, _ in by_id]
        unknown = model["unk_token"]
    special = {token["id"]: token["content"] for token in values.get("added_tokens", ()) if token["special"]}
    proto = _protocol().ModelProto()
    for index, (piece, score) in enumerate(pieces):
        entry = proto.pieces.add(piece=piece, score=score, type=_NORMAL)
        if piece == unknown:
            entry.type, entry.score = _UNKNOWN, 0.0
        elif index in special:
            entry.type, entry.score = _CONTROL, 0.0
        elif model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            entry.type, entry.score = _BYTE, 0.0
    trainer = proto.trainer_spec
    trainer.model_type, trainer.vocab_size = kind, len(pieces)
    trainer.byte_fallback, trainer.unk_piece = bool(model.get("byte_fallback")), unknown
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    trainer.unk_id = ids[unknown]
    for name, piece in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>")):
        setattr(trainer, f"{name}_id", ids.get(piece, -1))
    # As transformers' converter for Moshi: a leading space, no trimming.
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.precompiled_charsmap = _charsmap(values.get("normalizer"))
    return proto.SerializeToString()


def _charsmap(normalizer: dict[str, Any] | None) -> bytes:
    if normalizer is None:
        return b""
    for part in [normalizer, *normalizer.get("normalizers", ())]:
        if part["type"] == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return b""
