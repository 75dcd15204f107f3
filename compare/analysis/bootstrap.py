"""Scores with 95 % confidence intervals over held-out items and seeds, paired between methods.

Items: each of 2,000 bootstrap resamples (Efron 1979) draws the held-out documents or items with
replacement. All methods use the same resamples, so differences between methods are paired.

Seeds: the variation between seeds is added from Student's t, scaled by the standard error over
seeds. The degrees of freedom are the number of seeds minus one; a difference has Welch's (1947).
Resampling three seeds would underestimate this variation. Seeds are not paired between methods:
two methods that share the labels of a seed correlate positively, so this error is too large rather
than too small, while pairs of three seeds would leave two degrees of freedom.

Multiple comparisons are not corrected for yet: no correction such as Holm's (1979) is applied.
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
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resamples: np.ndarray | Sequence[float]) -> "Estimate":
        """The value and the 2.5 % and 97.5 % quantiles of its resamples."""
        return cls(value, *map(float, np.quantile(resamples, (0.025, 0.975))))

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Resampled(NamedTuple):
    """A measured value with its bootstrap resamples over items and its standard error over seeds."""

    value: float
    item_resamples: np.ndarray
    """(RESAMPLES,) float64: the value in each resample of the items, without variation of seeds."""
    seed_error: float = 0.0
    """Standard error over seeds; 0 with one seed, where it is unknown."""
    degrees: float = 1.0
    """Degrees of freedom of `seed_error`."""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest possible value; the interval is clipped to them."""

    @property
    def resamples(self) -> np.ndarray:
        """(RESAMPLES,) float64: the value in each resample, with variation of seeds."""
        if not self.seed_error:
            return self.item_resamples
        # Seeded by the numbers: a report can be reproduced, and a - b and b - a have mirrored intervals.
        digest = hashlib.sha256(np.array([abs(self.value), self.seed_error]).tobytes()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8])).permutation(RESAMPLES)
        draws = math.copysign(1.0, self.value) * _t_quantiles(self.degrees)[order]
        return self.item_resamples + draws * self.seed_error

    @property
    def estimate(self) -> Estimate:
        """The value and its interval, clipped to the limits."""
        _, low, high = Estimate.of(self.value, self.resamples)
        return Estimate(self.value, max(low, self.limits[0]), min(high, self.limits[1]))

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference of two scores, paired by items; degrees of freedom by Welch."""
        error = math.hypot(self.seed_error, other.seed_error)
        parts = sum(x.seed_error**4 / x.degrees for x in (self, other))
        degrees = error**4 / parts if parts else 1.0
        return Resampled(self.value - other.value, self.item_resamples - other.item_resamples, error, degrees)


@lru_cache(maxsize=512)
def _t_quantiles(degrees: float) -> np.ndarray:
    # (RESAMPLES,): evenly spaced, since 2,000 random draws from so heavy a tail would be too noisy.
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError("intervals over seeds need: pip install -e '.[compare]'") from None
    return t.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES, degrees)


def score(rows: Sequence[Row], axis: str) -> Resampled:
    """The score of one method at one size, from one row per seed.

    On "text" bits per byte, on "task" the share of items answered correctly. Raises ValueError if
    the rows were not measured on the same held-out documents or items.
    """
    first = rows[0]
    key = "document_bits" if axis == "text" else "correct"
    if len({len(row[key]) for row in rows}) > 1:
        raise ValueError(f"{first['id']}: seeds were measured on different held-out data")
    matrix = np.array([row[key] for row in rows], np.float64)  # (seeds, documents or items)
    if axis == "text":
        resampled = resample(matrix, np.array(first["document_bytes"], np.float64))
        return resampled._replace(limits=(0.0, math.inf))
    return resample(matrix, np.ones(matrix.shape[1]))._replace(limits=(0.0, 1.0))


def resample(matrix: np.ndarray, weights: np.ndarray) -> Resampled:
    """Bootstrap of the sum of `matrix` (seeds, items) over the sum of `weights` (items,)."""
    seeds, items = matrix.shape
    counts = _resample_counts(items)
    resamples = counts @ matrix.mean(0) / (counts @ weights)
    by_seed = matrix.sum(1) / weights.sum()
    error = float(by_seed.std(ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    return Resampled(float(by_seed.mean()), resamples, error, max(1.0, seeds - 1.0))


@lru_cache(maxsize=8)
def _resample_counts(items: int) -> np.ndarray:
    # (RESAMPLES, items): how often a resample draws each item. Seeded by the number of items, so
    # that all methods have the same resamples.
    generator = np.random.default_rng(items)
    return generator.multinomial(items, np.full(items, 1 / items), RESAMPLES)


def calibration_error(rows: Sequence[Row], bins: int = 10) -> float | None:
    """Expected calibration error in equal-width bins (Guo et al. 2017, arXiv:1706.04599, s. 3).

    None if the method reports no confidence.
    """
    if "confidence" not in rows[0]:
        return None
    confidence = np.concatenate([row["confidence"] for row in rows])
    correct = np.concatenate([row["correct"] for row in rows])
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[bin_of == b].mean() - confidence[bin_of == b].mean()) * (bin_of == b).mean()
        for b in range(bins)
        if (bin_of == b).any()
    ]
    return float(sum(gaps))
