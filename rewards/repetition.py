"""Not saying the same thing again."""

from __future__ import annotations

from envs.event import Event
from rewards.registry import EPISODE, reward
from rewards.text import duplicates
from rewards.timing import late_score
from rewards.verdict import Verdict
from rewards.view import TEXT_LEAD_SECONDS, EpisodeView

FREE, WORTHLESS = 0.03, 0.15
"""Share of 3-grams said before that costs nothing, and that is worth nothing: Moshi has 0.029, after the collapse that
ASPIRin (arXiv 2604.10065) reports of plain GRPO 0.072."""
FEWEST = 6
"""Fewer 3-grams than this say nothing about habits."""


@reward("repetition", axis="quality", events=[EPISODE], horizon_s=0.0, beside=["turn_taking", "quality"])
def repetition(view: EpisodeView, event: Event) -> Verdict:
    """Do not fall into a loop, nor give the same answer to everything.

    Source: ours; duplicate 3-grams as in ASPIRin (arXiv 2604.10065), where plain GRPO doubled them. `quality` looks at
    one answer at a time; this looks at all of them together.

    Window: the words of the turns that the agent takes in the whole conversation, in audible speech. Backchannels may
    repeat themselves, and so may what is said after a request to repeat (C4), up to the user's next turn. None without
    a text stream, and for fewer than six 3-grams.

    Value, of the share of 3-grams that were said before: 1 up to 0.03, 0 at 0.15, -1 from 0.27 on.

    Degenerate policies: silent and backchannels None, a mumbler -1, always talking and a metronome -1 once they come
    round to the same words.
    Raw: `repeated` (the share), `ngrams`.
    """
    lead = view.samples(TEXT_LEAD_SECONDS)
    allowed = [(e.offset - lead, view.next_user_turn(e.offset)) for e in view.events if e.type == "C4"]
    spoken = [word for turn in view.turns for word in turn.words or ()]
    said = [word.text for word in spoken if not any(start <= word.onset < stop for start, stop in allowed)]
    again, total = duplicates(said)
    raw = {"repeated": again / total if total else 0.0, "ngrams": float(total)}
    if not view.has_text or total < FEWEST:
        return Verdict(None, (0, view.end), raw)
    return Verdict(late_score(raw["repeated"], FREE, WORTHLESS), (0, view.end), raw)
