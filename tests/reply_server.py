"""A stand-in for a language model that answers the user of a cascade by a rule. No model.

    python -m tests.reply_server --port 8767 --latency 0.2

Speaks the protocol of an OpenAI-compatible endpoint. Offered sentences, it chooses the one that shares most words with
what the user said last, rare ones first; else it says that back.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tests.judge_server import serve

DULL = {"the", "and", "you", "your", "for", "are", "can", "what", "with", "that", "this", "will", "tell", "about"}


def reply(body: dict[str, Any]) -> str:
    """The answer to a request's body."""
    rules, said = body["messages"][0]["content"], body["messages"][-1]["content"]

    def words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]{3,}", text.lower())) - DULL

    offered = re.findall(r"^- (.*)$", rules, re.M)
    if offered:
        common = Counter(word for sentence in offered for word in words(sentence))
        return max(offered, key=lambda sentence: sum(1 / common[word] for word in words(sentence) & words(said)))
    return f"You said: {said.strip('.?! ')}. I will see what I can find."


if __name__ == "__main__":
    serve(__doc__, reply, 8767)
