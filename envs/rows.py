"""State that is kept a row of a batch, in arrays whose first axis is the row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np


class Rows(ABC):
    """Rows that know nothing of each other; `FIELDS` names the arrays, which are all that the future depends on."""

    FIELDS: ClassVar[tuple[str, ...]]

    @abstractmethod
    def _fresh(self) -> Self:
        """One row that has heard nothing."""

    def reset(self, rows: np.ndarray) -> None:
        """Forget everything about these rows (indices or mask)."""
        fresh = self._fresh()
        for name in self.FIELDS:
            getattr(self, name)[rows] = getattr(fresh, name)[0]

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Copy the state of row `source` to `rows`."""
        for name in self.FIELDS:
            getattr(self, name)[rows] = getattr(self, name)[source]

    def get_state(self) -> dict[str, np.ndarray]:
        """A copy of everything that `set_state` needs."""
        return {name: getattr(self, name).copy() for name in self.FIELDS}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `get_state` returned."""
        for name in self.FIELDS:
            setattr(self, name, state[name].copy())
