"""Scores with 95 % intervals over held-out items and seeds, paired between methods.

In each of 2,000 resamples the held-out documents or items are drawn anew (bootstrap; Efron 1979), the
same ones for every method, so that differences between methods are paired. What another choice of seeds
would have given is added from Student's t, scaled by the standard error over seeds, with their
number minus one degrees of freedom, in a difference with Welch's (1947): three seeds resampled
would know far too little of a fourth. Seeds are not paired: the labels that two methods share by a
seed can only move them together, which makes this error too large rather than too small, while
pairs of three would leave two degrees of freedom.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cli.errors import UserError

RESAMPLES = 2000
Row = dict


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Resampled(NamedTuple):
    """What was measured, what each resample's items would have given, and how far seeds go apart."""

    value: float
    items: np.ndarray  # (RESAMPLES,)
    error: float = 0.0
    """Standard error over seeds; 0 for one seed, which says nothing of others."""
    freedom: float = 1.0
    limits: tuple[float, float] = (-math.inf, math.inf)
    """Beyond which no value can lie."""

    @property
    def resamples(self) -> np.ndarray:
        """(RESAMPLES,) what each resample would have measured, with other seeds."""
        if not self.error:
            return self.items
        # The same draws for the same numbers: a report is the same each time it is made, and a
        # difference the other way round has the same interval.
        digest = hashlib.sha256(np.array([abs(self.value), self.error]).tobytes()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8])).permutation(RESAMPLES)
        draws = math.copysign(1.0, self.value) * _student(self.freedom)[order]
        return self.items + draws * self.error

    @property
    def estimate(self) -> Estimate:
        """The value with the middle 95 % of the resamples."""
        low, high = np.clip(np.quantile(self.resamples, (0.025, 0.975)), *self.limits)
        return Estimate(self.value, float(low), float(high))

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference, paired by items."""
        error = math.hypot(self.error, other.error)
        parts = sum(x.error**4 / x.freedom for x in (self, other))
        freedom = error**4 / parts if parts else 1.0
        return Resampled(self.value - other.value, self.items - other.items, error, freedom)


@lru_cache(maxsize=512)
def _student(freedom: float) -> np.ndarray:
    # (RESAMPLES,) evenly spaced quantiles: so few draws of so heavy a tail would decide by luck.
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError("intervals over seeds need: pip install -e '.[compare]'") from None
    return t.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES, freedom)


def score(rows: Sequence[Row], axis: str) -> Resampled:
    """Bits per byte, or the share of items answered right, of one method at one size, a row per seed.

    Raises ValueError if the rows were not measured on the same held-out documents or items.
    """
    first = rows[0]
    key = "document_bits" if axis == "text" else "correct"
    if len({len(row[key]) for row in rows}) > 1:
        raise ValueError(f"{first['id']}: seeds were measured on different held-out data")
    matrix = np.array([row[key] for row in rows], np.float64)  # (seeds, documents or items)
    if axis == "text":
        found = resample(matrix, np.array(first["document_bytes"], np.float64))
        return found._replace(limits=(0.0, math.inf))
    return resample(matrix, np.ones(matrix.shape[1]))._replace(limits=(0.0, 1.0))


def resample(matrix: np.ndarray, weights: np.ndarray) -> Resampled:
    """Sum of (seeds, items) `matrix` over that of (items,) `weights`, with its resamples."""
    seeds, items = matrix.shape
    counts = _counts(items)
    resamples = counts @ matrix.mean(0) / (counts @ weights)
    each = matrix.sum(1) / weights.sum()
    error = float(each.std(ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    return Resampled(float(each.mean()), resamples, error, max(1.0, seeds - 1.0))


@lru_cache(maxsize=8)
def _counts(items: int) -> np.ndarray:
    # (RESAMPLES, items): how often each is drawn; the same resamples for every method.
    shared = np.random.default_rng(items)
    return shared.multinomial(items, np.full(items, 1 / items), RESAMPLES)


def calibration_error(rows: Sequence[Row], bins: int = 10) -> float | None:
    """Expected calibration error in equal-width bins (Guo et al. 2017, arXiv:1706.04599, s. 3).

    None if an method says nothing of how sure it is.
    """
    if "confidence" not in rows[0]:
        return None
    sure = np.concatenate([row["confidence"] for row in rows])
    right = np.concatenate([row["correct"] for row in rows])
    at = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [
        abs(right[at == b].mean() - sure[at == b].mean()) * (at == b).mean() for b in range(bins) if (at == b).any()
    ]
    return float(sum(gaps))
