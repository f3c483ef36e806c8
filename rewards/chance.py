"""Whether answers are about what was asked: expected words against the words that other questions expect.

An answer may hold an expected word by chance, because the agent says the same thing to everybody or says much. So each
answer is graded twice: on what its own question expects, and on average on what the questions of other topics in the
same evaluation expect. The margin between the two is zero for an agent that does not listen, whatever it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.episode import Episode
from envs.event import Word
from rewards.aggregate import Measurement
from rewards.bootstrap import DRAWS, Interval, bootstrap
from rewards.detector import ENERGY, Activity, DetectorConfig
from rewards.quality import answer_words, hit_by_chance
from rewards.text import contains_any
from rewards.timing import RESPONSE_SECONDS
from rewards.view import EpisodeView


@dataclass(frozen=True)
class Answer:
    """What the agent said to an event that expects certain words."""

    content: tuple[str, ...]
    """Any of these was wanted."""
    words: tuple[str, ...]
    """Spoken before the user's next turn; empty when it gave no answer."""


@dataclass(frozen=True)
class Accuracy:
    """How often answers hold an expected word, with intervals by text."""

    asked: int
    """Events that expect certain words."""
    answered: int
    """Those with a spoken word of the agent after them; the shares are of these."""
    hit: Interval
    """Share with a word that their own question expects."""
    chance: Interval
    """Mean share with a word that another topic's question expects."""
    margin: Interval
    """hit - chance."""


def find_answers(
    episode: Episode, transcript: Sequence[Word] | None = None, activity: DetectorConfig = ENERGY
) -> list[Answer]:
    """What was said to every event that expects certain words and was followed for 3 s after its end.

    `transcript` takes the place of the agent's own words, for instance those that speech recognition heard; `activity`
    says who is taken to speak when.
    """
    view = EpisodeView(episode, episode.samples, transcript, Activity(episode, activity, transcript))
    found = []
    for event in view.events:
        expect = event.expected("responds")
        if expect and expect.content and view.end >= event.offset + view.samples(RESPONSE_SECONDS):
            found.append(Answer(expect.content, tuple(answer_words(view, event))))
    return found


def answer_accuracy(answers: Mapping[str, Sequence[Answer]], draws: int = DRAWS, seed: int = 0) -> Accuracy | None:
    """Compare answers with chance.

    Args:
        answers: unit -> the answers of its episodes (`rewards.bootstrap.units`).
        draws: of the bootstrap over units.
        seed: of the bootstrap.

    Returns:
        None when nothing was answered, or only one topic was asked about: then there is no chance to compare with.
    """
    given = {scenario: [one for one in found if one.words] for scenario, found in answers.items()}
    topics = Counter(one.content for found in given.values() for one in found)
    if len(topics) < 2:
        return None
    run: dict[str, list[Measurement]] = {}
    for scenario, found in given.items():
        run[scenario] = []
        for one in found:
            hit = float(contains_any(one.words, one.content))
            chance = hit_by_chance(one.words, one.content, topics)
            run[scenario].append({"hit": (hit, 1.0), "chance": (chance, 1.0), "margin": (hit - chance, 1.0)})
    found_intervals = bootstrap(run, draws, seed)
    return Accuracy(
        asked=sum(len(found) for found in answers.values()),
        answered=sum(topics.values()),
        **{name: found_intervals[name] for name in ("hit", "chance", "margin")},
    )
