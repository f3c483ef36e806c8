"""`get_state` and `set_state` of a policy: what its rows have lived, copied out, weights left where they are."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch


class Keeping:
    """Lets a policy be set back to where it stood, in this object or in another one with the same weights.

    A class says what changes as its rows live (`_LIVES`), and what that refers to and never changes (`_SHARES`).
    """

    _LIVES: ClassVar[tuple[str, ...]]
    _SHARES: ClassVar[tuple[str, ...]] = ("model",)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs: all slots, with what they heard and did."""
        shared = {name: getattr(self, name) for name in self._SHARES}
        lived = {name: getattr(self, name) for name in self._LIVES}
        return {"lived": _copy(lived, shared, shared), "shared": shared}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned; as many slots are open as there were then."""
        own = {name: getattr(self, name) for name in self._SHARES}
        for name, value in _copy(state["lived"], state["shared"], own).items():
            setattr(self, name, value)


def _copy(lived: dict[str, Any], shared: dict[str, Any], into: dict[str, Any]) -> dict[str, Any]:
    """A deep copy that refers to `into[name]` where the original refers to `shared[name]`."""
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be changed outside of it
        copied: dict[str, Any] = copy.deepcopy(lived, {id(thing): into[name] for name, thing in shared.items()})
    return copied
