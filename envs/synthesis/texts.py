"""The utterances of a pack source (`core.yaml`): every text with its kind, topic and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SOURCES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
"""The sources that ship with the package, by name: of each of the packs that do."""
SOURCE = SOURCES["core"]
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Utterance:
    kind: str
    """question, pause, barge_in, correction, stop, statement, dictation, story, side_talk, ...; of the agent: answer,
    backchannel."""
    topic: str
    """A topic of the source, or the kind again where there is none."""
    split: str
    text: str
    """`|` marks decision points; it is spoken as a comma."""

    @property
    def spoken(self) -> str:
        return self.text.replace(" |", ",").replace(",,", ",")


def load_source(path: Path = SOURCE) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def user_utterances(source: Mapping[str, Any], split: str) -> list[Utterance]:
    """Everything that the users of one split say, but the `lines` of a source that names each of its clips."""
    found = []
    for topic, entry in source.get("topics", {}).items():
        noun = {"np": entry["np"]}
        questions = [q.format(**noun) for q in source["questions"][split]] + entry["questions"][split]
        found += [Utterance("question", topic, split, text) for text in questions]
        found += [Utterance("pause", topic, split, t.format(**noun)) for t in source["pauses"][split]]
        found += [Utterance("barge_in", topic, split, t.format(**noun)) for t in source["barge_ins"][split]]
        found += [Utterance("correction", topic, split, t.format(**noun)) for t in source["corrections"][split]]
    plain = {
        "stops": "stop",
        "statements": "statement",
        "dictations": "dictation",
        "stories": "story",
        "side_talk": "side_talk",
    }
    for key, kind in plain.items():
        found += [Utterance(kind, kind, split, text) for text in source.get(key, {}).get(split, ())]
    return found


def agent_utterances(source: Mapping[str, Any]) -> list[Utterance]:
    """Everything that the agent says, in all splits alike."""
    found = [
        Utterance("answer", topic, "all", a)
        for topic, entry in source.get("topics", {}).items()
        for a in entry["answers"]
    ]
    for kind in ("statement", "dictation", "story"):
        found += [Utterance("answer", kind, "all", text) for text in source.get(f"{kind}_answers", ())]
    for topic, texts in source.get("agent", {}).items():
        found += [Utterance("answer", topic, "all", text) for text in texts]
    return found + [Utterance("backchannel", "backchannel", "all", text) for text in source["backchannels"]]
