"""What pays: after how many requests training is cheaper than prompting, and the front."""

import math
from collections.abc import Sequence

from compare.analysis.ledger import Cost


def break_even(trained: Cost, prompted: Cost, unit: str = "seconds") -> float | None:
    """After how many requests training has paid for itself (Liu et al. 2022, arXiv:2205.05638).

    `unit` is "seconds" or "flops". None if its requests are not the cheaper ones; 0 if it is
    cheaper from the start.
    """
    each = [getattr(cost, f"request_{unit}") for cost in (trained, prompted)]
    once = [getattr(cost, f"once_{unit}") for cost in (trained, prompted)]
    if None in each or each[0] >= each[1]:
        return None
    return max(0.0, math.ceil((once[0] - once[1]) / (each[1] - each[0])))


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Which (by number) are beaten by none in both cost and score (Pareto), the cheapest first."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not found or scores[i] > scores[found[-1]]:
            found.append(i)
    return found
