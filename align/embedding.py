"""A sentence encoder from a folder on this machine: mean pooling over a transformer's last layer.

    uptake train quickstart rewards.similarity=1.0 embedding=models/all-MiniLM-L6-v2

What a folder must hold: `config.json`, the weights as safetensors, and a tokenizer, as transformers writes them and as
sentence-transformers does. Nothing is downloaded, no code of the folder runs and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from align.quiet import quiet
from envs.errors import UptakeError

MAX_TOKENS = 128
"""What is longer is cut: an answer that a term on words judges lasts six seconds, some twenty words."""
MODULES = {"Transformer", "Pooling", "Normalize"}
"""Parts of a sentence-transformers model that mean pooling and cosine amount to."""


class SentenceEncoder:
    """Texts to directions (`rewards.meaning.Encoder`), on the CPU, so that a run's figures do not depend on a GPU.

    Mean over the last layer's vectors of a text's tokens, its special tokens included, then length 1: the mean pooling
    of Reimers and Gurevych 2019 (arXiv 1908.10084).

    Raises:
        UptakeError: no such folder (the name of a hub is none), no safetensors in it, weights that do not fit its
            `config.json`, a tokenizer that is missing or cannot pad, a model that pools otherwise or is no encoder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        try:
            with quiet():
                model, info = AutoModel.from_pretrained(
                    str(self.folder), local_files_only=True, use_safetensors=True, trust_remote_code=False,
                    dtype=torch.float32, output_loading_info=True,
                )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False)
        # What is in the folder may be anything, and the library raises whatever comes up.
        except Exception as error:
            said = str(error).strip().splitlines()
            raise UptakeError(
                f"embedding = {self.folder}: does not load: {type(error).__name__}: {said[0] if said else ''}"
            ) from error
        missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]  # its pooler is not used
        if missing or info["mismatched_keys"]:
            name = missing[0] if missing else info["mismatched_keys"][0][0]
            raise UptakeError(
                f"embedding = {self.folder}: its weights lack {name} in the shape that config.json says; give a "
                "complete encoder"
            )
        if model.config.is_encoder_decoder:
            raise UptakeError(f"embedding = {self.folder}: {model.config.model_type} is no encoder; give one like BERT")
        if tokenizer.pad_token_id is None:
            raise UptakeError(f"embedding = {self.folder}: its tokenizer has no padding token; give a sentence encoder")
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        longest = getattr(model.config, "max_position_embeddings", MAX_TOKENS + 2) - 2  # RoBERTa keeps two back
        self._longest = min(tokenizer.model_max_length, longest, MAX_TOKENS)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, every row of length 1."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        states = self._model(**batch).last_hidden_state  # (N, T, D)
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)  # (N, T, 1)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()


def check_folder(folder: Path) -> None:
    """Raise `UptakeError` for what can be seen to be no mean-pooled encoder in safetensors before anything is read."""
    if not folder.is_dir():
        raise UptakeError(
            f"embedding = {folder}: no such folder; nothing is downloaded, so fetch the model first and give its folder"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise UptakeError(f"embedding = {folder}: has no {name}; give the folder of a transformers model")
    if not any(folder.glob("*.safetensors")):
        raise UptakeError(
            f"embedding = {folder}: has no *.safetensors, and other weights are not read because they are pickled; "
            "convert them with save_pretrained"
        )
    pooling = _read(folder / "1_Pooling" / "config.json")
    if isinstance(pooling, dict) and not pooling.get("pooling_mode_mean_tokens", True):
        raise UptakeError(f"embedding = {folder}: 1_Pooling/config.json asks for other than mean pooling")
    parts = {str(part.get("type", "")).rpartition(".")[2] for part in _read(folder / "modules.json") or ()}
    if parts - MODULES:
        raise UptakeError(
            f"embedding = {folder}: modules.json has a part {min(parts - MODULES)!r}; only transformer, mean pooling "
            "and normalisation are supported"
        )


def _read(path: Path) -> list[dict] | dict | None:
    """JSON, or None where there is no such file; raises `UptakeError` for what is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UptakeError(f"embedding: {path}: not JSON ({error})") from error
