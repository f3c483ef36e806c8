"""Meaning the right thing: a local measure on what is said, by sentence embeddings, no judge model."""

from __future__ import annotations

from envs.event import Event
from rewards.quality import answer_words, grade, quality, reference_answers
from rewards.registry import reward
from rewards.verdict import Verdict
from rewards.view import EpisodeView


@reward("similarity", axis="quality", events=quality.events, horizon_s=quality.horizon_s, meaning=True)
def similarity(view: EpisodeView, event: Event) -> Verdict:
    """Mean what one of the reference answers means, without saying it twice and without saying the question back.

    Source: ours; `quality` with the similarity of words replaced by that of sentence embeddings (mean pooling and
    cosine, Reimers and Gurevych 2019), so that another wording of the right answer is not a wrong one. It needs a
    sentence encoder: the folder `embedding` of the configuration, or `--embedding` of the audit.

    Window and words: as for `quality`. None where it gives no `similarity`: when there is no
    `meta["references"][event id]`, when the agent has no text stream, or when the episode ends within 2 s.

    Value: 2 · similarity - 1 - repetition - echo, not below -1; -1 for no words. Similarity: that of the nearest
    reference, (cosine - floor) / (1 - floor), not below 0, where the floor is the encoder's mean cosine of unrelated
    sentences (`rewards.meaning`). Repetition and echo: as for `quality`. Text is compared in lower case and without
    punctuation, as a recogniser and a text stream differ in both.

    Degenerate policies: silent -1; always talking, a metronome and a mumbler what their words happen to mean, less
    what they repeat; an agent that says the user's words back (four or more) at most 0, though a question is near its
    answer in meaning.

    Raw: `similarity`, `repetition`, `echo`, `words`.
    """
    window = view.credit(event.offset, event.offset + view.samples(2.0))
    references = reference_answers(view, event)
    if not references or not view.has_text or view.end < event.offset + view.samples(2.0):
        return Verdict(None, window)
    words = answer_words(view, event)
    graded = grade(words, references=references, heard=[word.text for word in event.words], nearest=view.nearest)
    raw = {"repetition": graded.repetition, "echo": graded.echo, "words": float(graded.words)}
    assert graded.similarity is not None  # there are references
    return Verdict(graded.value, window, raw | {"similarity": graded.similarity})
