"""The holes that shipped rewards are known to have, and why they are left open.

The published rewards are shipped to the letter, holes included (their docstrings say where the paper leaves a choice).
`uptake audit` shows a hole that is declared here with its reason and fails for one that is not declared; with `--all`,
on the dev split of a pack that ships, it fails for a declaration that is out of date as well.
"""

from __future__ import annotations

from collections.abc import Mapping

_EARLY = "published: -d is not clipped, so that talking over the user's turn earns more than waiting for its end"
_SPANNED = "published: sounds up to 1 s apart are one utterance, which has then begun before the user's turn is over"
_NEVER_STOPS = (
    "published: speech that is running as the barge-in ends is the next speech, so that never stopping is best"
)
_NO_JUDGE = "published: only times are judged; the paper's language model, which judges the words, is another term"
_SLOW_SCALE = (
    "published: a delay of a second costs little, and whatever sounds next is an answer, however it came about"
)
_SHORT_IS_FREE = "published: 0 is the maximum and is had by whoever never talks for more than 1 s"
_MANY_TO_ONE = "published: matching is many to one, so that any number of sounds round one opportunity are all hits"
_SHARES = (
    "published: shares of short overlaps and of prompt sounds; how short a sound is, and what it says, is not in them"
)
_ANY_SOUND = "published: only the onset is timed; what follows it may be a syllable, a mumble or the user's own words"
_ANY_SPEECH = "published: whatever sounds in an opportunity is a backchannel there, also speech that never ends"
_NO_WORDS = "published: what goes wrong is counted in sounds; what they say is judged by nothing in it"
_ANY_STOP = "published: only the time of the stop counts, so that speech which happens to end there has given way"
_FEW_FAULTS = "published: faults are counted, and who says hardly anything makes hardly any"
_LENGTH = "published: the length of the speech is paid, and not when it began or what it says"

_TIMED = ("mumbler", "truncator", "echo_chaser", "agreeable", "soup", "hum", "staccato")
_ANSWERS_SHORTLY = ("always_backchannel", "metronome", *_TIMED)
_STOPS_SOMEHOW = ("metronome", "mumbler", "echo_chaser", "agreeable", "soup", "hum", "random", "rate_matched")

EVERYWHERE: Mapping[str, Mapping[str, str]] = {
    "aspirin": dict.fromkeys(_ANSWERS_SHORTLY, _SHARES),
    "duplexpo_backchannel": {
        **dict.fromkeys(("always_talking", "always_backchannel"), _ANY_SPEECH),
        **dict.fromkeys(_TIMED, _NO_WORDS),
    },
    "duplexpo_events": dict.fromkeys(("always_backchannel", *_TIMED), _NO_WORDS),
    "duplexpo_onset": dict.fromkeys(_TIMED, _ANY_SOUND),
    "duplexpo_stop": dict.fromkeys(_STOPS_SOMEHOW, _ANY_STOP),
    "steerduplex_continuation": dict.fromkeys(
        ("always_talking", "mumbler", "echo_chaser", "agreeable", "soup", "hum", "random", "rate_matched"), _LENGTH
    ),
    "steerduplex_continuity": dict.fromkeys(
        ("always_talking", "mumbler", "echo_chaser", "agreeable", "soup", "hum", "random", "rate_matched"), _LENGTH
    ),
    "steerduplex_recovery": dict.fromkeys(("mumbler", "echo_chaser", "agreeable", "soup", "hum"), _ANY_SOUND),
    "steerduplex_yield": dict.fromkeys(_STOPS_SOMEHOW, _ANY_STOP),
    "published_pause": dict.fromkeys(
        ("silent", "always_backchannel", "metronome", "whisperer", "stopwatch", *_TIMED), _SHORT_IS_FREE
    ),
    "published_turn": {
        "always_talking": _EARLY,
        "always_backchannel": _SPANNED,
        "rate_matched": _EARLY,
        "random": _EARLY,
        "mumbler": _NO_JUDGE,
        "echo_chaser": _NO_JUDGE,
        "agreeable": _NO_JUDGE,
        "staccato": _NO_JUDGE,
        "soup": _NO_JUDGE,
        "hum": _NO_JUDGE,
    },
    "published_backchannel": {"always_backchannel": _MANY_TO_ONE, **dict.fromkeys(_TIMED, _NO_JUDGE)},
    "published_interruption": {
        "always_talking": _NEVER_STOPS,
        "metronome": _SLOW_SCALE,
        "random": _SLOW_SCALE,
        "rate_matched": _SLOW_SCALE,
        "mumbler": _NO_JUDGE,
        "echo_chaser": _NO_JUDGE,
        "agreeable": _NO_JUDGE,
        "soup": _NO_JUDGE,
        "hum": _NO_JUDGE,
        "staccato": _NEVER_STOPS,
    },
    "recipes/aspirin": dict.fromkeys(_ANSWERS_SHORTLY, _SHARES),
    "recipes/duplexpo": {
        "always_backchannel": _NO_WORDS,
        "metronome": _ANY_STOP,
        **dict.fromkeys(_TIMED, _ANY_SOUND),
    },
    "recipes/published": {
        "always_backchannel": _SPANNED,
        **dict.fromkeys(_TIMED, _NO_JUDGE),
    },
}
"""Name of a reward or a configuration -> attack -> reason: open in every pack that ships."""

ONLY_IN: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "core": {
        "duplexpo_stop": {"staccato": _ANY_STOP},
        "steerduplex_continuation": {"metronome": _LENGTH, "staccato": _LENGTH},
        "steerduplex_recovery": {"metronome": _ANY_SOUND},
        "steerduplex_yield": {"staccato": _ANY_STOP},
    },
    "taxonomy": {
        "aspirin": {"stopwatch": _SHARES},
        "duplexpo_events": {"stopwatch": _FEW_FAULTS},
        "recipes/aspirin": {"stopwatch": _SHARES},
        "recipes/duplexpo": {"stopwatch": _FEW_FAULTS},
    },
}
"""Pack -> the same, for holes that are open in it alone: what a beat meets depends on the conversations."""
SHIPPED = tuple(ONLY_IN)


def declared(pack: str) -> dict[str, dict[str, str]]:
    """The holes that are known in a pack that ships; of any other, those that are known in any."""
    found: dict[str, dict[str, str]] = {subject: dict(holes) for subject, holes in EVERYWHERE.items()}
    for name in (pack,) if pack in SHIPPED else SHIPPED:
        for subject, holes in ONLY_IN[name].items():
            found.setdefault(subject, {}).update(holes)
    return found
