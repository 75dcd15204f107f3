"""Curves over sizes: where two cross, what a prompt is worth, what more data would buy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compare.analysis.bootstrap import Resampled

NEAR = 0.05  # share of the fall of a curve that a fit may be off
SURE = 0.95  # share of the resamples in which something must be so to be said


class Crossing(NamedTuple):
    """The size at which one curve meets another, with its 95 % interval."""

    value: float
    low: float
    high: float


def crossing(sizes: Sequence[float], a: Sequence[Resampled], b: Sequence[Resampled] | Resampled) -> Crossing | None:
    """Where curve `a` passes `b` (a curve at the same sizes, or one level), from either side.

    Between sizes both are straight in the logarithm of the size. The first passing counts. None
    unless there is one in 95 % of the resamples: nothing is said of what lies outside the sizes.
    """
    levels = [b] * len(sizes) if isinstance(b, Resampled) else b
    gaps = np.array([(x.resamples - y.resamples) for x, y in zip(a, levels, strict=True)])
    value = _first([x.value - y.value for x, y in zip(a, levels, strict=True)], sizes)
    found = np.array([_first(column, sizes) for column in gaps.T])
    there = np.isfinite(found)
    if not math.isfinite(value) or there.mean() < SURE:
        return None
    low, high = np.quantile(found[there], (0.025, 0.975))
    return Crossing(value, float(low), float(high))


def _first(gaps: Sequence[float] | np.ndarray, sizes: Sequence[float]) -> float:
    # The size of the first change of sign, NaN if there is none.
    for i in range(len(sizes) - 1):
        if gaps[i] * gaps[i + 1] <= 0 and gaps[i]:
            share = gaps[i] / (gaps[i] - gaps[i + 1])
            logs = math.log(sizes[i]), math.log(sizes[i + 1])
            return math.exp(logs[0] + share * (logs[1] - logs[0]))
    return math.nan


class Fit(NamedTuple):
    """Loss = floor + scale * size ** -power, and how far it is off at the sizes measured."""

    floor: float
    scale: float
    power: float
    off: float

    def at(self, size: float) -> float:
        """What the curve says at a size."""
        return self.floor + self.scale * size**-self.power


def scaling(sizes: Sequence[float], values: Sequence[float]) -> Fit | None:
    """A power law with a floor (Hestness et al. 2017, arXiv:1712.00409), by least squares.

    The power is searched, the rest is linear. None with fewer than three sizes, where the loss does
    not fall, or where it falls otherwise: then nothing can be said of more data.
    """
    if len(sizes) < 3 or values[-1] >= values[0]:
        return None
    x, y = np.array(sizes, float), np.array(values, float)
    best: tuple[float, Fit] | None = None
    for power in np.geomspace(0.02, 3, 200):
        terms = np.stack([np.ones_like(x), x**-power], 1)
        (floor, scale), *_ = np.linalg.lstsq(terms, y, rcond=None)
        if floor < 0:  # bits are not
            floor, scale = 0.0, float((y * x**-power).sum() / (x ** (-2 * power)).sum())
        off = float(np.abs(floor + scale * x**-power - y).max())
        if scale > 0 and (best is None or off < best[0]):
            best = off, Fit(float(floor), float(scale), float(power), off)
    return best[1] if best and best[0] <= NEAR * (y[0] - y[-1]) else None
