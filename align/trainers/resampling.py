"""Dynamic sampling (DAPO, arXiv 2503.14476): replace groups in which nothing was better than anything else.

Such a group has no advantage and would only dilute the batch. Its place in the batch is drawn again, from the same
axis, until it teaches something or the rounds are used up; then it stays. So the batch keeps its size and its axes on
every rank, and as every draw is a function of (seed, iteration, place, attempt), a resumed run, or one on another
number of ranks, meets the same conversations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align import advantages as adv
from align import curriculum
from align.judging import Pending, begin, judge
from align.rollout import Rollout
from align.tally import Tally

if TYPE_CHECKING:
    from align.trainers.grpo_config import GrpoConfig
    from align.trainers.run import Run
    from rewards.compose import Composition


def replace_flat_groups(
    run: Run,
    config: GrpoConfig,
    composition: Composition,
    make_env: Callable[[int], Any],
    scenarios: Mapping[str, Sequence[str]],
    iteration: int,
    played: Rollout,
    drawn: Sequence[curriculum.Draw],
    pending: Sequence[Pending],
    tally: Tally,
) -> tuple[Rollout, list[curriculum.Draw], list[Pending]]:
    """This rank's conversations, with their draws and judgements to come, after up to `max_num_gen_batches` rounds.

    Args:
        played, drawn, pending: of the first round.
        tally: gets `dynamic_sampling/first_reward`, the mean reward before anything was replaced (`reward` is that of
            the conversations that are kept), `dynamic_sampling/redrawn`, draws beyond the first as a share of the
            groups, and `dynamic_sampling/flat`, groups that still teach nothing, as such a share.
    """
    size = config.num_generations
    drawn, pending = list(drawn), [functools.cache(give) for give in pending]
    first = Tally()
    flat = _flat(config, composition, run, played, drawn, pending, first)
    tally.add("dynamic_sampling/first_reward", *first.sums("reward"))
    redrawn = 0
    for attempt in range(1, config.max_num_gen_batches):
        if run.engine.all_true(not flat):
            break
        # A rank with nothing to replace plays along, for ranks must leave a rollout together.
        places = flat or [0]
        again = [curriculum.redraw(scenarios, drawn[i], iteration, attempt, seed=run.seed) for i in places]
        other = run.converse(make_env(len(places) * size), iteration, again, size)
        if not flat:
            continue
        asked: list[Pending] = [functools.cache(give) for give in begin(composition, other.episodes)]
        still = _flat(config, composition, run, other, again, asked, Tally())
        played = _replaced(played, other, places, size)
        for k, i in enumerate(places):
            drawn[i] = again[k]
            pending[i * size : (i + 1) * size] = asked[k * size : (k + 1) * size]
        redrawn += len(places)
        flat = [places[k] for k in still]
    tally.add("dynamic_sampling/redrawn", redrawn, len(drawn))
    tally.add("dynamic_sampling/flat", len(flat), len(drawn))
    return played, drawn, pending


def _flat(
    config: GrpoConfig,
    composition: Composition,
    run: Run,
    played: Rollout,
    drawn: Sequence[curriculum.Draw],
    pending: Sequence[Pending],
    tally: Tally,
) -> list[int]:
    """Groups of a rollout in which no frame has an advantage."""
    rows, frames = played.trajectory.valid.shape
    credits = judge(composition, played, drawn, run.policy.spec, frames, tally, pending)
    values = adv.frame_advantages(
        credits, rows, frames, credit=config.credit, baseline=config.baseline,
        aggregation=config.multi_objective_aggregation, scale=config.scale_rewards,
    ).values  # fmt: skip
    taught = (values.unflatten(0, (len(drawn), -1)) != 0).flatten(1).any(1)
    return [i for i, some in enumerate(taught.tolist()) if not some]


def _replaced(played: Rollout, other: Rollout, places: Sequence[int], size: int) -> Rollout:
    """The first rollout with its groups at `places` taken from the second, which has just those."""
    rows = list(range(len(played.episodes)))
    for k, i in enumerate(places):
        rows[i * size : (i + 1) * size] = [len(rows) + k * size + j for j in range(size)]
    episodes = [*played.episodes, *other.episodes]
    return dataclasses.replace(
        played,
        trajectory=played.trajectory.followed_by(other.trajectory).rows(rows),
        episodes=[episodes[row] for row in rows],
        seconds=played.seconds + other.seconds,
    )
