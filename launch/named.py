"""What a launcher starts: `uptake train`, or `uptake sft` for `sft/NAME` and for a file that has its sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align import config as train_config
from align import settings
from align.config import TrainConfig
from align.trainers import sft_config
from align.trainers.grpo_config import GrpoConfig
from align.trainers.ppo_config import PpoConfig
from align.trainers.sft_config import SftConfig, WarmStartConfig

WARM = "sft"
"""The command, and the folder of its configurations."""
ONLY_WARM = frozenset((WARM, "data"))
"""Sections that only its files have."""


@dataclass(frozen=True)
class Named:
    """A run, as the command line names it."""

    command: tuple[str, str]
    """Of `uptake`, and the configuration as this command takes it."""
    config: TrainConfig | WarmStartConfig
    done: Path
    """What is there when the run is finished."""

    @property
    def section(self) -> GrpoConfig | PpoConfig | SftConfig:
        """How it is trained."""
        return self.config.sft if isinstance(self.config, WarmStartConfig) else self.config.algorithm


def find(name_or_path: str, overrides: Sequence[str]) -> Named:
    """Read a configuration of either command; raises UptakeError for what is wrong with it."""
    given = name_or_path
    if Path(given).is_file():
        warms = bool(ONLY_WARM & settings.sections(given))
    else:
        given = name_or_path.removeprefix(f"{WARM}/")
        warms = given != name_or_path
    if warms:
        warm = sft_config.load_config(given, overrides)
        return Named((WARM, given), warm, warm.folder / "policy" / "config.json")  # written last
    config = train_config.load_config(name_or_path, overrides)
    return Named(("train", name_or_path), config, config.folder / "report.html")
