"""How good an answer is, from 0 to 1."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data.items import Kind

DRAWS = 2000


def score_answer(kind: Kind, answer: str, label: str) -> float:
    """Whether a label or a name is met exactly; of free text, the F1 of its words."""
    return word_f1(answer, label) if kind == "completion" else float(answer == label)


def mean_with_interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """The mean over items and its 95 % interval, bootstrapped over them (Efron 1979)."""
    values = np.asarray(scores, np.float64)
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def word_f1(answer: str, label: str) -> float:
    """F1 of the words that both have (SQuAD; Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).

    Case and punctuation do not count.
    """
    words = [Counter(re.findall(r"\w+", text.lower())) for text in (answer, label)]
    shared = sum((words[0] & words[1]).values())
    if not shared:
        return float(not words[0] and not words[1])
    precision, recall = (shared / sum(count.values()) for count in words)
    return 2 * precision * recall / (precision + recall)
