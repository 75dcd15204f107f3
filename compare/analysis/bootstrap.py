"""Scores with 95 % confidence intervals over held-out items and seeds, paired between methods.

Items: each of 2,000 bootstrap resamples (Efron 1979) draws groups of held-out documents or items with
replacement, and items within each drawn group. All methods use the same resamples, so differences
between methods are paired. Items that are not of a group are groups of their own.

Seeds: the standard error over seeds is added to that over items. Seeds are not paired between
methods: two methods that share the labels of a seed correlate positively, so this error is too large
rather than too small, while pairs of three seeds would leave two degrees of freedom.

An interval is the value plus and minus the error times a quantile of Student's t, whose degrees of
freedom are Satterthwaite's (1946): of both errors, and for a difference Welch's (1947) over seeds.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cli.errors import UserError

RESAMPLES = 2000
MOST_DEGREES = 1e6  # practically the normal distribution
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
    seed_degrees: float = 1.0
    """Degrees of freedom of `seed_error`."""
    item_degrees: float = math.inf
    """Degrees of freedom of the error over items: groups minus one."""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest possible value; the interval is clipped to them."""

    @property
    def item_error(self) -> float:
        """Standard error over items."""
        return float(self.item_resamples.std(ddof=1))

    @property
    def error(self) -> float:
        """Standard error over items and seeds."""
        return math.hypot(self.item_error, self.seed_error)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of `error`, by Satterthwaite."""
        parts = self.item_error**4 / self.item_degrees + self.seed_error**4 / self.seed_degrees
        return min(self.error**4 / parts, MOST_DEGREES) if parts else MOST_DEGREES

    @property
    def resamples(self) -> np.ndarray:
        """(RESAMPLES,) float64: the value in each resample, with variation of seeds."""
        if not self.seed_error:
            return self.item_resamples
        # Seeded by the numbers: a report can be reproduced, and a - b and b - a have mirrored intervals.
        digest = hashlib.sha256(np.array([abs(self.value), self.seed_error]).tobytes()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8])).permutation(RESAMPLES)
        draws = math.copysign(1.0, self.value) * _t_quantiles(self.seed_degrees)[order]
        return self.item_resamples + draws * self.seed_error

    @property
    def estimate(self) -> Estimate:
        """The value and its interval, clipped to the limits.

        Where all items are right, or none, no resample differs: then the exact binomial interval of one seed
        (Clopper & Pearson 1934).
        """
        if self.limits == (0.0, 1.0) and not self.error and self.value in self.limits and self.item_degrees < math.inf:
            bound = 0.025 ** (1 / (self.item_degrees + 1))
            return Estimate(1.0, bound, 1.0) if self.value else Estimate(0.0, 0.0, 1 - bound)
        half = float(_student().stdtrit(self.degrees, 0.975)) * self.error if self.error else 0.0
        return Estimate(self.value, max(self.value - half, self.limits[0]), min(self.value + half, self.limits[1]))

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the true value is at most `bound`."""
        if not self.error:
            return 0.0 if self.value > bound else 1.0
        return float(_student().stdtr(self.degrees, (bound - self.value) / self.error))

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference of two scores, paired by items; degrees of freedom over seeds by Welch."""
        error = math.hypot(self.seed_error, other.seed_error)
        parts = sum(x.seed_error**4 / x.seed_degrees for x in (self, other))
        degrees = error**4 / parts if parts else 1.0
        items = self.item_resamples - other.item_resamples
        return Resampled(self.value - other.value, items, error, degrees, min(self.item_degrees, other.item_degrees))


def _student() -> Any:
    # The distribution and its quantiles: stdtr, stdtrit.
    try:
        from scipy import special
    except ImportError:
        raise UserError("intervals need: pip install -e '.[compare]'") from None
    return special


@lru_cache(maxsize=512)
def _t_quantiles(degrees: float) -> np.ndarray:
    # (RESAMPLES,): evenly spaced, since 2,000 random draws from so heavy a tail would be too noisy.
    return _student().stdtrit(degrees, (np.arange(RESAMPLES) + 0.5) / RESAMPLES)


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
    groups = tuple(first.get("groups") or range(matrix.shape[1]))
    if axis == "text":
        resampled = resample(matrix, np.array(first["document_bytes"], np.float64), groups)
        return resampled._replace(limits=(0.0, math.inf))
    return resample(matrix, np.ones(matrix.shape[1]), groups)._replace(limits=(0.0, 1.0))


def resample(matrix: np.ndarray, weights: np.ndarray, groups: Sequence[int] = ()) -> Resampled:
    """Bootstrap of the sum of `matrix` (seeds, items) over the sum of `weights` (items,).

    `groups` has the number of each item's group; empty: no two items are of one group.
    """
    seeds, items = matrix.shape
    groups = tuple(groups) or tuple(range(items))
    counts = _resample_counts(groups)
    resamples = counts @ matrix.mean(0) / np.maximum(counts @ weights, weights.min())
    by_seed = matrix.sum(1) / weights.sum()
    error = float(by_seed.std(ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    degrees = max(1.0, len(set(groups)) - 1.0)
    return Resampled(float(by_seed.mean()), resamples, error, max(1.0, seeds - 1.0), degrees)


@lru_cache(maxsize=8)
def _resample_counts(groups: tuple[int, ...]) -> np.ndarray:
    # (RESAMPLES, items): how often a resample draws each item. Seeded by the number of items, so
    # that all methods have the same resamples.
    members: dict[int, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    generator = np.random.default_rng(len(groups))
    drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES)
    counts = np.zeros((RESAMPLES, len(groups)))
    for (_, items), times in zip(members.items(), drawn.T, strict=True):
        size = len(items)
        counts[:, items] = generator.multinomial(times * size, np.full(size, 1 / size)) if size > 1 else times[:, None]
    return counts


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
