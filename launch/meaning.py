"""The sentence encoder of a run or an audit: opened where a term compares meanings."""

from __future__ import annotations

from collections.abc import Iterable

from rewards.meaning import Meaning
from rewards.registry import get


def open_meaning(folder: str, terms: Iterable[str]) -> Meaning | None:
    """What the terms compare texts with; None, and the folder is not looked at, where none of them does or none is
    given (a composition that needs it then says so).

    Raises:
        UptakeError: an unknown term, a folder that is no sentence encoder, an encoder that tells nothing apart.
    """
    if not folder or not any(get(term).meaning for term in terms):
        return None
    from align.embedding import SentenceEncoder  # transformers takes seconds to import

    return Meaning(SentenceEncoder(folder))
