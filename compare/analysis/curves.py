"""Learning curves: where two curves cross, and extrapolation by a power law."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compare.analysis.bootstrap import Estimate, Resampled

MIN_SIZES = 4  # a power law with an irreducible loss has three parameters
MAX_FIT_ERROR = 0.05  # largest error of a fit at a measured size, as a share of the fall of the curve
MIN_RESAMPLES = 0.95  # share of the resamples in which a finding must hold to be reported


def find_crossing(
    sizes: Sequence[float], a: Sequence[Resampled], b: Sequence[Resampled] | Resampled
) -> Estimate | None:
    """The first size at which curve `a` crosses `b` (a curve at the same sizes, or a constant).

    Curves are interpolated linearly in the logarithm of the size. None unless the curves cross in
    95 % of the resamples; nothing is extrapolated beyond the measured sizes.
    """
    others = [b] * len(sizes) if isinstance(b, Resampled) else b
    gaps = np.array([(x.resamples - y.resamples) for x, y in zip(a, others, strict=True)])
    value = _first_crossing([x.value - y.value for x, y in zip(a, others, strict=True)], sizes)
    found = np.array([_first_crossing(column, sizes) for column in gaps.T])
    exists = np.isfinite(found)
    if not math.isfinite(value) or exists.mean() < MIN_RESAMPLES:
        return None
    return Estimate.of(value, found[exists])


def _first_crossing(gaps: Sequence[float] | np.ndarray, sizes: Sequence[float]) -> float:
    # The size of the first change of sign, NaN if there is none.
    for i in range(len(sizes) - 1):
        if gaps[i] * gaps[i + 1] <= 0 and gaps[i]:
            share = gaps[i] / (gaps[i] - gaps[i + 1])
            logs = math.log(sizes[i]), math.log(sizes[i + 1])
            return math.exp(logs[0] + share * (logs[1] - logs[0]))
    return math.nan


class PowerLaw(NamedTuple):
    """loss = irreducible + scale * size ** -power."""

    irreducible: float
    scale: float
    power: float
    max_error: float
    """Largest absolute error at a measured size."""

    def predict(self, size: float) -> float:
        """The loss at `size`, also extrapolated."""
        return self.irreducible + self.scale * size**-self.power


def fit_power_law(sizes: Sequence[float], values: Sequence[float] | np.ndarray) -> PowerLaw | None:
    """A power law with an irreducible loss (Hestness et al. 2017, arXiv:1712.00409), by least squares.

    The power is searched on a grid, the other parameters are a linear fit. None with fewer than
    four sizes, if the loss does not fall, or if the fit is off by more than MAX_FIT_ERROR: then
    nothing can be extrapolated.
    """
    if len(sizes) < MIN_SIZES or values[-1] >= values[0]:
        return None
    x, y = np.array(sizes, float), np.array(values, float)
    best: tuple[float, PowerLaw] | None = None
    for power in np.geomspace(0.02, 3, 200):
        terms = np.stack([np.ones_like(x), x**-power], 1)
        (irreducible, scale), *_ = np.linalg.lstsq(terms, y, rcond=None)
        if irreducible < 0:  # a loss cannot be negative
            irreducible, scale = 0.0, float((y * x**-power).sum() / (x ** (-2 * power)).sum())
        error = float(np.abs(irreducible + scale * x**-power - y).max())
        if scale > 0 and (best is None or error < best[0]):
            best = error, PowerLaw(float(irreducible), float(scale), float(power), error)
    return best[1] if best and best[0] <= MAX_FIT_ERROR * (y[0] - y[-1]) else None
