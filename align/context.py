"""Conversations that begin in the middle: a recorded stretch that the policy lives through first (arXiv 2606.11167).

Half of all groups begin with a context, of a length that is uniform up to a longest one; that grows with the run from
nothing to 30 s. Nothing of it is learned from. Theirs is what came before a segment of a corpus; here it is composed
from the pack's training split, with an agent that behaves (`envs.conversations`). Every conversation of a group has the
same one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align import curriculum
from align.policies.moshi.policy import MoshiPolicy
from align.rollout import heard_after
from align.streams import align, encode, text_stream
from envs.clock import CLOCK
from envs.conversations import Composer, Conversation, Untidiness
from envs.event import Word
from envs.pack import Pack

TIDY = Untidiness(answers_into_pause=0.0, late=0.0, backchannels=1.0, talks_on=0.0, false_stops=0.0)
TALK_FRAMES = 150
"""Frames of one composed conversation; longer contexts are several."""


class Contexts:
    """Draws what conversations begin with; a function of seed, iteration and group and of nothing else."""

    def __init__(
        self, pack: Pack, policy: MoshiPolicy, *, longest_s: float, probability: float, iterations: int, seed: int
    ) -> None:
        """`longest_s` is reached in the last of the run's `iterations`."""
        self.policy, self.longest = policy, CLOCK.frames_covering(CLOCK.nearest_sample(longest_s))
        self.probability, self.iterations, self.seed = probability, iterations, seed
        self._composer = Composer(pack, "train", TALK_FRAMES, TIDY)

    def prompts(self, iteration: int, drawn: Sequence[curriculum.Draw]) -> list[np.ndarray | None]:
        """One for every conversation of the groups: the policy's own prompt, then the context if there is one."""
        out: list[np.ndarray | None] = []
        for draw in drawn:
            rng = curriculum.generator(self.seed, "context", iteration, draw.group)
            context, own = self._context(rng, iteration), self.policy.prompt
            whole = own if context is None else context if own is None else np.concatenate((own, context), axis=1)
            out += [whole] * len(draw.seeds)
        return out

    def frames(self, iteration: int) -> int:
        """The longest context of an iteration."""
        return round(self.longest * iteration / max(1, self.iterations - 1))

    def _context(self, rng: np.random.Generator, iteration: int) -> np.ndarray | None:
        """(1 + codebooks, frames) aligned as `Trajectory.codes`, or None."""
        begins, length = rng.random() < self.probability, int(rng.uniform() * self.frames(iteration))
        if not begins or not length:
            return None
        lag = heard_after(self.policy.spec)
        talk = self._talk(rng, length + lag + 1)
        # As in supervised training: the agent's column t is audible `lag` frames later.
        c = self.policy.model.config
        pad, epad = c.existing_text_padding_id, c.existing_text_end_padding_id
        text = text_stream(talk.agent_words, self.policy.tokenizer, length + lag + 1, pad, epad)
        agent, user = (encode(self.policy.codec, track[None]) for track in (talk.agent, talk.user))  # (1, Q, frames)
        return align(text[None, lag:], agent[:, :, lag:], user[:, :, :-lag])[0]

    def _talk(self, rng: np.random.Generator, frames: int) -> Conversation:
        """The last `frames` of conversations one after the other."""
        talks = [self._composer.draw(rng) for _ in range(-(-frames // TALK_FRAMES))]
        cut = CLOCK.sample_of(len(talks) * TALK_FRAMES - frames)
        user = np.concatenate([talk.user for talk in talks])[cut:]
        agent = np.concatenate([talk.agent for talk in talks])[cut:]
        whole = Conversation(user, agent)
        for i, talk in enumerate(talks):
            offset = CLOCK.sample_of(i * TALK_FRAMES) - cut
            said = (Word(w.text, w.onset + offset, w.offset + offset) for w in talk.agent_words)
            whole.agent_words += [word for word in said if word.onset >= 0]
        return whole
