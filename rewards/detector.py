"""Who speaks when, by the detector that a run names: energy, Silero VAD, the agent's codes or its text.

    activity: {detector: silero, merge_gap: 0.5}

Every detector says of each hop of its own grid whether somebody speaks there, and says it from what was heard up to the
end of that hop. So activity before a moment is the same whether the rest of the conversation is known or not. How hops
become segments (gaps that are bridged, how much sound is speech) is one rule for all of them.

| detector | hears | hop | active |
|---|---|---|---|
| energy | sound | 10 ms | from -45 dBFS until below -50 dBFS (`envs.activity`) |
| silero | sound | 32 ms | from a probability of 0.5 until below 0.35 (`rewards.silero`) |
| codec | the codes that the agent sampled | a frame | wherever a code is none of the codec's silence |
| text | the agent's words | 10 ms | from a word's onset to its offset, and for 0.4 s at least |

Codes and text are the agent's alone: with them, the user's side is heard by energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from envs import activity as energy
from envs.episode import Episode
from envs.errors import UptakeError, nearest
from envs.event import Word
from rewards import silero

DETECTORS = ("energy", "silero", "codec", "text")
CODE_ACTIVITY = "code_activity"
"""Key of `Episode.meta`: a string with a sign for every frame of the conversation, "1" where the agent's code is none
of its codec's silence (`align.rollout`)."""
HOP = energy.DEFAULT.hop


@dataclass(unsafe_hash=True)  # so that it may be a default; nobody changes one that is in use
class DetectorConfig:
    """Who is taken to speak when. Everything that judges or measures takes its activity from here."""

    detector: str = "energy"
    """energy, silero (pip install 'uptake[silero]'), codec or text."""
    merge_gap: float = 0.32
    """Seconds: a silence shorter than this does not split a segment."""
    min_length: float = 0.08
    """Seconds of active hops that a segment needs; less is a click."""
    on_db: float = -45.0
    """energy: dBFS of a hop (RMS) that starts activity."""
    off_db: float = -50.0
    """energy: below it activity ends; between the two the state holds."""
    on_probability: float = 0.5
    """silero: probability of speech that starts activity (as published)."""
    off_probability: float = 0.35
    """silero: below it activity ends (as published)."""
    word_seconds: float = 0.4
    """text: a word sounds for at least so long; a text stream says when it begins, and rarely when it ends."""

    def check(self) -> None:
        """Raise `UptakeError` for a detector that is not there, or for settings that cannot be."""
        if self.detector not in DETECTORS:
            raise UptakeError(f"activity.detector = {self.detector!r}: none{nearest(self.detector, DETECTORS)}")
        for name in ("merge_gap", "min_length", "word_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UptakeError(f"activity.{name} = {getattr(self, name)}: must be 0 or more seconds")
        if not self.off_db <= self.on_db < float("inf"):
            raise UptakeError(f"activity.off_db = {self.off_db}: must not be above activity.on_db = {self.on_db}")
        if not 0 <= self.off_probability <= self.on_probability <= 1:
            raise UptakeError(
                f"activity.on_probability = {self.on_probability}, activity.off_probability = {self.off_probability}: "
                "must be in 0..1, and off not above on"
            )
        if self.detector == "silero":
            silero.model()


ENERGY = DetectorConfig()


def parse_detector(settings: Sequence[str]) -> DetectorConfig | None:
    """What `--activity` asks for: a detector's name, or KEY=VALUE, each as often as wanted; None for nothing.

    Raises:
        UptakeError: no such detector or key, a value that is none, a detector that is not installed.
    """
    if not settings:
        return None
    found = DetectorConfig()
    known: dict[str, type] = {field.name: type(getattr(ENERGY, field.name)) for field in fields(DetectorConfig)}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            name, value = "detector", setting
        if name not in known:
            raise UptakeError(f"--activity {setting}: no setting {name!r}{nearest(name, known)}")
        try:
            setattr(found, name, known[name](value))
        except ValueError:
            raise UptakeError(f"--activity {setting}: {value!r} is no number") from None
    found.check()
    return found


@dataclass(frozen=True)
class Track:
    """One side of a conversation as hops that are active or not."""

    hop: int
    """Samples."""
    active: Callable[[int], np.ndarray]
    """Sample -> (n,) bool of the hops before it. Where the last one reaches beyond, it says what is known by then."""

    def segments(self, end: int, rate: int, merge_gap: float, min_length: float) -> np.ndarray:
        """(n, 2) int64 of [onset, offset) in samples, of what was heard before `end`. Gap and length in seconds."""
        gap, length = (max(1, -(-round(seconds * rate) // self.hop)) for seconds in (merge_gap, min_length))
        return energy.join(self.active(end), self.hop, end, gap, length)


class Activity:
    """Who speaks when in one episode. What is measured once serves every view of it.

    Args:
        episode: the record.
        config: which detector, how.
        transcript: words to use in place of the episode's own.

    Raises:
        UptakeError: the detector hears codes, and the episode has none.
    """

    def __init__(
        self, episode: Episode, config: DetectorConfig = ENERGY, transcript: Sequence[Word] | None = None
    ) -> None:
        self.config = config
        self._episode = episode
        self._words = episode.transcript if transcript is None else transcript
        self._tracks: dict[str, Track] = {}
        self._found: dict[tuple[str, int], np.ndarray] = {}

    def agent(self, end: int) -> np.ndarray:
        """(n, 2) int64, read-only: segments of agent speech [onset, offset), as heard before sample `end`."""
        return self._segments("agent", end)

    def user(self, end: int) -> np.ndarray:
        """(n, 2) int64, read-only: the user's, measured on the audio."""
        return self._segments("user", end)

    def _segments(self, side: str, end: int) -> np.ndarray:
        found = self._found.get((side, end))
        if found is None:
            track = self._tracks.get(side)
            if track is None:
                track = self._tracks[side] = self._listen(side)
            rate = self._episode.clock.sample_rate
            found = track.segments(end, rate, self.config.merge_gap, self.config.min_length)
            found.flags.writeable = False  # every view that ends here has the same
            self._found[side, end] = found
        return found

    def _listen(self, side: str) -> Track:
        config, episode = self.config, self._episode
        audio = episode.agent if side == "agent" else episode.user
        if config.detector == "silero":
            return _by_probability(audio, episode.clock.sample_rate, config)
        if side == "agent" and config.detector == "text":
            return _by_words(self._words, episode.clock.nearest_sample(config.word_seconds))
        if side == "agent" and config.detector == "codec":
            return _by_codes(episode)
        return _by_energy(audio, config)


def _by_energy(audio: np.ndarray, config: DetectorConfig) -> Track:
    """As `envs.activity`: a hop of which a part is heard counts as if silence followed."""
    gate = energy.ActivityConfig(on_db=config.on_db, off_db=config.off_db)
    power = energy.levels(audio[: audio.size // HOP * HOP], HOP)
    whole = energy.active_hops(power, gate)

    def active(end: int) -> np.ndarray:
        hops, rest = divmod(end, HOP)
        if not rest:
            return whole[:hops]
        before = np.float32(np.inf if hops and whole[hops - 1] else 0.0)  # the state that the last hop may hold
        last = np.append(before, energy.levels(audio[hops * HOP : end], HOP))
        return np.append(whole[:hops], energy.active_hops(last, gate)[-1])

    return Track(HOP, active)


def _by_probability(audio: np.ndarray, rate: int, config: DetectorConfig) -> Track:
    whole = energy.hysteresis(silero.probabilities(audio, rate), config.on_probability, config.off_probability)
    return Track(silero.hop(rate), lambda end: whole[: silero.chunks(end, rate)])


def _by_words(words: Sequence[Word], shortest: int) -> Track:
    def active(end: int) -> np.ndarray:
        found = np.zeros(-(-end // HOP), bool)
        for word in words:
            if word.onset < end:
                found[word.onset // HOP : -(-min(max(word.offset, word.onset + shortest), end) // HOP)] = True
        return found

    return Track(HOP, active)


def _by_codes(episode: Episode) -> Track:
    said = episode.meta.get(CODE_ACTIVITY)
    if not isinstance(said, str):
        raise UptakeError(
            f"{episode.id}: activity.detector = codec needs the agent's codes, which only a policy's own conversation "
            "has (a scripted agent samples none); take energy, silero or text"
        )
    frame, whole = episode.clock.frame, np.frombuffer(said.encode(), np.uint8) == ord("1")
    return Track(frame, lambda end: whole[: end // frame])
