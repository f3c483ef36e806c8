"""Saying the right thing: a local measure on words, no judge model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.event import BARGE_IN_TYPES, Event
from rewards.modulation import modulation
from rewards.registry import reward
from rewards.text import best_similarity, contains_any, copies, duplicates
from rewards.verdict import Verdict
from rewards.view import TEXT_LEAD_SECONDS, EpisodeView

REFERENCES = "references"
"""Key of `Episode.meta`: {event id: [reference answer, ...]}."""
TOPICS = "topics"
"""Key of `Episode.meta`: what the pack's questions expect, [[word, ...], ...]; the same in all its conversations."""
WORDS_A_SECOND = 6.0
"""Nobody speaks faster; what a text stream has beyond that is not in the sound. Voices of the packs and pocket: 5."""


@dataclass(frozen=True)
class Answer:
    """How good a text is as an answer."""

    hit: float | None
    """1 when it holds any of the expected words, 0 when not, None when none is expected."""
    chance: float
    """Share of the other topics of which it holds a word, in [0, 1]: what it would have hit without listening."""
    similarity: float | None
    """To the nearest reference, in [0, 1]; None without references."""
    repetition: float
    """Share of its 3-grams that occurred before, in [0, 1]."""
    echo: float
    """Share of its 4-grams that the user has just said, in [0, 1]."""
    words: int

    @property
    def value(self) -> float | None:
        """2 · mean(hit - chance, similarity) - 1 - repetition - echo, not below -1; -1 for no words; None without a
        measure."""
        hit = None if self.hit is None else self.hit - self.chance
        parts = [part for part in (hit, self.similarity) if part is not None]
        if not parts:
            return None
        if not self.words:
            return -1.0
        return max(-1.0, 2.0 * sum(parts) / len(parts) - 1.0 - self.repetition - self.echo)


def hit_by_chance(words: Sequence[str], content: Sequence[str], topics: Mapping[tuple[str, ...], float]) -> float:
    """How often words hit what another topic expects than `content`: the mean over topics, {expected words: weight}.

    0 when there is no other topic.
    """
    others = [(topic, weight) for topic, weight in topics.items() if topic != tuple(content)]
    total = sum(weight for _, weight in others)
    return sum(weight * contains_any(words, topic) for topic, weight in others) / total if total else 0.0


def grade(
    words: Sequence[str],
    content: Sequence[str] = (),
    references: Sequence[str] = (),
    heard: Sequence[str] = (),
    nearest: Callable[[str, Sequence[str]], float] = best_similarity,
    topics: Sequence[Sequence[str]] = (),
) -> Answer:
    """Grade words as an answer: expected content (any of), reference answers (the nearest), repetition, echo.

    `heard` are the user's words. A question nearly always holds the word that its answer is expected to hold, so
    without `echo` saying the question back would be an answer. `nearest` says how near a text is to the nearest of the
    references, in [0, 1]. `topics` is what questions may expect: an answer that names them all answers none.
    """
    repeated, total = duplicates(words)
    copied, runs = copies(words, heard)
    return Answer(
        hit=float(contains_any(words, content)) if content else None,
        chance=hit_by_chance(words, content, {tuple(topic): 1.0 for topic in topics}) if content else 0.0,
        similarity=nearest(" ".join(words), references) if references else None,
        repetition=repeated / total if total else 0.0,
        echo=copied / runs if runs else 0.0,
        words=len(words),
    )


def answer_words(view: EpisodeView, event: Event) -> list[str]:
    """The words that the agent speaks audibly after the event's end and before the user's next turn.

    A word of the text stream counts only in a stretch of agent speech: text without sound is no answer. Nor is text
    over a sound that does not move as speech does (`rewards.modulation`), or text that is too fast to be spoken: what
    is more than 6 words a second of an utterance does not count.
    """
    start = event.offset - view.samples(TEXT_LEAD_SECONDS)
    limit = view.next_user_turn(event.offset)
    words: list[str] = []
    sound = []
    for said in view.utterances:
        most = int(WORDS_A_SECOND * (said.seconds + TEXT_LEAD_SECONDS))
        spoken = [word.text for word in (said.words or ())[:most] if start <= word.onset < limit]
        if spoken:
            words += spoken
            sound.append(view.agent[max(said.onset, start) : min(said.offset, limit)])
    if not words or modulation(np.concatenate(sound), view.clock.sample_rate).missing:
        return []
    return words


def reference_answers(view: EpisodeView, event: Event) -> Sequence[str]:
    """What the episode holds as good answers to an event; empty where it holds none."""
    references = view.meta.get(REFERENCES, {}).get(event.id, ())
    return [references] if isinstance(references, str) else references


def answer(view: EpisodeView, event: Event) -> Answer:
    """The agent's answer to an event, graded against its `responds` expectation and the episode's references."""
    expect = event.expected("responds")
    content = () if expect is None else expect.content
    references = reference_answers(view, event)
    heard = [word.text for word in event.words]
    return grade(answer_words(view, event), content, references, heard, topics=view.meta.get(TOPICS, ()))


@reward(
    "quality",
    axis="quality",
    events=["A1", "A2", "A3", "A4", "A7", "A8", *sorted(BARGE_IN_TYPES - {"C3"})],
    horizon_s=6.0,
)
def quality(view: EpisodeView, event: Event) -> Verdict:
    """Say what was asked for, without saying it twice and without saying the question back.

    Source: ours, the local stand-in for the language-model judge of arXiv 2606.11167, without which training there
    loses most (their Table 3).

    Window: words that begin between 0.4 s before the event's offset (text leads sound) and 6 s after it or the user's
    next turn, spoken in audible speech that moves as speech does (`rewards.modulation`), and at most 6 words of it a
    second. None when neither words are expected nor `meta["references"][event id]` is
    given, when the agent has no text stream (inject one: `EpisodeView(..., transcript=asr_words)`), or when the
    episode ends within 2 s of the offset.

    Value: 2 · mean(content hit - chance, similarity) - 1 - repetition - echo, not below -1; -1 for no words. Content:
    any of the expected words, as whole words, "7" = "seven". Chance: the share of the pack's other topics
    (`meta["topics"]`) of which a word is said as well. Similarity: `rewards.text.similarity` to the nearest reference.
    Repetition: share of 3-grams that occurred before. Echo: share of 4-grams that the user has just said.

    Degenerate policies: silent -1 (once `meta["text_stream"]` says that it has a text stream), always talking and
    metronome -1 unless their words hit by chance, then at most the hit minus their repetition; an agent that says the
    user's words back about -0.7; one that names every topic about -0.9; one that hums -1, whatever its text.

    Raw: `hit`, `chance`, `similarity` (each absent when it does not apply), `repetition`, `echo`, `words`.
    """
    graded = answer(view, event)
    raw = {"repetition": graded.repetition, "echo": graded.echo, "words": float(graded.words)}
    if graded.hit is not None:
        raw |= {"hit": graded.hit, "chance": graded.chance}
    if graded.similarity is not None:
        raw["similarity"] = graded.similarity
    window = view.credit(event.offset, event.offset + view.samples(2.0))
    if not view.has_text or view.end < event.offset + view.samples(2.0):
        return Verdict(None, window, raw)
    return Verdict(graded.value, window, raw)
