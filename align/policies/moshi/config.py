"""The shape of a Moshi-class model, as written in the published ``config.json``.

Key names are those of the released checkpoints (``moshi`` 0.2.13, ``loaders.py``). What our implementation does not
vary (norm, gating, position embedding, …) is checked, not ignored: another value is an error, never a wrong model.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from align.files import read_json
from envs.errors import UptakeError, nearest

#: Keys of ``config.json`` for which one value is implemented. The released dialogue checkpoints all have it.
FIXED: dict[str, Any] = {
    "causal": True,
    "norm": "rms_norm_f32",
    "gating": "silu",
    "positional_embedding": "rope",
    "layer_scale": None,
    "norm_emb": False,
    "bias_proj": False,
    "kv_repeat": 1,
    "cross_attention": False,
    "text_card_out": None,
    "demux_second_stream": False,
    "demux_second_text_stream": False,
    "extra_heads_num_heads": 0,
    "quantize": False,
    "conditioners": None,
    "fuser": None,
    "lora": False,
    "depformer_causal": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_layer_scale": None,
    "depformer_norm": None,
    "depformer_low_rank_embeddings": None,
}

#: Fixed keys that are written out, because the upstream default is a different value.
_WRITTEN = (
    "causal", "norm", "gating", "positional_embedding", "layer_scale",
    "depformer_gating", "depformer_pos_emb", "depformer_layer_scale",
)  # fmt: skip

#: Keys that describe files and runs, not the network: kept as they are and written back.
EXTRA = (
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "lora_rank", "lora_scaling",
    "model_type", "lm_gen_config", "tts_config", "stt_config", "model_id", "extra_heads_dim",
    "depformer_context", "depformer_max_period",
)  # fmt: skip


_LISTS = ("delays", "depformer_weights_per_step_schedule")
_NUMBERS = ("hidden_scale", "max_period")
#: Of any size, and of what there is a module for each; no release comes near, and a network of more never gets ready.
MOST, MOST_LAYERS = 10**6, 1000
_REPEATED = ("num_layers", "depformer_num_layers", "n_q", "dep_q")
_FLAGS = ("depformer_multi_linear", "depformer_weights_per_step")


def gated_width(dim: int, feedforward: int) -> int:
    """Columns of each half of a gated block whose nominal width is `feedforward`.

    Two thirds keep the parameter count of an ungated block; at exactly four times `dim` the layout has 21/8.
    """
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


def nominal_width(dim: int, width: int) -> int:
    """A `feedforward` whose `gated_width` is `width`: what weights alone tell of a `config.json`."""
    candidates = (math.ceil(1.5 * width), math.ceil(1.5 * width) + 1, 4 * dim)
    fitting = [feedforward for feedforward in candidates if gated_width(dim, feedforward) == width]
    if not fitting:
        raise UptakeError(f"a gated block of width {width} at dim {dim} does not occur in the published layout")
    return fitting[0]


def hidden_scale(dim: int, feedforward: int) -> float:
    """The scale for which `int(scale * dim)` is `feedforward`."""
    scale = feedforward / dim
    return scale if int(scale * dim) == feedforward else math.nextafter(scale, math.inf)


def _check(key: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise UptakeError(f"moshi config: {key}={value!r:.200}: must be {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_numbers(key: str, listed: Any) -> tuple[int, ...]:
    good = isinstance(listed, (list, tuple)) and all(map(_is_whole, listed))
    _check(key, listed, good, "a list of whole numbers")
    return tuple(listed)


@dataclass(frozen=True)
class MoshiConfig:
    """Sizes of the temporal transformer, the depth transformer and the streams."""

    dim: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    hidden_scale: float = 4.125
    """Feed-forward width over ``dim``, before the gated block takes two thirds of it."""
    context: int = 3000
    """Frames that attention sees, itself included."""
    max_period: float = 10_000
    n_q: int = 16
    """Audio streams that are read: the agent's, then the user's."""
    dep_q: int = 8
    """Audio streams that are predicted: the agent's."""
    card: int = 2048
    """Audio vocabulary; id ``card`` is the initial token."""
    text_card: int = 32000
    """Text vocabulary; id ``text_card`` is the initial token."""
    existing_text_padding_id: int = 3
    existing_text_end_padding_id: int = 0
    delays: tuple[int, ...] = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    """Frames by which each of the ``1 + n_q`` streams is delayed in the model's input."""
    depformer_dim: int = 1024
    depformer_num_layers: int = 6
    depformer_num_heads: int = 16
    depformer_dim_feedforward: int | None = None
    """Default: ``hidden_scale * depformer_dim``."""
    depformer_multi_linear: bool = True
    """One projection of the temporal state per codebook, instead of one for all."""
    depformer_weights_per_step: bool = True
    """Own depth weights for every codebook, instead of shared ones."""
    depformer_weights_per_step_schedule: tuple[int, ...] | None = None
    """Codebook -> index of the weights that it uses."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """Known keys that do not shape the network (file names, …)."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, key = getattr(self, setting.name), setting.name
            if key == "extra" or (value is None and setting.default is None):
                continue
            if key in _LISTS:
                object.__setattr__(self, key, _whole_numbers(key, value))
            elif key in _FLAGS:
                _check(key, value, isinstance(value, bool), "true or false")
            elif key in _NUMBERS:
                _check(key, value, _is_number(value) and 0 < value < 1e18, "a number above 0, and no giant")
            else:
                least = 0 if key.endswith("_id") else 1
                most = MOST_LAYERS if key in _REPEATED else MOST
                good = _is_whole(value) and least <= value <= most
                _check(key, value, good, f"a whole number of {least} or more, at most {most}")
        self._check_streams()
        self._check_sizes()

    def _check_streams(self) -> None:
        """Refuse streams that do not fit together."""
        schedule = self.depformer_weights_per_step_schedule
        if schedule is not None:
            if len(schedule) != self.dep_q:
                raise UptakeError(
                    f"moshi config: depformer_weights_per_step_schedule has {len(schedule)} entries, "
                    f"dep_q={self.dep_q} needs as many"
                )
            good = min(schedule) >= 0 and max(schedule) < self.dep_q
            _check("depformer_weights_per_step_schedule", list(schedule), good, f"indices below dep_q={self.dep_q}")
        if len(self.delays) != self.n_q + 1:
            raise UptakeError(
                f"moshi config: delays has {len(self.delays)} entries, n_q={self.n_q} needs {self.n_q + 1}"
            )
        if self.delays[0] != 0:
            raise UptakeError(f"moshi config: delays[0]={self.delays[0]}; the text stream must have delay 0")
        if min(self.delays) < 0 or self.max_delay > 1:
            raise UptakeError(f"moshi config: delays {list(self.delays)}; only 0 and 1 are implemented")
        if self.dep_q > self.n_q:
            raise UptakeError(f"moshi config: dep_q={self.dep_q} must be in 1..n_q={self.n_q}")
        for key in ("existing_text_padding_id", "existing_text_end_padding_id"):
            _check(key, getattr(self, key), getattr(self, key) < self.text_card, f"below text_card={self.text_card}")

    def _check_sizes(self) -> None:
        """Refuse widths that cannot be built."""
        for dim, heads in (("dim", "num_heads"), ("depformer_dim", "depformer_num_heads")):
            if getattr(self, dim) % (2 * getattr(self, heads)):
                raise UptakeError(
                    f"moshi config: {dim}={getattr(self, dim)} is no multiple of 2·{heads}={getattr(self, heads)}"
                )
        for key, width, feedforward in (
            ("hidden_scale", self.dim, self.feedforward),
            ("depformer_dim_feedforward", self.depformer_dim, self.depth_feedforward),
        ):
            if gated_width(width, feedforward) < 1:
                raise UptakeError(
                    f"moshi config: {key}={getattr(self, key)!r} (hidden_scale={self.hidden_scale}) leaves a gated "
                    "block no width; set it higher"
                )
            if feedforward > 10 * MOST:
                raise UptakeError(f"moshi config: {key}={getattr(self, key)!r}: must be no giant; set it lower")

    @property
    def num_streams(self) -> int:
        """Text and all audio streams: the ``K`` of ``codes (B, K, T)``."""
        return self.n_q + 1

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def feedforward(self) -> int:
        """Nominal width of the temporal transformer's gated blocks."""
        return int(self.hidden_scale * self.dim)

    @property
    def depth_feedforward(self) -> int:
        """Nominal width of the depth transformer's gated blocks."""
        return self.depformer_dim_feedforward or int(self.hidden_scale * self.depformer_dim)

    @property
    def depth_weights(self) -> tuple[int, ...]:
        """Index of the depth transformer's weights for each codebook."""
        if not self.depformer_weights_per_step:
            return (0,) * self.dep_q
        return self.depformer_weights_per_step_schedule or tuple(range(self.dep_q))

    @property
    def depth_inputs(self) -> tuple[int, ...]:
        """Index of the projection into the depth transformer for each codebook."""
        if not self.depformer_multi_linear:
            return (0,) * self.dep_q
        return self.depformer_weights_per_step_schedule or tuple(range(self.dep_q))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "MoshiConfig":
        """Read the keys of a ``config.json``; raises :class:`UptakeError` on an unknown key or an unsupported value."""
        known = [f.name for f in fields(MoshiConfig) if f.name != "extra"]
        kwargs: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                kwargs[key] = value
            elif key in EXTRA:
                extra[key] = value
            elif key in FIXED:
                nothing = value == {} and FIXED[key] is None  # as `moshi` reads its conditioners and fuser
                if value != FIXED[key] and not nothing:
                    raise UptakeError(f"moshi config: {key}={value!r} is not implemented, only {FIXED[key]!r}")
            else:
                raise UptakeError(f"moshi config: unknown key {key!r}{nearest(key, [*known, *EXTRA, *FIXED])}")
        return MoshiConfig(**kwargs, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The keys of a ``config.json`` that :meth:`from_dict` and the ``moshi`` package read back."""
        values = asdict(self)
        extra = values.pop("extra")
        values["delays"] = list(self.delays)
        if self.depformer_weights_per_step_schedule is None:
            del values["depformer_weights_per_step_schedule"]
        else:
            values["depformer_weights_per_step_schedule"] = list(self.depformer_weights_per_step_schedule)
        return values | {key: FIXED[key] for key in _WRITTEN} | extra

    @staticmethod
    def load(path: str | Path) -> "MoshiConfig":
        """Read a ``config.json``; raises :class:`UptakeError` if it is missing or no JSON object."""
        try:
            return MoshiConfig.from_dict(read_json(Path(path)))
        except UptakeError as error:
            raise UptakeError(f"{path}: {error}") from error
