"""Scores of answers, from 0 to 1, and their bootstrap confidence interval."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data.items import Kind

RESAMPLES = 2000


def score_answer(kind: Kind, answer: str, label: str) -> float:
    """Exact match (0 or 1) for a label or a name; word F1 for free text."""
    return word_f1(answer, label) if kind == "completion" else float(answer == label)


def mean_with_interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Mean over items and the bounds of its 95 % bootstrap confidence interval (Efron 1979)."""
    values = np.asarray(scores, np.float64)
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def word_f1(answer: str, label: str) -> float:
    """F1 of the shared words (SQuAD; Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).

    Ignores case and punctuation.
    """
    words = [Counter(re.findall(r"\w+", text.lower())) for text in (answer, label)]
    shared = sum((words[0] & words[1]).values())
    if not shared:
        return float(not words[0] and not words[1])
    precision, recall = (shared / sum(count.values()) for count in words)
    return 2 * precision * recall / (precision + recall)
