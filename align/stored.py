"""Evaluations whose conversations are on disk, so that they can be graded again.

    evaluation.json                 settings and measurements (`Evaluation.save`), written last
    episodes/00000-turn-weather/    the record of a conversation; `heard.jsonl` are the words of speech recognition

A run folder holds two, `before` and `after`, with the conversations that its report shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.evaluation import Evaluation, Example, Key
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from rewards.compat.fdb_folders import read_folders

HEARD = "heard.jsonl"


@dataclass
class Store:
    """Writes the conversations of one evaluation into a folder."""

    folder: Path

    def __post_init__(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UptakeError(f"{self.folder} is not empty; give a new folder for the conversations")
        self._examples: list[Example] = []

    def add(self, key: Key, episode: Episode, words: Sequence[Word] | None) -> None:
        """Write a conversation, and what speech recognition heard in it if it was used."""
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", key[0]).strip("-.")
        name = f"{len(self._examples):05d}-{slug}"
        place = episode.save(self.folder / "episodes" / name)
        if words is not None:
            lines = "".join(json.dumps(word._asdict()) + "\n" for word in words)
            (place / HEARD).write_text(lines, encoding="utf-8")
        self._examples.append(Example(key, name, key[0]))

    def close(self, evaluation: Evaluation) -> None:
        """Write the figures; a folder without them is one whose evaluation was interrupted."""
        evaluation.examples = self._examples
        evaluation.save(self.folder / "evaluation.json")


@dataclass(frozen=True)
class Stored:
    """Conversations on disk and the evaluation that they are from."""

    name: str
    evaluation: Evaluation | None
    """None for conversations that were not stored by an evaluation."""
    places: tuple[Path, ...]
    """Folders of episodes, in the order of the evaluation."""
    imported: tuple[Episode, ...] = ()
    """In place of `places`, conversations that were read from another layout."""

    def conversations(self) -> Iterator[tuple[Key, Episode, tuple[Word, ...] | None]]:
        """Scenario and variant, the episode, and the words of speech recognition if they were stored."""
        for episode in self.imported:
            yield _key(episode, str(episode.meta.get("scenario"))), episode, None
        for place in self.places:
            episode = Episode.load(place)
            yield _key(episode, place.name), episode, _read_heard(place / HEARD)


def find_stored(path: Path) -> list[Stored]:
    """The stored evaluations at a path.

    Args:
        path: what `uptake eval --episodes` wrote; a run folder; one episode or a folder of episodes; or folders of
            Full-Duplex-Bench with a system's output.

    Raises:
        UptakeError: nothing there that holds conversations.
    """
    if not path.is_dir():
        raise UptakeError(f"{path}: no such folder")
    if (path / "evaluation.json").is_file():
        return [_of_evaluation(path / "evaluation.json", path / "episodes")]
    sides = [side for side in ("before", "after") if (path / side / "evaluation.json").is_file()]
    if sides:
        return [_of_evaluation(path / side / "evaluation.json", path / "episodes" / side) for side in sides]
    if (path / "episodes").is_dir():
        raise UptakeError(f"{path}: no evaluation.json; its evaluation was interrupted, run it again")
    places = sorted(meta.parent for meta in path.rglob("meta.json"))
    if places:
        return [Stored(path.name, None, tuple(places))]
    if any(path.rglob("output.wav")):
        return [Stored(path.name, None, (), tuple(read_folders(path)))]
    raise UptakeError(f"{path}: holds no conversations; store some with: uptake eval POLICY --episodes FOLDER")


def _of_evaluation(file: Path, episodes: Path) -> Stored:
    evaluation = Evaluation.load(file)
    places = tuple(episodes / example.folder for example in evaluation.examples)
    if not places:
        raise UptakeError(f"{file}: its evaluation stored no conversation; store them with --episodes FOLDER")
    return Stored(evaluation.name, evaluation, places)


def _key(episode: Episode, place: str) -> Key:
    return str(episode.meta.get("scenario", place)), int(episode.meta.get("variant", 0))


def _read_heard(path: Path) -> tuple[Word, ...] | None:
    if not path.is_file():
        return None
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(Word(str(r["text"]), int(r["onset"]), int(r["offset"])) for r in records)
    except (ValueError, KeyError, TypeError) as error:
        raise UptakeError(f"{path}: no words with their times ({error}); restore the file") from error
