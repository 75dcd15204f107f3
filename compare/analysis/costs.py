"""What pays: break-even numbers of requests, and arms that no other beats in quality and cost."""

import math
from collections.abc import Mapping

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


def pareto(quality: Mapping[str, float], total: Mapping[str, float]) -> list[str]:
    """Arms that none beats in one of quality and cost and equals in the other; cheapest first."""
    front: list[str] = []
    for arm in sorted(quality, key=lambda a: (total[a], -quality[a])):
        if all(quality[arm] > quality[other] for other in front):
            front.append(arm)
    return front
