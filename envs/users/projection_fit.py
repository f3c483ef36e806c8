"""Learn `projection.json`: what loudness says about how near the end of a turn is.

    python -m envs.users.projection_fit

It hears what the packs' agent says and, for more voices, the user clips of the train split, each from three places in
the 80 ms frame; one turn in five is kept back. Prints, of those, how well each lead is told apart (area under the ROC
curve, over all frames while there is speech, or after it for lead 0) and writes the weights.
"""

from __future__ import annotations

import json

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from envs.activity import OnlineActivity, activity
from envs.clock import CLOCK
from envs.pack import Clip, Pack
from envs.seeding import crc
from envs.users.projection import INPUTS, LEADS_S, WEIGHTS, Cues, project
from envs.users.turn_models import Heard

_HIDDEN, _DECAY, _AGENT = 16, 1e-4, 6.0
"""Hidden units, weight decay, and how many clips of other voices one of the agent's counts for."""
_BEFORE, _AFTER = CLOCK.samples(0.4), CLOCK.samples(0.64)  # speech that a listener has heard first; silence after it


def turns() -> list[Clip]:
    """Every clip once."""
    clips = [clip for name in ("core", "taxonomy") for clip in Pack.load(name).clips()]
    heard = [clip for clip in clips if clip.words and (clip.kind == "agent" or clip.split == "train")]
    return list({clip.text + clip.voice: clip for clip in heard}.values())


def examples(clips: list[Clip]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, INPUTS) cues, (n,) seconds to the end, (n,) index of the clip."""
    size = CLOCK.frame
    cues, left, whose = [], [], []
    for shift in (0, size // 3, 2 * size // 3):
        length = max(clip.samples for clip in clips) + shift + 10 * size
        audio = np.zeros((len(clips), length // size * size), np.float32)
        for row, clip in enumerate(clips):
            audio[row, size + shift : size + shift + clip.samples] = clip.audio
        spans = [activity(row) for row in audio]
        ends = np.array([span[-1, 1] if len(span) else -1 for span in spans])
        begins = np.array([span[0, 0] if len(span) else length for span in spans])
        ear, model = OnlineActivity(len(clips)), Cues(len(clips))
        for frame in np.split(audio, audio.shape[1] // size, axis=1):
            ear.update(frame)
            found = model.update(Heard(ear.now, ear, frame))
            keep = np.flatnonzero((ear.now - begins >= _BEFORE) & (ear.now - ends <= _AFTER))
            cues.append(found[keep])
            left.append((ends - ear.now)[keep] / CLOCK.sample_rate)
            whose.append(keep)
    return np.concatenate(cues).astype(np.float64), np.concatenate(left), np.concatenate(whose)


def learn(cues: np.ndarray, left: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """The layers that `project` takes, by cross-entropy."""
    wanted = (left[:, None] <= np.array(LEADS_S)).astype(np.float64)
    shapes = ((INPUTS, _HIDDEN), (_HIDDEN,), (_HIDDEN, len(LEADS_S)), (len(LEADS_S),))
    places = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    share = weight[:, None] / weight.sum()

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(flat[a:b].reshape(s) for a, b, s in zip(places, places[1:], shapes, strict=False))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        first, bias, second, last = unpack(flat)
        hidden = np.tanh(cues @ first + bias)
        logit = hidden @ second + last
        value = float((share * (np.logaddexp(0.0, logit) - wanted * logit)).sum())
        out = share * (1.0 / (1.0 + np.exp(-logit)) - wanted)
        back = (out @ second.T) * (1.0 - hidden**2)
        slopes = (cues.T @ back, back.sum(axis=0), hidden.T @ out, out.sum(axis=0))
        slope = np.concatenate([one.ravel() for one in slopes]) + 2.0 * _DECAY * flat
        return value + _DECAY * float(flat @ flat), slope

    start = 0.3 * np.random.default_rng(0).standard_normal(places[-1])
    return unpack(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 400}).x)


def told_apart(over: np.ndarray, true: np.ndarray) -> float:
    """Area under the ROC curve."""
    ones = int(true.sum())
    return float((rankdata(over)[true].sum() - ones * (ones + 1) / 2) / (ones * (true.size - ones)))


def main() -> None:
    """Learn, say how well, and write."""
    clips = turns()
    cues, left, whose = examples(clips)
    agent = np.array([clip.kind == "agent" for clip in clips])[whose]
    kept = np.array([crc(clip.text) % 5 == 0 for clip in clips])[whose]
    weight = np.where(agent, _AGENT, 1.0)
    over = project(learn(cues[~kept], left[~kept], weight[~kept]), cues)
    for who, rows in (("agent", agent & kept), ("other voices", ~agent & kept)):
        for i, lead in enumerate(LEADS_S):
            seen = rows & (left > 0) if lead else rows
            print(f"{who}: end within {lead:g} s: AUC {told_apart(over[seen, i], left[seen] <= lead):.3f}")
    layers = zip(("first", "bias", "second", "last"), learn(cues, left, weight), strict=True)
    WEIGHTS.write_text(json.dumps({name: np.round(layer, 4).tolist() for name, layer in layers}) + "\n")


if __name__ == "__main__":
    main()
