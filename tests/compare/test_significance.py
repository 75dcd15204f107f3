"""Claims about differences, on simulated studies whose truth is known."""

import numpy as np
import pytest

from compare.analysis.bootstrap import resample, score
from compare.analysis.significance import detectable_difference, find_claims, holm

ITEMS, SEEDS = 200, 3


def simulated(draw, methods, skill, seeds, groups, spread, lead=0.0):
    """Scores of methods on the same items in groups; the first one has `lead` more of them right."""
    group_of = np.repeat(np.arange(groups), ITEMS // groups)
    hard = np.clip(draw.uniform(0, 0.3, ITEMS) + draw.normal(0, 0.15, groups)[group_of], -0.2, 0.5)
    scores = {}
    for number in range(methods):
        chance = skill + lead * (number == 0) - hard + spread * draw.normal(size=(seeds, 1))
        right = (draw.random((seeds, ITEMS)) < np.clip(chance, 0, 1)).astype(float)
        scores[f"m{number}"] = resample(right, np.ones(ITEMS), group_of.tolist())
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_a_study_of_identical_methods_makes_a_wrong_claim_in_at_most_one_of_twenty(spread):
    draw, wrong, studies = np.random.default_rng(0), 0, 2000
    for _ in range(studies):
        scores = list(simulated(draw, 18, 0.7, SEEDS, 50, spread).items())
        baselines, methods, with_more_budget = dict(scores[:2]), dict(scores[2:15]), dict(scores[15:])
        found = find_claims([(methods, baselines), (with_more_budget, baselines)], lambda a, b: a.minus(b))
        wrong += any(claims.better or claims.worse or claims.best for claims in found)
    share = wrong / studies
    assert share <= 0.05
    assert share + 1.64 * (share * (1 - share) / studies) ** 0.5 <= 0.06


@pytest.mark.slow
def test_a_planted_difference_is_found_with_the_power_that_the_plan_states():
    draw, studies = np.random.default_rng(1), 200
    lead = detectable_difference(ITEMS, 13, 2)
    found = 0
    for _ in range(studies):
        scores = simulated(draw, 15, 0.7, SEEDS, ITEMS, 0.0, lead=lead)
        names = list(scores)
        methods, baselines = {n: scores[n] for n in (names[0], *names[3:])}, {n: scores[n] for n in names[1:3]}
        (claims,) = find_claims([(methods, baselines)], lambda a, b: a.minus(b))
        found += "m0" in claims.better
    assert found / studies >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "seeds"), [(ITEMS, 1), (ITEMS, 3), (40, 3), (20, 3)])
def test_intervals_cover_the_true_value_with_groups_and_seeds(groups, seeds):
    draw, held, trials = np.random.default_rng(groups + seeds), 0, 2000
    spread = 0.03 if seeds > 1 else 0.0
    # The expected score: hardness is clipped, so it is estimated from many draws.
    truth = np.mean([simulated(draw, 1, 0.7, 1, groups, 0.0)["m0"].value for _ in range(3000)])
    for _ in range(trials):
        low, high = simulated(draw, 1, 0.7, seeds, groups, spread)["m0"].estimate[1:]
        held += low <= truth <= high
    assert held / trials >= 0.93


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("right", "low", "high"), [(1.0, 0.7151, 1.0), (0.0, 0.0, 0.2849)])
def test_eleven_of_eleven_items_are_no_certainty(right, low, high):
    found = score([{"id": "x", "correct": [right] * 11}], "task").estimate
    assert found == pytest.approx((right, low, high), abs=1e-4)
