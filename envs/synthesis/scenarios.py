"""Scenarios for the clips of a pack: one for every clip that leads a conversation, and a twin where that decides.

* a question, a statement: answer it;
* a pause within a question or a dictation: wait; its twin ends there: answer;
* a story: a word at the bars, an answer at the end;
* over the agent's answer: a barge-in or a correction (stop, answer the new thing) or a stop command (stop, say no
  more), and as the twin of each its first word alone, a backchannel (talk on); side talk and coughs (talk on).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from envs.synthesis.texts import SPLITS

_START = {"dist": "uniform", "a": 0.3, "b": 1.2}
_PAUSE = {"dist": "lognormal", "median": 0.6, "sigma": 0.45, "clip": [0.25, 1.3]}
_HOLD = {"dist": "uniform", "a": 0.6, "b": 1.2}  # so that the answer outlasts what is said over it
_FTO = {"full": 0.7, "zero": 2.0}
_YIELD = {"full": 0.5, "zero": 1.5}
_OVER = {"barge_in": "C1", "correction": "C2", "stop": "C3"}


Spec = dict[str, Any]


def write_scenarios(source: Mapping[str, Any], clips: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """One file a split, each with many documents."""
    for split in SPLITS:
        documents = _scenarios(source, {k: c for k, c in clips.items() if c["split"] == split}, split)
        text = yaml.safe_dump_all(documents, sort_keys=False, default_flow_style=None, width=118, explicit_start=True)
        (folder / f"{split}.yaml").write_text(text)


def _scenarios(source: Mapping[str, Any], clips: Mapping[str, Mapping[str, Any]], split: str) -> list[dict[str, Any]]:
    content = {topic: list(entry["content"]) for topic, entry in source["topics"].items()}
    by_kind: dict[str, list[str]] = {}
    for name in clips:
        by_kind.setdefault(name.split("/")[0], []).append(name)
    made: list[dict[str, Any]] = []

    def add(name: str, tag: str, script: list[Spec], expect: list[Spec], **more: Any) -> None:
        made.append(
            {"schema": "duplex.scenario/1", "id": f"{tag}/{name}", "split": split, "tags": [tag], **more}
            | {"duration_s": {"max": 14.0}, "user": {"driver": "script", "script": script}, "expect": expect}
            | {"terminate": {"after_script_s": 6.0}}
        )

    def responds(event: str, topic: str) -> dict[str, Any]:
        wanted = {"event": event, "agent": "responds", "within": dict(_FTO)}
        return wanted | ({"content": content[topic]} if topic in content else {})

    for kind, event in (("question", "A1"), ("statement", "A3")):
        for clip in by_kind[kind]:
            ask = {"id": "ask", "type": event, "clip": clip, "at": "$start"}
            add(_name(clip), "turn", [ask], [responds("ask", _topic(clip))], vars={"start": _START})

    for kind, pause_type in (("pause", "B1"), ("dictation", "B4")):
        for clip in by_kind[kind]:
            name, count = _name(clip), len(clips[clip]["pauses"])
            ask = {"id": "ask", "type": "A1", "clip": clip, "at": "$start"}
            gaps = {f"gap{i}": _PAUSE for i in range(count)}
            shared = {"vars": {"start": _START} | gaps, "seed_group": f"hold/{name}"}
            pauses = [{"at_pause": i, "seconds": f"$gap{i}"} for i in range(count)]
            hold = ask | {"pause_type": pause_type, "pauses": pauses}
            silent = {"event": "ask.pause", "agent": "silent"}
            add(name, "pause", [hold], [silent, responds("ask", _topic(clip))], twin=f"pause_twin/{name}", **shared)
            ended = ask | {"until": {"at_pause": 0}}
            add(name, "pause_twin", [ended], [responds("ask", _topic(clip))], twin=f"pause/{name}", **shared)

    for clip in by_kind["story"]:
        bars = [_words_before(clips[clip], onset) - 1 for onset, _ in clips[clip]["pauses"]]
        tell: Spec = {"id": "tell", "type": "B7", "clip": clip, "at": "$start", "opportunities": bars, "turn": "A3"}
        after: Spec = {"event": "tell.turn", "agent": "responds", "within": dict(_FTO)}
        add(_name(clip), "story", [tell], [{"event": "tell", "agent": "backchannels"}, after], vars={"start": _START})

    def interrupt(number: int, clip: str, event: str, tag: str, expect: list[Spec], item: Spec, **more: Any) -> None:
        """`item` is said over the answer to a question about something else."""
        question = _question(by_kind["question"], clips, clip, number)
        ask: Spec = {"id": "ask", "type": "A1", "clip": question, "at": "$start"}
        when: Spec = {"when": {"agent": "speaking", "for": "$hold", "after": "ask"}, "timeout": 5.0}
        expect = [responds("ask", _topic(question)), *expect]
        shared = {"vars": {"start": _START, "hold": _HOLD}}
        add(_name(clip), tag, [ask, {"id": "cut", "type": event, "clip": clip} | item | when], expect, **shared, **more)

    over = [(clip, event) for kind, event in _OVER.items() for clip in by_kind.get(kind, ())]
    for number, (clip, wanted) in enumerate(over):
        name = _name(clip)
        first: Spec = {"anchors": {"sem": _words_before(clips[clip], clips[clip]["pauses"][0][0])}}
        stops: list[Spec] = [{"event": "cut", "agent": "stops", "within": dict(_YIELD)}]
        if wanted != "C3":
            stops.append(responds("cut", _topic(clip)))
        twins = {"seed_group": f"over/{name}"}
        interrupt(number, clip, wanted, "barge_in", stops, first, twin=f"acknowledged/{name}", **twins)
        goes_on: list[Spec] = [{"event": "cut", "agent": "continues"}]
        only: Spec = {"until": {"at_pause": 0}}
        interrupt(number, clip, "D1", "acknowledged", goes_on, only, twin=f"barge_in/{name}", **twins)

    for number, clip in enumerate([*by_kind["side_talk"], *by_kind["cough"]]):
        event = "D5" if clip in by_kind["side_talk"] else "D3"
        interrupt(number, clip, event, "aside", [{"event": "cut", "agent": "continues"}], {})
    return made


def _words_before(clip: Mapping[str, Any], sample: int) -> int:
    return sum((onset + offset) / 2 < sample + 1 for _, onset, offset in clip["words"])


def _name(clip: str) -> str:
    return clip.replace("/", ".").replace(".", "/", 1)


def _topic(clip: str) -> str:
    return clip.split("/")[1]


def _question(questions: list[str], clips: Mapping[str, Mapping[str, Any]], over: str, number: int) -> str:
    """A question in the same voice where there is one, about something else than what is said over its answer."""
    other = [q for q in questions if _topic(q) != _topic(over)]
    same = [q for q in other if clips[q]["voice"] == clips[over]["voice"]]
    choice = same or other
    return choice[number * 5 % len(choice)]
