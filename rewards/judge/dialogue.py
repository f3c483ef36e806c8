"""A conversation as a judge reads it: whose turn was what, up to the response that is judged."""

from __future__ import annotations

from envs.event import Event
from rewards.view import TEXT_LEAD_SECONDS, EpisodeView, is_user_turn

Turn = tuple[str, str]
"""("USER" or "MODEL", text)."""


def dialogue(view: EpisodeView, event: Event) -> tuple[tuple[Turn, ...], str]:
    """What was said up to the end of a user's turn, and what the model answered.

    The response is every word that the model speaks audibly from the end of the turn (0.4 s before it: text leads
    sound) to the user's next turn or the end of the view, with the beginning of an answer that started before the turn
    was over. Speech from before the turn that runs on into it belongs to the history, up to its end. Speech that
    begins and ends inside the turn, such as a backchannel, is neither. The user's words are the script's, which are
    what was said; backchannels, coughs and talk to others are no turns.

    Returns:
        The history, alternating, the turn itself last; and the response, empty when the model is silent.
    """
    start = event.offset - view.samples(TEXT_LEAD_SECONDS)
    limit = view.next_user_turn(event.offset)
    said: list[tuple[int, str, str]] = []
    response: list[str] = []
    for burst in view.bursts:
        words = burst.words or ()
        answers = burst.onset >= event.onset and any(start <= word.onset < limit for word in words)
        response += [word.text for word in words if word.onset < limit and (answers or word.onset >= start)]
        if burst.onset < event.onset:
            said.append((burst.onset, "MODEL", " ".join(word.text for word in words if word.onset < start)))
    # A monologue is one turn, though it is two events: one for its backchannels and one for its end.
    turns = {e.onset: e for e in view.events if e.source == "user" and is_user_turn(e) and e.onset <= event.onset}
    said += [(onset, "USER", turn.text or " ".join(word.text for word in turn.words)) for onset, turn in turns.items()]
    return tuple(_joined(sorted(said))), " ".join(response)


def _joined(said: list[tuple[int, str, str]]) -> list[Turn]:
    """Consecutive speech of one speaker as one turn; nothing said is no turn."""
    turns: list[Turn] = []
    for _, speaker, text in said:
        if not text:
            continue
        if turns and turns[-1][0] == speaker:
            turns[-1] = (speaker, f"{turns[-1][1]} {text}")
        else:
            turns.append((speaker, text))
    return turns
