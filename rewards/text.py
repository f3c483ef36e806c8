"""Words: how they are normalised, matched and compared. Pure functions on strings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from envs.event import Word

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def normalise(text: str) -> list[str]:
    """Lower-case words without punctuation; whole numbers below 100 are spelled, as a recogniser may write digits."""
    words: list[str] = []
    for word in re.findall(r"[a-z]+(?:'[a-z]+)?|\d+", text.lower().replace("’", "'")):
        words += _spell(int(word)) if word.isdigit() and int(word) < 100 else [word]
    return words


def _spell(number: int) -> list[str]:
    if number < 20:
        return [_ONES[number]]
    tens, ones = divmod(number, 10)
    return [_TENS[tens]] + ([_ONES[ones]] if ones else [])


def contains_any(words: Sequence[str], content: Sequence[str]) -> bool:
    """Whether any of the content words (or phrases) occurs as whole words."""
    said = normalise(" ".join(words))
    for item in content:
        phrase = normalise(item)
        if phrase and any(said[i : i + len(phrase)] == phrase for i in range(len(said) - len(phrase) + 1)):
            return True
    return False


def _overlap_f1(a: Sequence[object], b: Sequence[object]) -> float:
    if not a or not b:
        return 0.0
    shared = sum((Counter(a) & Counter(b)).values())
    return 2.0 * shared / (len(a) + len(b))


def similarity(text: str, reference: str) -> float:
    """Mean in [0, 1] of word F1 and of character 2-, 3- and 4-gram F1; 1 for equal words, 0 when either is empty.

    A chrF-like measure (Popović 2015) with equal weight on precision and recall. Character n-grams forgive inflection
    and a wrongly spelled word; single characters are left out because any two English texts share them.
    """
    said, wanted = normalise(text), normalise(reference)
    if not said or not wanted:
        return 0.0
    a, b = " ".join(said), " ".join(wanted)
    scores = [_overlap_f1(said, wanted)]
    for n in (2, 3, 4):
        grams_a = [a[i : i + n] for i in range(len(a) - n + 1)]
        grams_b = [b[i : i + n] for i in range(len(b) - n + 1)]
        if grams_a or grams_b:  # both too short for this n say nothing about it
            scores.append(_overlap_f1(grams_a, grams_b))
    return sum(scores) / len(scores)


def best_similarity(text: str, references: Sequence[str]) -> float:
    """The similarity to the nearest reference."""
    return max((similarity(text, reference) for reference in references), default=0.0)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    said = normalise(" ".join(words))
    return [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]


def duplicates(words: Sequence[str], n: int = 3) -> tuple[int, int]:
    """How many of the n-grams occurred before, and how many there are."""
    grams = _ngrams(words, n)
    return len(grams) - len(set(grams)), len(grams)


def copies(words: Sequence[str], heard: Sequence[str], n: int = 4) -> tuple[int, int]:
    """How many of the n-grams occur in what was heard, and how many there are.

    Four words in a row: an honest answer takes up three ("we open at noon", asked "do you open at noon?").
    """
    grams, known = _ngrams(words, n), set(_ngrams(heard, n))
    return sum(gram in known for gram in grams), len(grams)


def babbles(words: Sequence[Word] | None) -> bool:
    """Whether words say nothing: three or more of them, not half of which are different. False without a text stream.

    The least that a term of timing asks of what was said in time; what it means is for `quality` and its like.
    """
    said = normalise(" ".join(word.text for word in words or ()))
    return len(said) >= 3 and 2 * len(set(said)) < len(said)
