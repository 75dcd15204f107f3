"""What pays: after how many requests training is cheaper than prompting."""

import math

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
