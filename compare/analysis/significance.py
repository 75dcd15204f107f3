"""Claims of a study about differences, corrected for their number.

All claims on one axis are one family, corrected by Holm (1979): the chance that any of them is wrong is
at most 5 %. Two kinds are in it, at every size and budget: a method is better, or worse, than the
baselines; and a method is better than all others. "Better than all" needs every single difference, so its p-value is
the largest of them (an intersection-union test; Berger 1982). "Worse than the best baseline" needs
only one, so its p-value is the smallest, times their number (Bonferroni).
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from compare.analysis.bootstrap import Resampled

LEVEL = 0.05
POWER = 0.8
Score = Resampled
Advantage = Callable[[Score, Score], Score]
"""By how much the first is better than the second."""


class Claims(NamedTuple):
    """Which claims about the methods of one comparison hold, by name of the method."""

    better: set[str]
    """Than every baseline."""
    worse: set[str]
    """Than the best baseline."""
    best: str
    """The method that is better than all others; "" if there is none."""


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down procedure."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def find_claims(
    comparisons: Sequence[tuple[Mapping[str, Score], Mapping[str, Score]]], advantage: Advantage
) -> list[Claims]:
    """The `Claims` of each comparison, of its methods and its baselines, all as one family."""
    claims: list[tuple[int, str, str]] = []
    p_values: list[float] = []

    def add(number: int, kind: str, method: str, p: float) -> None:
        claims.append((number, kind, method))
        p_values.append(p)

    for number, (methods, baselines) in enumerate(comparisons):
        for name, score in methods.items():
            if baselines:
                ahead = [advantage(score, each).p_above() for each in baselines.values()]
                behind = [advantage(each, score).p_above() for each in baselines.values()]
                add(number, "better", name, max(ahead))
                add(number, "worse", name, min(1.0, len(behind) * min(behind)))
            others = [advantage(score, other).p_above() for each, other in methods.items() if each != name]
            if others:
                add(number, "best", name, max(others))
    held = {claim for claim, p in zip(claims, holm(p_values), strict=True) if p <= LEVEL}
    return [
        Claims(
            {name for name in methods if (number, "better", name) in held},
            {name for name in methods if (number, "worse", name) in held},
            next((name for name in methods if (number, "best", name) in held), ""),
        )
        for number, (methods, _) in enumerate(comparisons)
    ]


def detectable_difference(items: int, methods: int, baselines: int, sizes: int = 1) -> float:
    """The share of items by which a method must be better than the baselines to be found with 80 % power.

    For items that half of the methods get right, answered independently by two methods, and no
    variation between seeds: a planning figure, rather too large than too small for hard or easy items.
    """
    claims = sizes * methods * (3 if baselines else 1)
    error = (2 * 0.25 / items) ** 0.5
    normal = NormalDist()
    power = 1 - (1 - POWER) / max(1, baselines)  # it must be better than every one
    return (normal.inv_cdf(1 - LEVEL / claims) + normal.inv_cdf(power)) * error
