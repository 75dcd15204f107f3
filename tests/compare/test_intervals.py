"""Coverage of the intervals on text, on simulated studies whose truth is known."""

import math

import numpy as np
import pytest

from compare.analysis.bootstrap import Estimate, resample
from compare.analysis.curves import find_crossing

SIZES = (0.01, 0.1, 0.3, 1.0)
CURVES = {"scratch": (2.6, 2.0, 1.8, 1.5), "lora": (2.1, 2.05, 1.95, 1.9), "xz": (1.7,)}
TRIALS = 2000


def simulated(draw, documents, groups, seeds, spread):
    """Scores of every method at every size: difficulty per document, group and method, and variation of seeds."""
    group_of = np.repeat(np.arange(groups), documents // groups)
    length = np.exp(draw.normal(5.5, 0.6, documents)).round()
    hard = 0.15 * draw.normal(size=documents) + 0.1 * draw.normal(size=groups)[group_of]
    scores = {}
    for name, curve in CURVES.items():
        own = 0.08 * draw.normal(size=documents) + 0.05 * draw.normal(size=groups)[group_of]
        of_seeds = np.zeros((1, 1)) if name == "xz" else spread * draw.normal(size=(len(curve), seeds, 1))
        bits = np.array(curve)[:, None, None] + hard + own + 0.03 * draw.normal(size=documents) + of_seeds
        scores[name] = [resample(each * length, length, group_of.tolist()) for each in bits]
    return scores


def true_crossing():
    gaps = [a - b for a, b in zip(CURVES["scratch"], CURVES["lora"], strict=True)]
    share = gaps[0] / (gaps[0] - gaps[1])  # between the first two sizes
    return math.exp(math.log(SIZES[0]) + share * (math.log(SIZES[1]) - math.log(SIZES[0])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("documents", "groups", "seeds", "spread"),
    [(64, 64, 1, 0.0), (64, 64, 3, 0.03), (120, 40, 3, 0.03), (60, 20, 3, 0.03)],
)
def test_intervals_cover_the_true_value_on_text(documents, groups, seeds, spread):
    draw, held = np.random.default_rng(7), dict.fromkeys(("score", "difference", "distance", "crossing"), 0)
    for _ in range(TRIALS):
        scores = simulated(draw, documents, groups, seeds, spread)
        (*_, scratch), (*_, lora), (xz,) = scores.values()
        crossing = find_crossing(SIZES, scores["scratch"], scores["lora"])
        assert crossing
        found = {
            "score": (scratch.estimate, 1.5),
            "difference": (scratch.minus(lora).estimate, 1.5 - 1.9),
            "distance": (Estimate.of(lora.value / xz.value, lora.resamples / xz.resamples), 1.9 / 1.7),
            "crossing": (crossing, true_crossing()),
        }
        for name, (interval, truth) in found.items():
            held[name] += interval.low <= truth <= interval.high
    assert min(held.values()) / TRIALS >= 0.93, held
