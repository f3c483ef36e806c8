"""The turn control of a cascade: two Bernoulli decisions a frame, logistic in what the endpointer measures.

When the user is silent, whether to answer; when the agent speaks, whether to stop. As built it is the familiar
endpointer, a threshold on the silence and one on the user's speech, but a soft one: its odds are even at the threshold
and grow by `SHARPNESS` nats every 100 ms. So it explores, and its thresholds have a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEASURES = ("silence", "speech", "length", "talked")
"""What the head sees, in hops of 10 ms: how long the user has been silent, has been speaking, spoke before that
silence, and how long the agent has been talking."""
HOPS_A_UNIT = 10.0
"""The head computes in units of 100 ms, so that its weights are about 1 and one learning rate suits them all."""
SHARPNESS = 1.0


class _Threshold(nn.Linear):
    """Logits in the precision of what was measured: in bfloat16 one hop more of silence is none after 2.56 s."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class TurnHead(nn.Module):
    """Measures (..., 4) to the logits (..., 2) of answering and of stopping."""

    def __init__(self, answer_after_s: float = 0.7, stop_after_s: float = 0.3) -> None:
        super().__init__()
        self.answer = _Threshold(len(MEASURES), 1)
        self.stop = _Threshold(len(MEASURES), 1)
        with torch.no_grad():
            for part, measure, seconds in (
                (self.answer, "silence", answer_after_s),
                (self.stop, "speech", stop_after_s),
            ):
                part.weight.zero_()
                part.weight[0, MEASURES.index(measure)] = SHARPNESS
                part.bias.fill_(-SHARPNESS * 10.0 * seconds)

    def forward(self, measures: Tensor) -> Tensor:
        """Of hops (..., 4) to logits (..., 2), not below float32."""
        x = measures.to(torch.promote_types(self.answer.weight.dtype, torch.float32)) / HOPS_A_UNIT
        return torch.cat((self.answer(x), self.stop(x)), dim=-1)

    @torch.no_grad()
    def thresholds_s(self) -> tuple[float, float]:
        """Silence after which answering, and speech after which stopping, has even odds: after a user turn of 1 s and
        after as much talk of the agent."""
        rest = torch.tensor([0.0, 0.0, 100.0, 100.0]) / HOPS_A_UNIT
        found = []
        for part, measure in ((self.answer, 0), (self.stop, 1)):
            other = rest.clone().to(part.weight)
            if measure == 1:
                other[2] = 0
            slope = float(part.weight[0, measure])
            found.append(-(float(part.bias) + float(part.weight[0] @ other)) / slope / 10.0 if slope else float("inf"))
        return found[0], found[1]
