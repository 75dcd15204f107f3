"""Estimates with 95 % intervals from ledger rows of one arm, one row per seed.

With one seed an accuracy gets Wilson's score interval (1927). Everything else is bootstrapped
(Efron 1979) over held-out documents or items and over seeds together; differences between arms are
paired: both are drawn with the same documents or items.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bits_per_byte(rows: list[dict]) -> Estimate | None:
    """Bits of all held-out documents over their bytes; None if the arm has not been scored."""
    if "document_bits" not in rows[0]:
        return None
    return _bootstrap(_matrix(rows, "document_bits"), np.array(rows[0]["document_bytes"]))


def accuracy(rows: list[dict]) -> Estimate | None:
    """Share of items answered right; None if the arm has not been asked."""
    if "correct" not in rows[0]:
        return None
    correct = _matrix(rows, "correct")
    if len(correct) > 1 or not np.isin(correct, (0, 1)).all():  # shares of an answer
        return _bootstrap(correct, np.ones(correct.shape[1]))
    from scipy.stats import binomtest

    test = binomtest(int(correct.sum()), correct.size)
    interval = test.proportion_ci(method="wilson")
    return Estimate(float(correct.mean()), float(interval.low), float(interval.high))


def difference(a: list[dict], b: list[dict], key: str) -> Estimate:
    """Score of `a` minus that of `b`, paired; `key` is document_bits or correct."""
    first, second = _matrix(a, key), _matrix(b, key)
    weights = np.array(a[0]["document_bytes"]) if key == "document_bits" else None
    weights = np.ones(first.shape[1]) if weights is None else weights
    return _bootstrap(first, weights, second)


def _matrix(rows: list[dict], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=np.float64)  # (seeds, documents or items)


def _bootstrap(
    values: np.ndarray, weights: np.ndarray, minus: np.ndarray | None = None
) -> Estimate:
    generator = np.random.default_rng(0)
    columns = values.shape[1]
    drawn = generator.multinomial(columns, np.full(columns, 1 / columns), DRAWS)

    def scores(matrix: np.ndarray) -> np.ndarray:
        seeds = len(matrix)
        means = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) @ matrix / seeds
        return (drawn * means).sum(1) / (drawn @ weights)

    draws = scores(values) - (scores(minus) if minus is not None else 0.0)
    value = values.mean(0).sum() / weights.sum()
    value -= minus.mean(0).sum() / weights.sum() if minus is not None else 0.0
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))
