"""The published JSON Schema of scenarios, and of the parts of it that also stand alone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def json_schema() -> dict[str, Any]:
    """The published JSON Schema of ``duplex.scenario/1``."""
    return json.loads((Path(__file__).parent / "scenario.schema.json").read_text())
