"""What a ledger says: checked on resamples whose truth is known."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.errors import UserError
from compare.analysis.bootstrap import calibration_error, resample, score
from compare.analysis.costs import break_even, front
from compare.analysis.curves import crossing, scaling
from compare.analysis.ledger import Cost, Ledger, cost_of
from compare.analysis.verdict import verdict

ITEMS, SEEDS = 200, 3


def task_rows(method, size, skill, draw, seeds=SEEDS, spread=0.0, hardness=None):
    """Rows of an method whose chance on an item is its skill, less the item's hardness."""
    hardness = np.zeros(ITEMS) if hardness is None else hardness
    rows = []
    for seed in range(seeds):
        chance = np.clip(skill + spread * draw.normal() - hardness, 0, 1)
        right = (draw.random(ITEMS) < chance).astype(float)
        rows.append(
            {
                "id": f"{method}-task-{size:g}-{seed}",
                "arm": method,
                "axis": "task",
                "size": float(size),
                "seed": seed,
                "correct": right.tolist(),
                "search": [],
                "peak_bytes": 1,
                "seconds_per_request": 0.1,
                "training_seconds": 10.0,
                "training_steps": 5,
                "corpus": "c",
                "task": "t",
                "setting": {},
            }
        )
    return rows


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_the_same_model_under_two_names_is_no_difference(spread):
    draw = np.random.default_rng(0)
    told_apart = 0
    for trial in range(100):
        hardness = draw.uniform(0, 0.4, ITEMS)
        a, b = (task_rows(f"{name}{trial}", 64, 0.8, draw, spread=spread, hardness=hardness) for name in "ab")
        gap = score(a, "task").minus(score(b, "task")).estimate
        told_apart += not gap.low <= 0 <= gap.high
    assert told_apart <= 5


def test_the_same_model_under_two_names_needs_as_many_bits():
    draw = np.random.default_rng(4)
    told_apart = 0
    for _ in range(100):
        size = draw.integers(50, 500, 60)
        a, b = (
            [
                {"document_bits": (size * draw.normal(2, 0.3, 60)).tolist(), "id": "x", "document_bytes": size.tolist()}
                for _ in range(SEEDS)
            ]
            for _ in range(2)
        )
        gap = score(a, "text").minus(score(b, "text")).estimate
        told_apart += not gap.low <= 0 <= gap.high
    assert told_apart <= 5


def test_a_true_difference_is_found():
    draw = np.random.default_rng(1)
    found = 0
    for trial in range(50):
        hardness = draw.uniform(0, 0.4, ITEMS)
        a, b = (
            task_rows(f"{name}{trial}", 64, skill, draw, spread=0.01, hardness=hardness)
            for name, skill in (("a", 0.9), ("b", 0.7))
        )
        found += score(a, "task").minus(score(b, "task")).estimate.low > 0
    assert found >= 48


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    draw = np.random.default_rng(2)
    held = {"one seed": 0, "three seeds": 0, "bits": 0}
    for trial in range(200):
        rows = task_rows(f"x{trial}", 1, 0.7, draw, seeds=1)
        low, high = score(rows, "task").estimate[1:]
        held["one seed"] += low <= 0.7 <= high
        rows = task_rows(f"y{trial}", 1, 0.7, draw, spread=0.05)
        low, high = score(rows, "task").estimate[1:]
        held["three seeds"] += low <= 0.7 <= high
        sizes = draw.integers(50, 150, 80)
        bits = sizes * draw.normal(2.0, 0.5, (1, 80))
        low, high = resample(bits, sizes.astype(float)).estimate[1:]
        held["bits"] += low <= 2.0 <= high
    for name, count in held.items():
        assert count >= 0.9 * 200, name


def test_a_ratio_of_sums_is_what_it_is_and_no_seed_is_lost():
    rows = [
        {"id": "a", "arm": "a", "axis": "text", "size": 1.0, "document_bits": [8.0, 30.0], "document_bytes": [4, 10]},
        {"id": "b", "arm": "a", "axis": "text", "size": 1.0, "document_bits": [12.0, 20.0], "document_bytes": [4, 10]},
    ]
    assert score(rows, "text").value == pytest.approx((38 + 32) / 2 / 14)
    rows[1]["document_bits"] = [12.0]
    with pytest.raises(ValueError, match="different held-out data"):
        score(rows, "text")


def test_a_difference_is_paired_by_items_and_the_same_the_other_way_round():
    draw = np.random.default_rng(5)
    alone = task_rows("a", 8, 0.6, draw, seeds=1)
    gap = score(alone, "task").minus(score([r | {"id": "b"} for r in alone], "task")).estimate
    assert gap == (0.0, 0.0, 0.0)  # no item tells them apart, whichever are drawn
    a, b = (score(task_rows(name, 8, skill, draw, spread=0.1), "task") for name, skill in (("a", 0.7), ("b", 0.5)))
    there, back = a.minus(b).estimate, b.minus(a).estimate
    assert (-there.value, -there.high, -there.low) == pytest.approx(back)


def test_no_bound_is_impossible():
    draw = np.random.default_rng(6)
    rows = [r | {"correct": [float(seed == 1)] * ITEMS} for seed, r in enumerate(task_rows("a", 8, 0.5, draw))]
    assert score(rows, "task").estimate[1:] == (0.0, 1.0)
    level = score(task_rows("b", 8, 0.5, draw), "task")
    assert score(rows, "task").minus(level).estimate.low < -0.5  # differences know no such bounds


def test_rows_of_other_items_are_refused():
    draw = np.random.default_rng(7)
    rows = [r | {"items": ["x"] * ITEMS} for r in task_rows("a", 8, 0.5, draw)]
    other = [r | {"items": ["y"] * ITEMS} for r in task_rows("b", 8, 0.5, draw)]
    with pytest.raises(UserError, match="b-task-8-0 was measured on other held-out data than a-"):
        Ledger([*rows, *other])


def test_how_sure_an_arm_is_beside_how_right_it_is():
    rows = [{"confidence": [0.95] * 10 + [0.55] * 10, "correct": [1.0] * 10 + [0.0] * 10}]
    assert calibration_error(rows) == pytest.approx(0.5 * 0.05 + 0.5 * 0.55)
    assert calibration_error([{"correct": [1.0]}]) is None


def flat(value, name, noise=0.01):
    draw = np.random.default_rng(list(name.encode()))
    return resample(value + noise * draw.normal(size=(3, 100)), np.ones(100))


def test_curves_cross_where_they_cross():
    sizes = [10.0, 100.0, 1000.0]
    rising, level = [flat(v, f"r{v}") for v in (0.2, 0.5, 0.8)], [flat(0.5, "l")] * 3
    found = crossing(sizes, [flat(v, f"s{v}") for v in (0.2, 0.4, 0.8)], level)
    assert found.value == pytest.approx(100 * 10**0.25, rel=0.05)  # a quarter of the way, in logs
    assert found.low < found.value < found.high < 300
    assert crossing(sizes, rising, flat(0.9, "above")) is None
    assert crossing(sizes, rising, flat(0.65, "between")).value == pytest.approx(316, rel=0.05)
    noisy = [flat(v, f"n{v}", noise=20.0) for v in (0.2, 0.5, 0.8)]
    assert crossing(sizes, noisy, flat(0.65, "between")) is None  # not in enough resamples


def test_a_power_law_is_found_again_and_what_does_not_fall_is_not_fitted():
    sizes = [0.01, 0.1, 1.0]
    fitted = scaling(sizes, [1.0 + 0.5 * s**-0.3 for s in sizes])
    assert fitted.at(10.0) == pytest.approx(1.0 + 0.5 * 10**-0.3, abs=0.02)
    assert fitted.off < 0.01
    assert scaling(sizes, [1.0, 1.1, 1.2]) is None
    assert scaling(sizes[:2], [1.2, 1.1]) is None


def cost(once, each):
    return Cost(once, 1e6 * once, each, 1e6 * each, 10.0, 10.0, 0.0, 1.0, 8.0)


def test_training_pays_for_itself_after_some_requests():
    assert break_even(cost(100, 0.1), cost(0, 1.1)) == 100
    assert break_even(cost(0, 0.1), cost(10, 1.1)) == 0
    assert break_even(cost(100, 1.0), cost(0, 1.0)) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats_in_both(points):
    costs, scores = zip(*points, strict=True)
    on = {points[i] for i in front(costs, scores)}
    assert on == {
        (cost, score)
        for cost, score in points
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
    }


def test_search_and_what_went_before_are_counted():
    tried = [{"seconds": 10.0, "flops": 1.0}, {"seconds": 12.0, "flops": 2.0}]
    rows = [
        {"training_seconds": 12.0, "training_flops": 2.0, "search": tried, "peak_bytes": 5},
        {"training_seconds": 14.0, "training_flops": 2.0, "search": [], "peak_bytes": 7},
    ]
    found = cost_of(rows)
    assert found.once_seconds == 13 + 10
    assert found.once_flops == 2 + 1
    assert found.peak_bytes == 6
    assert cost_of(rows, rows).once_seconds == 2 * (13 + 10)
    assert cost_of(rows[:1], rows[1:]).peak_bytes == 7  # of what went before
    # One seed alone has trained as long as it has, after the search that was made for all.
    assert cost_of(rows[1:], searched=rows).once_seconds == 14 + 10


def test_a_verdict_names_the_rows_behind_it():
    draw = np.random.default_rng(3)
    curves = {"scratch-supervised": (0.3, 0.5, 0.85), "lora": (0.5, 0.6, 0.7)}
    rows = [
        r
        for method, curve in curves.items()
        for size, skill in zip((8, 64, 512), curve, strict=True)
        for r in task_rows(method, size, skill, draw, spread=0.005)
    ]
    rows += task_rows("majority", 512, 0.4, draw) + task_rows("few-shot", 4, 0.55, draw)
    for row in rows:
        if row["arm"] == "few-shot":
            row |= {"seconds_per_request": 1.0, "training_seconds": 0.0}
    said = verdict(Ledger(rows))
    text = "\n".join(sentence.text for sentence in said)
    assert "With 512 labelled items scratch-supervised is best" in text
    assert "With 512 labelled items the baseline is majority" in text
    assert "With 8 labelled items the baseline" not in text  # it was not measured there
    assert "scratch-supervised and lora cross at" in text
    worth = re.search(r"few-shot is worth (\d+) \[\d+, \d+\] labelled items of scratch-s", text)
    assert 64 < float(worth[1]) < 200  # 0.55 is a little above what it gets with 64 items, 0.5
    assert "has paid for its training and search after 12 requests to few-shot (seeds: 12 to 12)" in text
    assert "For 1,000 requests, in seconds with training and search, none is both cheaper" in text
    assert "of these the cheapest that is not measured to be worse than the best is scr" in text
    known = {row["id"] for row in rows}
    for sentence in said:
        assert sentence.rows
        assert set(sentence.rows) <= known
        for method in ("scratch-supervised", "lora", "majority", "few-shot"):
            if re.search(rf"\b{method}\b", sentence.text) and "behind" not in sentence.text:
                assert any(row.startswith(f"{method}-task") for row in sentence.rows), sentence
    twins = [r | {"arm": "lora", "id": r["id"].replace("full", "lora")} for r in task_rows("full", 64, 0.7, draw)]
    same = verdict(Ledger([*task_rows("full", 64, 0.7, np.random.default_rng(9)), *twins]))
    assert "no difference was measured between" in same[0].text


def said_of(rows, *args):
    return "\n".join(sentence.text for sentence in verdict(Ledger(rows), *args))


def test_the_best_is_best_of_all_and_not_of_the_next_alone():
    draw = np.random.default_rng(8)
    sure = task_rows("full", 64, 0.8, draw) + task_rows("lora", 64, 0.6, draw)
    assert "With 64 labelled items full is best (0.8" in said_of(sure)
    # The third by value goes so far apart by seeds that nothing can be said of it.
    wide = [r | {"correct": [float(seed == 2)] * ITEMS} for seed, r in enumerate(task_rows("features", 64, 0.5, draw))]
    text = said_of([*sure, *wide])
    assert "no difference was measured between full" in text
    assert "and features (0.333" in text


def test_the_choice_lies_on_the_front_and_labels_have_a_price():
    draw = np.random.default_rng(9)
    rows = [r | {"labels": 128.0, "training_seconds": 4.0} for r in task_rows("full", 64, 0.8, draw)]
    rows += [r | {"labels": 128.0, "training_seconds": 2.0} for r in task_rows("tfidf", 64, 0.6, draw)]
    # Dearer and worse than tfidf, but so noisy that it is not measured to be worse than full.
    rows += [
        r | {"correct": [float(seed < 1)] * ITEMS, "labels": 128.0, "training_seconds": 3.0}
        for seed, r in enumerate(task_rows("lora", 64, 0.5, draw))
    ]
    rows += [r | {"training_seconds": 0.0} for r in task_rows("few-shot", 4, 0.3, draw)]
    text = said_of(rows, 10, 36.0, 0.5)
    assert "to be worse than the best is full with 64 items (0.8" in text
    # 128 labels of 0.5 each, and 4 + 10 * 0.1 s at 0.01 a second.
    assert re.search(r"in money at 36 an hour and 0.5 a label.*full with 64 items \(0.8..; 64.05\)", text)
    assert "whatever had a setting or a checkpoint to choose chose by as many others" in text


def text_rows(method, size, bits, draw, **more):
    return [
        {
            "id": f"{method}-text-{size:g}-{seed}",
            "arm": method,
            "axis": "text",
            "size": size,
            "seed": seed,
            "document_bytes": [8] * 60,
            "document_bits": (8 * draw.normal(bits, 0.05, 60)).tolist(),
            "search": [],
            "peak_bytes": 1,
            "training_steps": 5,
            "corpus": "c",
            "task": "t",
            **more,
        }
        for seed in range(SEEDS)
    ]


def test_on_text_differences_floors_and_what_more_would_buy_are_told():
    draw = np.random.default_rng(10)
    rows = text_rows("zero-shot", 0.0, 3.0, draw, general_bits=20.0, general_bytes=10)
    for share in (0.01, 0.1, 1.0):
        rows += text_rows("xz", share, 2.5, draw)
        kept = 0 if share == 0.01 else 5
        rows += text_rows("scratch", share, 1.0 + 0.8 * share**-0.25, draw, epochs=2.0, kept_step=kept)
        rows += text_rows("lora", share, 2.2, draw, epochs=0.1, general_bits=25.0, general_bytes=10)
    text = said_of(rows)
    gap = r"0\.[34]\d\d \[0\.[34]\d\d, 0\.[34]\d\d\] better than lora"
    assert re.search(r"With all of the text scratch is best \(1.*\), " + gap, text)
    assert "; better: lora; worse: scratch, zero-shot." in text  # at 1 %
    assert re.search(r"the foundation needs 1\.(19|20). \[.*\] times the bits that xz", text)
    assert re.search(r"and 1\.(49|50) times its own on general text", text)
    assert "lora +0.500 (+0.500 to +0.500) (from 2.000)" in text
    assert re.search(r"Extrapolated, not measured: with 10 times .* scratch would have 1\.4\d", text)
    assert "times that it was: lora 0.10." in text
    assert "nothing of the training, with some seed or other, of scratch with 1 % of the" in text
    assert re.search(r"scratch and lora cross at \d", text)
