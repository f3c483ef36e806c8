"""What holds for the users of every driver, whatever the agent does: nothing fires twice, nothing waits for ever, a
conversation that has ended stays ended, and rows know nothing of each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from envs.activity import OnlineActivity
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.event import Event
from envs.pack import Pack
from envs.scenario import Scenario
from envs.seeding import Seeds
from envs.users import partner as partner_module
from envs.users.llm import LlmDriver
from envs.users.plan import Line, Plan
from envs.users.script import SKIPPED, WAITING, ScriptDriver
from envs.users.turn_models import Heard
from tests.reactive_pack import reactive_pack
from tests.unit.test_selfplay import Parrot
from tests.unit.test_users_llm import Whim

F = CLOCK.frame
FRAMES = 90
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
SPEECH = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=10)
VOICE = 0.1 * np.ones(F, np.float32)


def frames_of(pattern: list[tuple[bool, int]], length: int) -> list[bool]:
    return ([speaks for speaks, count in pattern for _ in range(count)] + [False] * length)[:length]


# ---- scripts of any shape


@st.composite
def scripts(draw) -> Plan:
    lines = []
    for i in range(draw(st.integers(1, 7))):
        length = draw(st.integers(1, 40)) * 600
        pcm = np.zeros(length, np.int16)
        after = draw(st.none() | st.integers(0, i - 1)) if i else None
        agent = draw(st.sampled_from([None, "speaking", "silent"]))
        lines.append(
            Line(
                id=f"l{i}", type="A3", source="user", pcm=pcm,
                events=(Event(f"l{i}", "A3", "user", 0, length),),
                at=draw(st.integers(0, 100)) * 1000 if agent is None and after is None else None,
                after=after, gap=draw(st.integers(0, 50)) * 500, agent=agent,
                hold=draw(st.integers(0, 40)) * 700, timeout=draw(st.integers(1, 60)) * 1500,
                jitter=draw(st.integers(0, F - 1)),
            )
        )  # fmt: skip
    scenario = Scenario("any", "train")
    return Plan(scenario, Seeds(0, "any", 0), tuple(lines), -60.0, 3 * F, 10**9)


@settings(max_examples=120, deadline=None, phases=PHASES)
@given(plan=scripts(), pattern=SPEECH)
def test_every_line_of_a_script_is_said_once_or_skipped_and_none_before_its_trigger(plan, pattern):
    driver, ear = ScriptDriver(1), OnlineActivity(1)
    cues = [cue.onset for cue in driver.reset(0, plan)]
    ear.now[:] = F
    decided: dict[int, int] = {}
    frames = frames_of(pattern, 0) + [False] * 400
    longest = sum(line.timeout + line.hold + line.over + line.gap + 2 * F for line in plan.lines) + 200_000
    for speaks in frames + [False] * (longest // F):
        ear.update(VOICE[None] if speaks else 0 * VOICE[None])
        before = list(driver._progress[0].starts)
        for cue in driver.advance(Heard(ear.now, ear, VOICE[None])):
            assert cue.onset >= int(ear.now[0])  # causal
            cues.append(cue.onset)
        for i, (was, now) in enumerate(zip(before, driver._progress[0].starts, strict=True)):
            assert was in (WAITING, now)  # nothing that is settled is taken back
            if was == WAITING and now >= 0:
                assert i not in decided  # no trigger fires twice
                decided[i] = now
                if plan.lines[i].agent:
                    assert ear.now[0] <= now < ear.now[0] + F  # causal
    starts = driver._progress[0].starts
    assert WAITING not in starts  # no deadlock
    assert len(cues) == sum(start >= 0 for start in starts)
    for line, start in zip(plan.lines, starts, strict=True):
        if line.after is None:
            continue
        parent = starts[line.after]
        assert (
            start == SKIPPED if parent == SKIPPED else start == SKIPPED or start >= parent + plan.lines[line.after].over
        )
    assert [event.onset for event in driver.events(0)] == sorted(start for start in starts if start >= 0)
    assert len(driver.skipped(0)) == starts.count(SKIPPED)
    done = driver.done_at(0)
    ends = [start + line.over for line, start in zip(plan.lines, starts, strict=True) if start >= 0]
    assert done >= max(ends, default=0) + plan.after_script


# ---- all drivers side by side

USERS = """\
schema: duplex.scenario/1
id: script
split: train
user:
  script:
    - {id: ask, type: A1, clip: question/weather/0-low, at: 0.3s}
    - {id: cut, type: C1, clip: barge_in/train/0-low, when: {agent: speaking, for: 0.5, after: ask}, timeout: 2}
---
schema: duplex.scenario/1
id: reactive
split: train
user: {driver: reactive, persona: {patience_s: 1, tries: 1, turns: 1, listens_s: 2}}
terminate: {after_script_s: 0.5}
---
schema: duplex.scenario/1
id: replay
split: train
user: {driver: replay, recording: {file: call.wav}}
---
schema: duplex.scenario/1
id: llm
split: train
duration_s: {max: 5}
user:
  driver: llm
  goal: Anything.
  turns: 2
  endpoint: {base_url: 'http://127.0.0.1:9/v1', model: none}
---
schema: duplex.scenario/1
id: policy
split: train
duration_s: {max: 4}
user: {driver: policy, policy: parrot, opens: question}
"""
NAMES = ["script", "reactive", "replay", "llm", "policy"]
REPLIES = [
    json.dumps(reply)
    for reply in (
        {"act": "speak", "words": "t1", "when": {"after": 0.2}},
        {"act": "backchannel", "words": "b1"},
        {"act": "barge_in", "words": "t2"},
        {"act": "wait"},
        {"act": "hang_up"},
        "nonsense",
    )
]


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    folder = tmp_path_factory.mktemp("all")
    call = np.zeros((4 * 24000, 2), np.float32)
    call[12000:60000, 0] = 0.2 * np.sin(np.arange(48000) * 0.1)
    call[66000:90000, 1] = 0.2
    soundfile.write(folder / "call.wav", call, 24000, subtype="PCM_16")
    (folder / "users.yaml").write_text(USERS)
    return reactive_pack(folder, "").with_users(folder / "users.yaml")


def play(pack: Pack, names: list[str], replies: list[str], frames: list[bool]):
    env = DuplexVectorEnv(pack, len(names), frames=FRAMES)
    env._driver.use("llm", LlmDriver(len(names), Whim(replies)))
    env.reset(seed=4, options={"scenario": names, "variant": 1})
    ended = np.zeros(len(names), bool)
    lengths = np.zeros(len(names), int)
    for frame, speaks in enumerate(frames):
        action = np.repeat(VOICE[None] if speaks else 0 * VOICE[None], len(names), axis=0)
        _, _, terminated, truncated, info = env.step(action)
        assert (info["ended"] >= ended).all()  # what has ended stays ended
        fresh = info["ended"] & ~ended
        lengths[fresh] = frame + 2
        ended = info["ended"]
        assert (ended == (terminated | truncated)).all()
    return [env.episode(row) for row in range(len(names))], ended, lengths


@settings(max_examples=30, deadline=None, phases=PHASES)
@given(pattern=SPEECH, replies=st.lists(st.sampled_from(REPLIES), min_size=1, max_size=5), row=st.integers(0, 4))
def test_every_conversation_ends_and_none_depends_on_its_neighbours(pack, pattern, replies, row):
    frames = frames_of(pattern, FRAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partner_module, "_loaders", [lambda name, batch: Parrot(batch)])
        episodes, ended, lengths = play(pack, NAMES, replies, frames)
        (alone,), _, _ = play(pack, [NAMES[row]], replies, frames)
    assert ended.all()
    for name, episode, length in zip(NAMES, episodes, lengths, strict=True):
        assert episode.meta["driver"] == name and episode.samples == length * F  # the record ends where the call did
        ids = [event.id for event in episode.events]
        assert len(set(ids)) == len(ids)  # nothing happened twice
        onsets = [event.onset for event in episode.events]
        assert onsets == sorted(onsets) and all(event.offset <= episode.samples for event in episode.events)
        left = next((event.offset for event in episode.events if event.type == "E2"), None)
        if left is not None:  # a hang-up is the last thing that happens, and it ends the conversation or time does
            assert not episode.user[left + 120 :].any()
            assert episode.meta["ended"] == "script" or episode.samples - left < CLOCK.samples(3.5)
    assert np.array_equal(episodes[row].mic, alone.mic) and episodes[row].events == alone.events
