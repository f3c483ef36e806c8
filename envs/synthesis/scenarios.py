"""Scenarios for the clips of a pack: one for every clip that leads a conversation, and a twin wherever one decides otherwise.

* a question, a statement: answer it;
* a pause within a question or a dictation: wait; its twin ends there: answer;
* a story: a word at the bars, an answer at the end;
* over the agent's answer: a barge-in (stop, answer the new thing) or a stop command (stop, say no more), and as the twin of
  each its first word alone, a backchannel (talk on); side talk and coughs (talk on).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from envs.synthesis.texts import SPLITS

_START = {"dist": "uniform", "a": 0.3, "b": 1.2}
_PAUSE = {"dist": "lognormal", "median": 0.6, "sigma": 0.45, "clip": [0.25, 1.3]}
_HOLD = {"dist": "uniform", "a": 0.6, "b": 1.4}
_FTO = {"full": 0.7, "zero": 2.0}
_YIELD = {"full": 0.5, "zero": 1.5}


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
    questions = by_kind["question"]
    made: list[dict[str, Any]] = []

    def add(name: str, tags: list[str], script: list[dict], expect: list[dict], **more: Any) -> None:
        duration = 14.0
        made.append(
            {"schema": "duplex.scenario/1", "id": f"{tags[0]}/{name}", "split": split, "tags": tags, **more}
            | {"duration_s": {"max": duration}, "user": {"driver": "script", "script": script}, "expect": expect}
            | {"terminate": {"after_script_s": 6.0}}
        )

    def responds(event: str, topic: str) -> dict[str, Any]:
        wanted = {"event": event, "agent": "responds", "within": dict(_FTO)}
        return wanted | ({"content": content[topic]} if topic in content else {})

    for kind, event in (("question", "A1"), ("statement", "A3")):
        for clip in by_kind[kind]:
            ask = {"id": "ask", "type": event, "clip": clip, "at": "$start"}
            add(_name(clip), ["turn"], [ask], [responds("ask", _topic(clip))], vars={"start": _START})

    for kind, pause_type in (("pause", "B1"), ("dictation", "B4")):
        for clip in by_kind[kind]:
            name, count = _name(clip), len(clips[clip]["pauses"])
            ask = {"id": "ask", "type": "A1", "clip": clip, "at": "$start"}
            gaps = {f"gap{i}": _PAUSE for i in range(count)}
            shared = {"vars": {"start": _START} | gaps, "seed_group": f"hold/{name}"}
            pauses = [{"at_pause": i, "seconds": f"$gap{i}"} for i in range(count)]
            hold = ask | {"pause_type": pause_type, "pauses": pauses}
            silent = {"event": "ask.pause", "agent": "silent"}
            add(name, ["pause"], [hold], [silent, responds("ask", _topic(clip))], twin=f"pause_twin/{name}", **shared)
            ended = ask | {"until": {"at_pause": 0}}
            add(name, ["pause_twin"], [ended], [responds("ask", _topic(clip))], twin=f"pause/{name}", **shared)

    for clip in by_kind["story"]:
        words, pauses = clips[clip]["words"], clips[clip]["pauses"]
        bars = [max(i for i, w in enumerate(words) if (w[1] + w[2]) / 2 < onset + 1) for onset, _ in pauses]
        tell = {"id": "tell", "type": "B7", "clip": clip, "at": "$start", "opportunities": bars, "turn": "A3"}
        expect = [
            {"event": "tell", "agent": "backchannels"},
            {"event": "tell.turn", "agent": "responds", "within": _FTO},
        ]
        add(_name(clip), ["story"], [tell], expect, vars={"start": _START})

    for number, (kind, event) in enumerate(
        [(k, e) for k, e in (("barge_in", "C1"), ("stop", "C3")) for _ in by_kind[k]]
    ):
        clip = [*by_kind["barge_in"], *by_kind["stop"]][number]
        ask = _question(questions, clips, clip, number)
        name = _name(clip)
        shared = {"vars": {"start": _START, "hold": _HOLD}, "seed_group": f"over/{name}"}
        first = {"id": "ask", "type": "A1", "clip": ask, "at": "$start"}
        when = {"when": {"agent": "speaking", "for": "$hold", "after": "ask"}, "timeout": 5.0}
        acknowledged = sum(1 for w in clips[clip]["words"] if (w[1] + w[2]) / 2 < clips[clip]["pauses"][0][0] + 1)
        cut = {"id": "cut", "type": event, "clip": clip, "anchors": {"sem": acknowledged}} | when
        expect = [responds("ask", _topic(ask)), {"event": "cut", "agent": "stops", "within": _YIELD}]
        if event == "C1":
            expect.append(responds("cut", _topic(clip)))
        add(name, ["barge_in"], [first, cut], expect, twin=f"acknowledged/{name}", **shared)
        yeah = {"id": "cut", "type": "D1", "clip": clip, "until": {"at_pause": 0}} | when
        talks_on = [responds("ask", _topic(ask)), {"event": "cut", "agent": "continues"}]
        add(name, ["acknowledged"], [first, yeah], talks_on, twin=f"barge_in/{name}", **shared)

    for number, clip in enumerate([*by_kind["side_talk"], *by_kind["cough"]]):
        ask = _question(questions, clips, clip, number)
        first = {"id": "ask", "type": "A1", "clip": ask, "at": "$start"}
        when = {"when": {"agent": "speaking", "for": "$hold", "after": "ask"}, "timeout": 5.0}
        event = "D5" if clip.startswith("side_talk") else "D3"
        aside = {"id": "aside", "type": event, "clip": clip} | when
        expect = [responds("ask", _topic(ask)), {"event": "aside", "agent": "continues"}]
        add(_name(clip), ["aside"], [first, aside], expect, vars={"start": _START, "hold": _HOLD})
    return made


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
