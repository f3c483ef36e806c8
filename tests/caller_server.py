"""A stand-in for a language model that plays the user: asks, listens, nods, asks again, says goodbye. No model.

    python -m tests.caller_server --port 8766 --latency 0.2

Speaks the protocol of an OpenAI-compatible endpoint, so that `llm` scenarios can be tried and timed without one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.judge_server import serve


def act(body: dict[str, Any]) -> str:
    """What this caller does next, as the JSON that `envs.users.llm_prompt` asks for."""
    told, rules = body["messages"][1]["content"], body["messages"][0]["content"]
    turns = re.findall(r"^  (t\d+): (.*)$", rules, re.M)
    said = len(re.findall(r" you: ", told))
    questions = [name for name, text in turns if text.endswith("?")] or [name for name, _ in turns]
    if "just begun" in told:
        return json.dumps({"act": "speak", "words": questions[0], "when": {"after": 0.3}})
    if "is speaking" in told and said == 1 and "  b1: " in rules:
        return json.dumps({"act": "backchannel", "words": "b1"})
    if "seems to be your turn" in told and said < 4:
        return json.dumps({"act": "speak", "words": questions[said % len(questions)]})
    if "seems to be your turn" in told or said >= 4:
        return json.dumps({"act": "hang_up"})
    return json.dumps({"act": "wait"})


if __name__ == "__main__":
    serve(__doc__, act, 8766)
