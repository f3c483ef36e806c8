"""Another policy as the user: what it needs to be one, and the `policy` driver that lets it speak.

    user: {driver: policy, policy: pocket}

`Partner` is audio in, audio out, a frame at a time; `align.partner` makes one of any `DuplexPolicy`. The partner hears
what the agent plays as its conditions let it through, over a room tone of its own, and what it says at the end of a
frame is heard from the next frame on, so both sides react equally fast. What it did is read off its sound when it is
over: turns, barge-ins, backchannels and pauses by the rules that are used for recordings (`envs.users.replay`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from envs.acoustics.conditions import Conditions
from envs.acoustics.room_tone import room_tone
from envs.activity import activity
from envs.clock import CLOCK, Clock
from envs.corpora.utterances import UNIT_GAP_SECONDS, units, utterances
from envs.episode import from_pcm16, to_pcm16
from envs.errors import UptakeError, nearest
from envs.event import Event, Word
from envs.pack import Clip, Pack
from envs.scenario import Scenario
from envs.seeding import Seeds
from envs.users.plan import Drawn
from envs.users.policy_user import PolicyUser
from envs.users.replay import TURN_GAP, find_events
from envs.users.script import Cue
from envs.users.turn_models import Heard

log = logging.getLogger(__name__)
_SILENT = np.zeros(CLOCK.frame, np.int16)
_SILENT.setflags(write=False)
OPENS_S = (0.4, 1.0)
"""When first words begin, seconds, uniform."""


class Partner(Protocol):
    """One side of a batch of conversations. Rows know nothing of each other, and nothing changes a row but itself."""

    context: int
    """Frames that it can look back; a conversation that may be longer is refused."""

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Begin afresh in these rows (indices), one seed each."""

    def step(self, heard: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Hear one frame (B, F) float32 and give what is played in the next, (B, F); rows not `active` stay."""

    def words(self, row: int) -> Sequence[Word]:
        """What it has said so far by its text stream, in samples of the episode; nothing where it has none."""

    def fork(self, source: int, rows: np.ndarray) -> None:
        """Let `rows` continue from where row `source` stands."""

    def get_state(self) -> Any:
        """A copy of everything that `set_state` needs, here or in another partner of the same name and batch."""

    def set_state(self, state: Any) -> None:
        """Continue from what `get_state` returned."""


_loaders: list[Callable[[str, int], Partner]] = []


def set_loader(load: Callable[[str, int], Partner]) -> None:
    """Say how the name of a policy and a batch size become a partner: `align.loading` does, when it is imported."""
    _loaders[:] = [load]


def open_partner(name: str, batch: int) -> Partner:
    """The partner of a name.

    Raises:
        UptakeError: nobody said how, or there is no such policy.
    """
    if not _loaders:
        raise UptakeError(
            f"user.policy = {name!r}: nothing here can load a policy; import align.loading first, or call "
            "envs.users.partner.set_loader"
        )
    return _loaders[0](name, batch)


@dataclass(frozen=True, eq=False)
class PartnerPlan:
    """A `policy` scenario with everything random drawn."""

    scenario: Scenario
    seeds: Seeds
    values: dict[str, float]
    room_tone_db: float
    after_script: int
    longest: int
    conditions: Conditions
    voice: str
    opening: Clip | None = None
    """What it says first, whatever the policy does."""
    opens_at: int = 0

    @property
    def user(self) -> PolicyUser:
        """Who speaks."""
        assert isinstance(self.scenario.user, PolicyUser)
        return self.scenario.user

    @property
    def opens_until(self) -> int:
        """Sample at which the first words are over."""
        return 0 if self.opening is None else self.opens_at + self.opening.samples

    def tone(self) -> np.ndarray:
        """What the partner hears when nobody speaks, (longest,) int16."""
        return room_tone(self.longest, self.room_tone_db, self.seeds.rng("noise", "ear"), self.seeds.rng("room", "ear"))


def bind_policy(
    pack: Pack,
    scenario: Scenario,
    drawn: Drawn,
    clock: Clock,
) -> PartnerPlan:
    """Draw a `policy` scenario's first words."""
    user = scenario.user
    assert isinstance(user, PolicyUser)
    if user.opens is None:
        return PartnerPlan(**drawn, voice=user.policy)
    spoken, rng = pack.spoken(scenario.split), drawn["seeds"].rng("user", "opens")
    if user.opens not in spoken:
        hint = nearest(user.opens, spoken)
        raise scenario.error(f"user.opens: no {scenario.split} clip of kind {user.opens!r} in pack {pack.name!r}{hint}")
    clip = spoken[user.opens][int(rng.integers(len(spoken[user.opens])))]
    return PartnerPlan(**drawn, voice=user.policy, opening=clip, opens_at=clock.nearest_sample(rng.uniform(*OPENS_S)))


@dataclass
class Side:
    """One conversation so far, from the user's side."""

    said: tuple[np.ndarray, ...] = ()
    """What the user says, (F,) int16 a frame from the start; the last one is being played."""
    agent: tuple[tuple[int, int], ...] = ()
    """The agent's speech, [onset, offset) in samples."""
    now: int = CLOCK.frame
    fresh: bool = True
    """It has not heard frame 0 yet."""
    faults: int = 0
    """Frames that were no sound."""

    def hear(self, onset: int, offset: int) -> None:
        """Take note of the agent's latest segment (`OnlineActivity`)."""
        if onset >= 0 and self.agent[-1:] != ((onset, offset),):
            self.agent = (*self._settled(onset), (onset, offset))

    def _settled(self, onset: int) -> tuple[tuple[int, int], ...]:
        return self.agent[:-1] if self.agent and self.agent[-1][0] == onset else self.agent


def measured(
    speech: Sequence[tuple[int, int]],
    other: Sequence[tuple[int, int]],
    now: int,
    scenario: Scenario,
    words: Sequence[Word] = (),
) -> tuple[Event, ...]:
    """The events of one side of a conversation, as its activity shows them.

    What is still being said, or ended less than a second before `now` and may go on, is no event yet.

    Args:
        speech: its segments, [onset, offset) in samples, in order.
        other: those of the other side.
        now: sample up to which both are known.
        scenario: says what is expected about each type.
        words: what it said, where that is known.
    """
    sounds = units(list(speech), CLOCK.nearest_sample(UNIT_GAP_SECONDS))
    over = [said for said in utterances([sounds], TURN_GAP) if said.offset < now - TURN_GAP]
    return find_events([unit for said in over for unit in said.units], words, other, scenario)


class PolicyDriver:
    """The users of a batch; each is a row of a partner."""

    def __init__(self, batch: int, load: Callable[[str, int], Partner] = open_partner) -> None:
        self.plans: list[PartnerPlan | None] = [None] * batch
        self._load = load
        self._partners: dict[str, Partner] = {}
        self._tones: list[np.ndarray] = [np.zeros(0, np.int16)] * batch
        self._sides = [Side() for _ in range(batch)]

    def reset(self, row: int, plan: PartnerPlan) -> list[Cue]:
        """Begin a conversation; nothing is said in frames 0 and 1, which no action can reach."""
        name = plan.user.policy
        partner = self._partner(name)
        frames, known = CLOCK.frames_covering(plan.longest), partner.context
        if frames > known:
            raise plan.scenario.error(
                f"duration_s.max: the user {name!r} looks back {known} frames "
                f"({CLOCK.seconds(CLOCK.sample_of(known)):g} s), a conversation may have {frames}; shorten it"
            )
        self.plans[row], self._tones[row] = plan, plan.tone()
        self._sides[row] = Side((_SILENT, _SILENT))
        partner.reset(np.array([row]), [int(plan.seeds.rng("user", "policy").integers(2**62))])
        return []

    def _partner(self, name: str) -> Partner:
        """The partner of a name, loaded when it is first asked for."""
        if name not in self._partners:
            self._partners[name] = self._load(name, len(self.plans))
        return self._partners[name]

    def release(self, row: int) -> None:
        """Another driver has taken over this row."""
        self.plans[row] = None

    def advance(self, heard: Heard) -> list[Cue]:
        """Listen at the end of a frame; returns what is said in the next one."""
        rows = [row for row, plan in enumerate(self.plans) if plan is not None]
        fresh = [row for row in rows if self._sides[row].fresh]
        if fresh:  # all that begin hear frame 0 together; what they would say in frame 1 is too late
            self._hear(fresh, np.zeros_like(heard.agent))
        for row in rows:
            side = self._sides[row]
            side.now, side.fresh = int(heard.now[row]), False
            side.hear(int(heard.activity.onset[row]), int(heard.activity.offset[row]))
        audio = self._hear(rows, heard.agent)
        cues = []
        for row in rows:
            side = self._sides[row]
            side.said = (*side.said, _SILENT)
            cues.append(self.speak(row, self._opening(row, audio[row])))
        return cues

    def _hear(self, rows: Sequence[int], agent: np.ndarray) -> np.ndarray:
        """Let the partners of `rows` hear the agents' frame (B, F); returns what they say in the next one, (B, F)."""
        ear, said = np.array(agent, np.float32), np.zeros(agent.shape, np.float32)
        for row in rows:
            now = self._sides[row].now
            tone = self._tones[row][now - CLOCK.frame : now]
            ear[row, : len(tone)] += from_pcm16(tone)
        ear = np.clip(ear, -1.0, 1.0)
        for name, partner in self._partners.items():
            mine = [row for row in rows if self._plan(row).user.policy == name]
            if not mine:
                continue
            active = np.zeros(len(self.plans), bool)
            active[mine] = True
            audio = np.asarray(partner.step(ear, active), np.float32)
            if audio.shape != ear.shape:
                raise UptakeError(
                    f"user.policy {name!r} gave audio of shape {audio.shape}, expected {ear.shape}; mend it"
                )
            for row in mine:
                if np.isfinite(audio[row]).all():
                    said[row] = audio[row]
                else:
                    self._fail(row)
        return said

    def _fail(self, row: int) -> None:
        """A frame that is no sound costs that frame of that row."""
        plan, side = self._plan(row), self._sides[row]
        if not side.faults:
            told = f"{plan.scenario.id}, variant {plan.seeds.variant}, at {CLOCK.seconds(side.now):.2f} s"
            log.warning("user.policy %s gave NaN or infinity, which is silence here: %s", plan.user.policy, told)
        side.faults += 1

    def _opening(self, row: int, audio: np.ndarray) -> np.ndarray:
        """The first words in the place of what the policy says meanwhile: (F,) float32."""
        plan, now = self._plan(row), self._sides[row].now
        if plan.opening is None or now >= plan.opens_until:
            return audio
        first, last = now - plan.opens_at, now + CLOCK.frame - plan.opens_at
        piece = plan.opening.audio[max(first, 0) : max(last, 0)]
        said = np.zeros(CLOCK.frame, np.float32)
        said[max(-first, 0) : max(-first, 0) + len(piece)] = piece
        return said

    def speak(self, row: int, audio: np.ndarray) -> Cue:
        """Put (F,) float32 into the frame that comes next, in place of what is there."""
        side, pcm = self._sides[row], to_pcm16(np.clip(audio, -1.0, 1.0))
        pcm.setflags(write=False)
        side.said = (*side.said[:-1], pcm)
        return Cue(row, side.now, pcm, "user")

    # -- the record ----------------------------------------------------------------------------------------------------

    def done_at(self, row: int) -> int:
        """The sample at which the conversation ends: neither side hangs up."""
        return self._plan(row).longest

    def events(self, row: int) -> list[Event]:
        """What the user did, as its sound shows it, in order of onset."""
        plan, side = self._plan(row), self._sides[row]
        partner = self._partners[plan.user.policy]
        speech = activity(from_pcm16(np.concatenate(side.said)[: side.now]))
        spans = [(int(on), int(off)) for on, off in speech]
        words = [word for word in partner.words(row) if plan.opens_until <= word.onset < side.now]
        if plan.opening is not None:
            first = [Word(w.text, w.onset + plan.opens_at, w.offset + plan.opens_at) for w in plan.opening.words]
            words = [word for word in first if word.onset < side.now] + words
        return list(measured(spans, side.agent, side.now, plan.scenario, words))

    def skipped(self, row: int) -> list[dict[str, str]]:
        """Nothing is planned, so nothing is left out."""
        return []

    def notes(self, row: int) -> dict[str, Any]:
        """Frames in which the policy gave no sound but NaN or infinity."""
        return {"user_faults": self._sides[row].faults}

    # -- state ---------------------------------------------------------------------------------------------------------

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        index = np.asarray(list(rows), np.int64)
        plan = self._plan(source)
        for row in index.tolist():
            self.plans[row], self._tones[row] = plan, self._tones[source]
            self._sides[row] = replace(self._sides[source])
        self._partners[plan.user.policy].fork(source, index)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs.

        Raises:
            UptakeError: a policy that is the user of a row cannot be copied out.
        """
        names = {plan.user.policy for plan in self.plans if plan is not None}
        return {
            "plans": list(self.plans),
            "tones": list(self._tones),
            "sides": [replace(side) for side in self._sides],
            "partners": {name: self._partners[name].get_state() for name in sorted(names)},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.plans, self._tones = list(state["plans"]), list(state["tones"])
        self._sides = [replace(side) for side in state["sides"]]
        for name, kept in state["partners"].items():
            self._partner(name).set_state(kept)

    def _plan(self, row: int) -> PartnerPlan:
        plan = self.plans[row]
        assert plan is not None
        return plan
