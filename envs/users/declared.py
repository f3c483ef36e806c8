"""The `user:` of a scenario file: whose driver it is, and what that driver is told. Errors name the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.errors import UptakeError, nearest
from envs.located_yaml import Document
from envs.recording import Recording
from envs.schema import json_schema
from envs.users.laws import load_laws
from envs.users.llm_user import LlmUser, UserEndpoint, Voice
from envs.users.persona import INTENTS, TURNS, Persona, ReactiveUser
from envs.users.policy_user import PolicyUser
from envs.users.turn_models import turn_model
from envs.variables import Var, check_number

_LLM = ("turns", "requests", "tokens", "think_s", "silence_s", "poll_s", "patience_s", "timeout_s", "faults")
_BELONGS = {
    "script": ("script",),
    "reactive": ("persona", "laws", "turn_model"),
    "replay": ("recording",),
    "llm": ("goal", "endpoint", "who", "speech", "log", *_LLM),
    "policy": ("policy", "opens"),
}


def read_user(
    document: Document, spec: Mapping[str, Any], variables: Mapping[str, Var]
) -> ReactiveUser | Recording | LlmUser | PolicyUser | None:
    """Who speaks; None for a script. `variables` are what a number may refer to."""
    driver = spec.get("driver", "script")
    takes = _BELONGS[driver]
    for key in spec:
        if key not in (*takes, "driver"):
            hint = f"does not belong to the {driver} driver; it takes {', '.join(takes)}"
            raise document.error(f"user: {key!r} {hint}", ("user", key))
    if driver == "reactive":
        return _reactive(document, spec, variables)
    if takes[0] not in spec:
        raise document.error(f"user has no {takes[0]!r}; add it", ("user",))
    if driver == "llm":
        return _llm(document, spec)
    if driver == "policy":
        return PolicyUser(spec["policy"], spec.get("opens"))
    return _recording(document, spec["recording"]) if driver == "replay" else None


def _llm(document: Document, spec: Mapping[str, Any]) -> LlmUser:
    folder = Path(document.source).parent
    if "endpoint" not in spec:
        raise document.error("user has no 'endpoint'; add it: {base_url: ..., model: ...}", ("user",))
    endpoint = UserEndpoint(**spec["endpoint"])
    endpoint.body = {**UserEndpoint().body, **endpoint.body}  # what is not said stays bounded
    try:
        endpoint.check()
    except UptakeError as error:
        raise document.error(str(error), ("user", "endpoint")) from error
    voice = dict(spec.get("speech", {}))
    if "voices" in voice:
        voice["voices"] = folder / voice["voices"]
    numbers = {name: spec[name] for name in _LLM if name in spec}
    return LlmUser(
        goal=spec["goal"],
        endpoint=endpoint,
        **({"who": spec["who"]} if "who" in spec else {}),
        speech=Voice(**voice) if voice else None,
        log=folder / spec["log"] if "log" in spec else None,
        **numbers,
    )


def _reactive(document: Document, spec: Mapping[str, Any], variables: Mapping[str, Var]) -> ReactiveUser:
    where = ("user", "persona")
    persona = dict(spec.get("persona", {}))
    grammar = json_schema()["$defs"]["persona"]["properties"]
    for key, value in persona.items():
        check_number(document, value, grammar[key], variables, (*where, key))
    for key, known in (("says", TURNS), ("intents", INTENTS)):
        if key not in persona:
            continue
        for name in persona[key]:
            if name not in known:
                raise document.error(f"persona.{key}: no {name!r}{nearest(name, known)}", (*where, key, name))
        persona[key] = {name: float(weight) for name, weight in persona[key].items() if weight > 0}
        if not persona[key]:
            raise document.error(f"persona.{key} has no weight above 0; give one", (*where, key))
    user = ReactiveUser(Persona(**persona), **{key: spec[key] for key in ("laws", "turn_model") if key in spec})
    if user.laws != "human":
        user = replace(user, laws=str(Path(document.source).parent / user.laws))
    try:
        load_laws(user.laws)
    except UptakeError as error:
        raise document.error(str(error), ("user", "laws")) from error
    try:
        turn_model(user.turn_model)
    except UptakeError as error:
        raise document.error(str(error), ("user", "turn_model")) from error
    return user


def _recording(document: Document, spec: Mapping[str, Any]) -> Recording:
    folder = Path(document.source).parent
    words = folder / spec["words"] if "words" in spec else None
    start, stop = float(spec.get("from", 0.0)), float(spec["to"]) if "to" in spec else None
    recording = Recording(folder / spec["file"], spec.get("channel", 0), words, start, stop)
    try:
        recording.check()
    except UptakeError as error:
        raise document.error(str(error), ("user", "recording")) from error
    return recording
