"""Judgement: reward terms, their composition and audit, evaluation measures and their intervals. No torch."""

from rewards.compose import OURS, PUBLISHED, Composition, term_values
from rewards.registry import Reward, get, names, reward
from rewards.verdict import Verdict
from rewards.view import EpisodeView

__all__ = [
    "OURS",
    "PUBLISHED",
    "Composition",
    "EpisodeView",
    "Reward",
    "Verdict",
    "get",
    "names",
    "reward",
    "term_values",
]
