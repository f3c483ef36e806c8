"""Packs: a folder of rendered audio and scenarios, addressed by its content.

    pack.json                      {"schema": "duplex.pack/1", "name", "version", "sample_rate": 24000, "clips": {...}}
    audio/*.flac                   mono, 24 kHz
    scenarios/**/*.yaml            duplex.scenario/1, one or several documents a file

A clip in `pack.json`: ``id: {"file": "audio/x.flac", "sha256": hex, "samples": n, "text": "...",
"words": [["Hello", on, off], ...], "voice": "v1", "split": "train"|"dev"|"test"|"all", "kind": ...}`` and, where they
apply, ``"pauses": [[on, off], ...]`` (the speaker's own silences, or places where the clip can be cut) and
``"answers": [topic, ...]`` (what an agent clip is an answer to). Times are samples of the clip. Kinds: `agent` and
`agent_backchannel` are what scripted agents say; any other word (`user`, `cough`, ...) belongs to the user's side.

Hashes, headers, words and every scenario's references are checked when a pack is loaded, so that a broken pack stops a
run before it starts; audio is decoded when a clip is first used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from envs.clock import CLOCK, Clock
from envs.episode import from_pcm16, read_audio, to_pcm16
from envs.errors import UptakeError, nearest
from envs.event import Word
from envs.fit import check_fit
from envs.scenario import Cut, Scenario, ScriptItem, load_scenarios
from envs.twins import check_twins
from envs.users.persona import ReactiveUser

SCHEMA = "duplex.pack/1"
AGENT_KINDS = ("agent", "agent_backchannel")
SPLITS = ("train", "dev", "test")
BUILTIN = Path(__file__).parent / "packs"
USERS = Path(__file__).parent / "users" / "sets"
"""Scenarios for the core pack's audio that ship apart from it."""
_LOSSLESS_INTEGER = ("PCM_16", "PCM_24", "PCM_S8", "PCM_32")


@dataclass(frozen=True, eq=False)
class Clip:
    """One rendered utterance (or noise)."""

    id: str
    path: Path
    samples: int
    text: str = ""
    words: tuple[Word, ...] = ()
    """Timed in samples of the clip."""
    voice: str = ""
    split: str = "all"
    kind: str = "user"
    pauses: tuple[tuple[int, int], ...] = ()
    """The speaker's own silences within the clip; onset and offset may be equal where it can only be cut."""
    answers: tuple[str, ...] = ()
    """Topics that this agent clip answers."""
    clock: Clock = field(default=CLOCK, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Clip:
        """Itself: a clip never changes, and is told from another one by which it is."""
        return self

    @property
    def said_as(self) -> str:
        """What kind of utterance it is: its kind, or for kind `user` what its id begins with (`question/...`)."""
        return self.id.partition("/")[0] if self.kind == "user" else self.kind

    @property
    def topic(self) -> str:
        """What it is about: the middle of an id such as ``question/weather/03``; empty where there is none."""
        parts = self.id.split("/")
        return parts[1] if len(parts) == 3 else ""

    @cached_property
    def pcm(self) -> np.ndarray:
        """(samples,) int16, read-only; decoded on first use."""
        audio = read_audio(self.path, self.clock)
        if audio.size != self.samples:
            raise UptakeError(f"{self.path}: {audio.size} samples, pack.json says {self.samples}; rebuild the pack")
        pcm = to_pcm16(audio)
        pcm.setflags(write=False)
        return pcm

    @cached_property
    def audio(self) -> np.ndarray:
        """(samples,) float32, read-only."""
        audio = from_pcm16(self.pcm)
        audio.setflags(write=False)
        return audio

    def silence_at(self, cut: Cut) -> tuple[int, int]:
        """[onset, offset) in samples of the clip's own silence at a cut; raises IndexError where there is none."""
        if cut.at_pause is not None:
            return self.pauses[cut.at_pause]
        assert cut.after_word is not None
        return self.words[cut.after_word].offset, self.words[cut.after_word + 1].onset


class Pack:
    """Clips and scenarios. Make one with `Pack.load`."""

    def __init__(
        self,
        name: str,
        version: str,
        clips: Mapping[str, Clip],
        scenarios: Iterable[Scenario],
        digest: str,
        folder: Path,
    ) -> None:
        self.name = name
        self.version = version
        self._clips = dict(clips)
        self.hash = digest
        """SHA-256 over `pack.json` (which has the hash of every audio file), all scenario files and what they name."""
        self.folder = folder
        self._scenarios: dict[str, Scenario] = {}
        for scenario in scenarios:
            other = self._scenarios.setdefault(scenario.id, scenario)
            if other is not scenario:
                raise scenario.error(f"id {scenario.id!r} is taken by {other.source}:{other.line}; rename one")
        self._by_text: dict[str, list[Clip]] = {}
        for clip in self._clips.values():
            if clip.kind not in AGENT_KINDS:
                self._by_text.setdefault(_normal(clip.text), []).append(clip)
        self._spoken: dict[str, dict[str, list[Clip]]] = {}
        self._content = self._asked_for()
        for scenario in self._scenarios.values():
            check_fit(self, scenario)
        check_twins(self._scenarios, self.voices)

    @classmethod
    def load(cls, path: str | Path, users: str | Path = "") -> Pack:
        """Load a pack from a folder, or one that ships with the package by its name: `core`, wherever that is said.

        Args:
            path: the folder or name.
            users: other scenarios than the pack's own, for the same audio: the name of a set that ships with the
                package (``reactive``), or the path of a YAML file.

        Raises `UptakeError` naming the file for whatever is missing, corrupt or inconsistent.
        """
        pack = cls._load(path)
        return pack.with_users(users) if users else pack

    def with_users(self, users: str | Path) -> Pack:
        """The same audio with the scenarios of another file; its hash covers both."""
        file = Path(users)
        builtin = {p.stem: p for p in USERS.glob("*.yaml")}
        if not file.exists() and str(users) in builtin:
            file = builtin[str(users)]
        if not file.is_file():
            raise UptakeError(f"users {str(users)!r}: no such file or set of users{nearest(str(users), builtin)}")
        scenarios = load_scenarios(file)
        if not scenarios:
            raise UptakeError(f"{file}: holds no scenario")
        digest = hashlib.sha256(self.hash.encode() + b"\0" + file.read_bytes() + _referred(scenarios)).hexdigest()
        pack = Pack(self.name, self.version, self._clips, scenarios, digest, self.folder)
        pack._content = self._content | pack._content
        return pack

    def unheard(self, types: Collection[str]) -> Pack:
        """The same pack, in whose scripts what is of these types happens when it would, and cannot be heard."""

        def muted(scenario: Scenario) -> Scenario:
            sounds = scenario.sounds(types)
            script = (replace(item, gain_db=float("-inf")) if item.id in sounds else item for item in scenario.script)
            return replace(scenario, script=tuple(script))

        twin = copy(self)
        twin._scenarios = {name: muted(scenario) for name, scenario in self._scenarios.items()}
        return twin

    @classmethod
    def _load(cls, path: str | Path) -> Pack:
        folder = Path(path)
        if isinstance(path, str) and len(folder.parts) == 1 and path == folder.name:  # a folder is ./core
            folder = BUILTIN / folder if (BUILTIN / folder / "pack.json").is_file() else folder
        index = folder / "pack.json"
        if not index.is_file():
            names = [p.parent.name for p in BUILTIN.glob("*/pack.json")]
            raise UptakeError(f"no pack {str(path)!r}: {index} does not exist{nearest(str(path), names)}")
        raw = index.read_bytes()
        try:
            data = json.loads(raw)
        except ValueError as error:
            raise UptakeError(f"{index}: not JSON ({error}); rebuild the pack") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else data
            raise UptakeError(f"{index}: schema is {found!r}, expected {SCHEMA!r}; rebuild the pack")
        if data.get("sample_rate", CLOCK.sample_rate) != CLOCK.sample_rate:
            raise UptakeError(
                f"{index}: sample_rate is {data['sample_rate']}, expected {CLOCK.sample_rate}; resample it"
            )
        if not isinstance(data.get("clips"), dict) or not data["clips"]:
            raise UptakeError(f"{index}: 'clips' is missing or empty; rebuild the pack")
        clips = {name: _clip(index, name, spec) for name, spec in data["clips"].items()}
        digest = hashlib.sha256(raw)
        scenarios: list[Scenario] = []
        for file in sorted((folder / "scenarios").rglob("*.yaml"), key=lambda p: p.relative_to(folder).as_posix()):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
            scenarios += load_scenarios(file)
        if not scenarios:
            raise UptakeError(f"{folder / 'scenarios'}: holds no scenario (*.yaml); rebuild the pack")
        digest.update(_referred(scenarios))
        name, version = str(data.get("name", folder.name)), str(data.get("version", "0"))
        return cls(name, version, clips, scenarios, digest.hexdigest(), folder)

    def clip(self, name: str) -> Clip:
        """The clip with this id; raises `UptakeError` naming the nearest one."""
        if name not in self._clips:
            raise UptakeError(f"pack {self.name!r} has no clip {name!r}{nearest(name, self._clips)}")
        return self._clips[name]

    @property
    def clip_ids(self) -> Collection[str]:
        """The ids of all clips."""
        return self._clips.keys()

    def clips(self, kind: str | None = None) -> list[Clip]:
        """All clips, or those of one kind, in order of their ids."""
        return [self._clips[name] for name in sorted(self._clips) if kind in (None, self._clips[name].kind)]

    def spoken(self, split: str) -> Mapping[str, Sequence[Clip]]:
        """What users of a split say, by kind of utterance (`Clip.said_as`), in order of the clips' ids."""
        if split not in self._spoken:
            found = self._spoken[split] = {}
            for clip in self.clips():
                if clip.kind not in AGENT_KINDS and clip.split in (split, "all"):
                    found.setdefault(clip.said_as, []).append(clip)
        return self._spoken[split]

    def wanted(self, clip: Clip) -> tuple[str, ...]:
        """Words of which a good answer to this clip has one, as the pack's scenarios say; empty when they do not."""
        return self._content.get(clip.id) or self._content.get(f"*/{clip.topic}", ())

    @property
    def topics(self) -> list[list[str]]:
        """Every list of words that some script expects an answer to have one of, each once, in alphabetical order."""
        return [list(words) for words in sorted(set(self._content.values()))]

    def _asked_for(self) -> dict[str, tuple[str, ...]]:
        """Clip id, and ``*/topic``, to the content that the scripts expect of an answer."""
        found: dict[str, tuple[str, ...]] = {}
        for scenario in self._scenarios.values():
            for item in scenario.script:
                names = (item.id, f"{item.id}.turn")
                for name, expect in scenario.expects:
                    if item.clip in self._clips and name in names and expect.agent == "responds" and expect.content:
                        found.setdefault(self._clips[item.clip].id, expect.content)
                        if topic := self._clips[item.clip].topic:
                            found.setdefault(f"*/{topic}", expect.content)
        return found

    def speakers(self, split: str) -> set[str]:
        """The voices of a split's users."""
        return {clip.voice for clip in self.other_voices(split, "")}

    def other_voices(self, split: str, voice: str) -> list[Clip]:
        """The spoken clips of a split's users that are not in this voice, in order of their ids."""
        return [
            clip
            for clip in self.clips()
            if clip.words and clip.kind not in AGENT_KINDS and clip.split in (split, "all") and clip.voice != voice
        ]

    def answers(self, content: Sequence[str]) -> list[Clip]:
        """The agent clips that answer what any of these words asks for, the best fit first; none for no words.

        A clip fits by the words of its text, and twice as much by the topics that it is declared to answer.
        """
        wanted = {word.lower() for word in content}

        def fit(clip: Clip) -> int:
            spoken = {word.strip(".,!?").lower() for word in clip.text.split()}
            return len(wanted & spoken) + 2 * len(wanted & {topic.lower() for topic in clip.answers})

        return sorted((clip for clip in self.clips("agent") if fit(clip)), key=fit, reverse=True)

    def scenario(self, name: str) -> Scenario:
        """The scenario with this id; raises `UptakeError` naming the nearest one."""
        if name not in self._scenarios:
            raise UptakeError(f"pack {self.name!r} has no scenario {name!r}{nearest(name, self._scenarios)}")
        return self._scenarios[name]

    def scenarios(self, split: str | None = None, tags: Iterable[str] | None = None) -> list[Scenario]:
        """Scenarios of a split (all splits when None) that bear all of these tags, in order of their ids."""
        if split is not None and split not in SPLITS:
            raise UptakeError(f"no split {split!r}{nearest(split, SPLITS)}")
        wanted = set(tags or ())
        return [
            self._scenarios[name]
            for name in sorted(self._scenarios)
            if (split is None or self._scenarios[name].split == split) and wanted <= set(self._scenarios[name].tags)
        ]

    def candidates(self, scenario: Scenario, item: ScriptItem) -> list[Clip]:
        """The clips that this item may play: its own, or all of its split that say the text, in order of voice.

        None for a silence.
        """
        if item.clip is not None:
            return [self.clip(item.clip)]
        if item.say is None:
            return []
        said = self._by_text.get(_normal(item.say), [])
        return sorted((c for c in said if c.split in (scenario.split, "all")), key=lambda c: (c.voice, c.id))

    def shares(self, scenario: Scenario) -> tuple[str, ...]:
        """What a scenario has in common with others: its seed group, which twins share, and every text that it plays
        (of a clip without words, the clip's id). What an agent does there is no independent evidence.
        """
        played = [clips[0] for item in scenario.script if (clips := self.candidates(scenario, item))]
        return (scenario.seed_group, *sorted({_normal(clip.text) or clip.id for clip in played}))

    def voices(self, scenario: Scenario) -> list[str]:
        """The voices of which one is drawn for a scenario's user, in order.

        Of a script those that say all its `say` items; of a reactive user those that have the most of what it says.
        """
        if isinstance(scenario.user, ReactiveUser):
            wanted = {options[0] for _, options in scenario.user.persona.needs()}
            kinds: dict[str, set[str]] = {}
            for kind, clips in self.spoken(scenario.split).items():
                for clip in clips:
                    kinds.setdefault(clip.voice, set()).add(kind)
            most = max(len(wanted & has) for has in kinds.values())
            return sorted(voice for voice, has in kinds.items() if len(wanted & has) == most)
        said = [{clip.voice for clip in self.candidates(scenario, item)} for item in scenario.script if item.say]
        return sorted(set.intersection(*said)) if said else []


def _referred(scenarios: Iterable[Scenario]) -> bytes:
    """The hashes of the files that scenarios refer to; nothing where they refer to none.

    One that is missing is an error where it is opened: the log of a conversation only as that begins.
    """
    files = dict.fromkeys(file for scenario in scenarios for file in scenario.files if file.is_file())
    return "".join(f"\0{file.name}\0{sha256_of(file)}" for file in files).encode()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clip(index: Path, name: str, spec: Any) -> Clip:
    """One clip of pack.json, its file checked: present, unchanged, mono, not empty, right rate and length, finite."""
    try:
        path = index.parent / str(spec["file"])
        sha, samples = str(spec["sha256"]), int(spec["samples"])
        clip = Clip(
            id=name,
            path=path,
            samples=samples,
            text=str(spec.get("text", "")),
            words=tuple(Word(str(w), int(on), int(off)) for w, on, off in spec.get("words", ())),
            voice=str(spec.get("voice", "")),
            split=str(spec.get("split", "all")),
            kind=str(spec.get("kind", "user")),
            pauses=tuple((int(on), int(off)) for on, off in spec.get("pauses", ())),
            answers=tuple(str(topic) for topic in spec.get("answers", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UptakeError(f"{index}: clip {name!r}: field {error} is missing or malformed; rebuild the pack") from error
    if clip.split not in (*SPLITS, "all"):
        raise UptakeError(f"{index}: clip {name!r}: split {clip.split!r} is not known{nearest(clip.split, SPLITS)}")
    _check_times(index, clip)
    if not path.is_file():
        raise UptakeError(f"{path}: audio of clip {name!r} is missing; restore the file or rebuild the pack")
    if sha256_of(path) != sha:
        raise UptakeError(f"{path}: audio of clip {name!r} is not what pack.json recorded (SHA-256); restore the file")
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UptakeError(f"{path}: cannot be decoded ({error}); restore or re-encode the file") from error
    if info.samplerate != CLOCK.sample_rate:
        raise UptakeError(f"{path}: sample rate {info.samplerate}, expected {CLOCK.sample_rate}; resample the file")
    if info.channels != 1:
        raise UptakeError(f"{path}: {info.channels} channels, expected 1; mix the file to mono")
    if not info.frames:
        raise UptakeError(f"{path}: audio of clip {name!r} is empty; render the file again")
    if info.frames != samples:
        raise UptakeError(f"{path}: {info.frames} samples, pack.json says {samples}; rebuild the pack")
    if info.subtype not in _LOSSLESS_INTEGER:
        clip.pcm  # noqa: B018  only a float or lossy file can decode to NaN: look now, not in the middle of a run
    return clip


def _check_times(index: Path, clip: Clip) -> None:
    for what, spans in (("words", [(w.onset, w.offset) for w in clip.words]), ("pauses", list(clip.pauses))):
        before = 0
        for onset, offset in spans:
            if not before <= onset <= offset <= clip.samples:
                raise UptakeError(
                    f"{index}: clip {clip.id!r}: {what} has [{onset}, {offset}], which is out of order or outside of "
                    f"0..{clip.samples}; rebuild the pack"
                )
            before = offset


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def open_pack(path: str | Path, users: str | Path = "") -> Pack:
    """As `Pack.load`, but a pack that ships with the package is read and checked once a process."""
    shipped = isinstance(path, str) and (BUILTIN / path / "pack.json").is_file() and Path(path).name == path
    pack = _shipped(path) if shipped else Pack.load(path)
    return pack.with_users(users) if users else pack


@cache
def _shipped(name: str) -> Pack:
    return Pack.load(name)
