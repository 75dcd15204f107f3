"""The analysis of a ledger, checked on simulated rows whose true values are known."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.errors import UserError
from compare.analysis.bootstrap import calibration_error, resample, score
from compare.analysis.costs import break_even, pareto_front
from compare.analysis.curves import find_crossing, fit_power_law
from compare.analysis.ledger import Cost, Ledger, cost_of
from compare.analysis.verdict import verdict

ITEMS, SEEDS = 200, 3


def task_rows(method, size, skill, draw, seeds=SEEDS, spread=0.0, hardness=None):
    """Rows of a method that answers an item correctly with probability skill minus hardness."""
    hardness = np.zeros(ITEMS) if hardness is None else hardness
    rows = []
    for seed in range(seeds):
        chance = np.clip(skill + spread * draw.normal() - hardness, 0, 1)
        right = (draw.random(ITEMS) < chance).astype(float)
        rows.append(
            {
                "id": f"{method}-task-{size:g}-{seed}",
                "method": method,
                "factor": 1.0,
                "axis": "task",
                "size": float(size),
                "seed": seed,
                "correct": right.tolist(),
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


def test_a_group_of_items_counts_as_one():
    draw = np.random.default_rng(3)
    once = (draw.random((1, 40)) < 0.5).astype(float)
    copied, groups = np.repeat(once, 5, axis=1), np.repeat(np.arange(40), 5).tolist()
    error = resample(once, np.ones(40)).item_error
    assert resample(copied, np.ones(200), groups).item_error == pytest.approx(error, rel=0.1)
    assert resample(copied, np.ones(200)).item_error < 0.6 * error


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_two_equal_methods_are_rarely_significantly_different(spread):
    draw = np.random.default_rng(0)
    significant = 0
    for trial in range(100):
        hardness = draw.uniform(0, 0.4, ITEMS)
        a, b = (task_rows(f"{name}{trial}", 64, 0.8, draw, spread=spread, hardness=hardness) for name in "ab")
        gap = score(a, "task").minus(score(b, "task")).estimate
        significant += not gap.low <= 0 <= gap.high
    assert significant <= 5


def test_two_equal_methods_are_rarely_significantly_different_in_bits():
    draw = np.random.default_rng(4)
    significant = 0
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
        significant += not gap.low <= 0 <= gap.high
    assert significant <= 5


def test_a_true_difference_is_significant():
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


def test_intervals_cover_the_true_value_as_often_as_stated():
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


def test_bits_per_byte_are_a_ratio_of_sums_over_all_seeds():
    rows = [
        {"id": "a", "axis": "text", "document_bits": [8.0, 30.0], "document_bytes": [4, 10]},
        {"id": "b", "axis": "text", "document_bits": [12.0, 20.0], "document_bytes": [4, 10]},
    ]
    assert score(rows, "text").value == pytest.approx((38 + 32) / 2 / 14)
    rows[1]["document_bits"] = [12.0]
    with pytest.raises(ValueError, match="different held-out data"):
        score(rows, "text")


def test_a_difference_is_paired_by_items_and_antisymmetric():
    draw = np.random.default_rng(5)
    alone = task_rows("a", 8, 0.6, draw, seeds=1)
    gap = score(alone, "task").minus(score([r | {"id": "b"} for r in alone], "task")).estimate
    assert gap == (0.0, 0.0, 0.0)  # every item has the same result
    a, b = (score(task_rows(name, 8, skill, draw, spread=0.1), "task") for name, skill in (("a", 0.7), ("b", 0.5)))
    there, back = a.minus(b).estimate, b.minus(a).estimate
    assert (-there.value, -there.high, -there.low) == pytest.approx(back)


def test_interval_bounds_are_possible_scores():
    draw = np.random.default_rng(6)
    rows = [r | {"correct": [float(seed == 1)] * ITEMS} for seed, r in enumerate(task_rows("a", 8, 0.5, draw))]
    assert score(rows, "task").estimate[1:] == (0.0, 1.0)
    level = score(task_rows("b", 8, 0.5, draw), "task")
    assert score(rows, "task").minus(level).estimate.low < -0.5  # differences may be negative


def test_rows_with_different_items_are_refused():
    draw = np.random.default_rng(7)
    rows = [r | {"items": ["x"] * ITEMS} for r in task_rows("a", 8, 0.5, draw)]
    other = [r | {"items": ["y"] * ITEMS} for r in task_rows("b", 8, 0.5, draw)]
    with pytest.raises(UserError, match="b-task-8-0 and a-task-8-0 were measured on different held-out data"):
        Ledger([*rows, *other])


def test_calibration_error():
    rows = [{"confidence": [0.95] * 10 + [0.55] * 10, "correct": [1.0] * 10 + [0.0] * 10}]
    assert calibration_error(rows) == pytest.approx(0.5 * 0.05 + 0.5 * 0.55)
    assert calibration_error([{"correct": [1.0]}]) is None


def flat(value, name, noise=0.01):
    draw = np.random.default_rng(list(name.encode()))
    return resample(value + noise * draw.normal(size=(3, 100)), np.ones(100))


def test_crossings_are_found_between_the_measured_sizes():
    sizes = [10.0, 100.0, 1000.0]
    rising, level = [flat(v, f"r{v}") for v in (0.2, 0.5, 0.8)], [flat(0.5, "l")] * 3
    found = find_crossing(sizes, [flat(v, f"s{v}") for v in (0.2, 0.4, 0.8)], level)
    assert found.value == pytest.approx(100 * 10**0.25, rel=0.05)  # a quarter of the way, in logs
    assert found.low < found.value < found.high < 300
    assert find_crossing(sizes, rising, flat(0.9, "above")) is None
    assert find_crossing(sizes, rising, flat(0.65, "between")).value == pytest.approx(316, rel=0.05)
    noisy = [flat(v, f"n{v}", noise=20.0) for v in (0.2, 0.5, 0.8)]
    assert find_crossing(sizes, noisy, flat(0.65, "between")) is None  # not in enough resamples


def test_a_power_law_is_recovered_from_four_sizes_and_a_rising_loss_is_not_fitted():
    sizes = [0.001, 0.01, 0.1, 1.0]
    fitted = fit_power_law(sizes, [1.0 + 0.5 * s**-0.3 for s in sizes])
    assert fitted.predict(10.0) == pytest.approx(1.0 + 0.5 * 10**-0.3, abs=0.02)
    assert fitted.max_error < 0.01
    assert fit_power_law(sizes, [1.0, 1.1, 1.2, 1.3]) is None
    assert fit_power_law(sizes[1:], [1.2, 1.1, 1.05]) is None  # three parameters through three points


def cost(once, each):
    return Cost(once, 1e6 * once, each, 1e6 * each, 10.0, 10.0, 0.0, 1.0, 8.0)


def test_break_even_of_training_against_prompting():
    assert break_even(cost(100, 0.1), cost(0, 1.1)) == 100
    assert break_even(cost(0, 0.1), cost(10, 1.1)) == 0
    assert break_even(cost(100, 1.0), cost(0, 1.0)) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_pareto_front_has_no_dominated_points(points):
    costs, scores = zip(*points, strict=True)
    on = {points[i] for i in pareto_front(costs, scores)}
    assert on == {
        (cost, score)
        for cost, score in points
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
    }


def test_costs_include_the_search_and_the_base_method():
    search = {"search": [{"seconds": 10.0, "flops": 1.0}, {"seconds": 12.0, "flops": 2.0}]}
    rows = [
        {"training_seconds": 12.0, "training_flops": 2.0, "peak_bytes": 5},
        {"training_seconds": 14.0, "training_flops": 2.0, "peak_bytes": 7},
    ]
    found = cost_of(rows, search)
    assert found.fixed_seconds == 13 + 22
    assert found.fixed_flops == 2 + 3
    assert found.peak_bytes == 6
    assert cost_of(rows, search, found).fixed_seconds == 2 * (13 + 22)
    assert cost_of(rows[:1], None, found._replace(peak_bytes=9)).peak_bytes == 9  # of the base method


def test_every_sentence_of_the_verdict_names_its_rows():
    draw = np.random.default_rng(3)
    curves = {"scratch-supervised": (0.3, 0.5, 0.85), "lora": (0.5, 0.6, 0.7)}
    rows = [
        r
        for method, curve in curves.items()
        for size, skill in zip((8, 64, 512), curve, strict=True)
        for r in task_rows(method, size, skill, draw, spread=0.005)
    ]
    rows += task_rows("majority", 512, 0.4, draw) + task_rows("few-shot", 4, 0.55, draw)
    prompt = {"seconds_per_request": 1.0, "training_seconds": 0.0, "labels": 20.0}
    for row in rows:
        row |= prompt if row["method"] == "few-shot" else {"labels": row["size"] + 64}
    sentences = verdict(Ledger(rows))
    text = "\n".join(sentence.text for sentence in sentences)
    assert "With 512 labelled items, scratch-supervised is best" in text
    assert "With 512 labelled items, the best baseline is majority" in text
    assert "With 8 labelled items, the best baseline" not in text  # no baseline was measured there
    assert "The curves of scratch-supervised and lora cross at" in text
    worth = re.search(r"few-shot uses 20 labels; scratch-supervised reaches its score with (\d+) \[", text)
    assert 128 < float(worth[1]) < 264  # its score is 0.5 with 64 items, and as many to validate
    assert "against few-shot in seconds, training and search included: after 12 requests." in text
    assert "Pareto front of score and cost for 1,000 requests, in seconds, training and search included: " in text
    assert "The cheapest of these that is at most 3% of the items worse than the best, by its interval, is scr" in text
    known = {row["id"] for row in rows}
    for sentence in sentences:
        assert sentence.rows
        assert set(sentence.rows) <= known
        for method in ("scratch-supervised", "lora", "majority", "few-shot"):
            if re.search(rf"\b{method}\b", sentence.text) and "behind" not in sentence.text:
                assert any(row.startswith(f"{method}-task") for row in sentence.rows), sentence
    twins = [r | {"method": "lora", "id": r["id"].replace("full", "lora")} for r in task_rows("full", 64, 0.7, draw)]
    same = verdict(Ledger([*task_rows("full", 64, 0.7, np.random.default_rng(9)), *twins]))
    assert "no significant difference was found between" in same[0].text


def verdict_text(rows, *args):
    return "\n".join(sentence.text for sentence in verdict(Ledger(rows), *args))


def test_the_best_method_is_compared_with_all_others():
    draw = np.random.default_rng(8)
    sure = task_rows("full", 64, 0.8, draw) + task_rows("lora", 64, 0.6, draw)
    assert "With 64 labelled items, full is best (0.8" in verdict_text(sure)
    # The third by value varies so much between seeds that it is not significantly worse.
    wide = [r | {"correct": [float(seed == 2)] * ITEMS} for seed, r in enumerate(task_rows("features", 64, 0.5, draw))]
    text = verdict_text([*sure, *wide])
    assert "no significant difference was found between full" in text
    assert "and features (0.333" in text


def test_the_choice_is_on_the_pareto_front_and_labels_have_a_price():
    draw = np.random.default_rng(9)
    rows = [r | {"labels": 128.0, "training_seconds": 4.0} for r in task_rows("full", 64, 0.8, draw)]
    rows += [r | {"labels": 128.0, "training_seconds": 2.0} for r in task_rows("tfidf", 64, 0.6, draw)]
    # More expensive and worse than tfidf, but too noisy to be significantly worse than full.
    rows += [
        r | {"correct": [float(seed < 1)] * ITEMS, "labels": 128.0, "training_seconds": 3.0}
        for seed, r in enumerate(task_rows("lora", 64, 0.5, draw))
    ]
    rows += [r | {"training_seconds": 0.0} for r in task_rows("few-shot", 4, 0.3, draw)]
    text = verdict_text(rows, 10, 36.0, 0.5)
    assert "worse than the best, by its interval, is full with 64 items (0.8" in text
    # 128 labels of 0.5 each, and 4 + 10 * 0.1 s at 0.01 a second.
    assert re.search(
        r"in money at 36 per hour and 0.5 per label, validation labels included: .*full with 64 items \(0.8..; 64.05\)",
        text,
    )
    assert "a method that chooses a setting or a checkpoint validates on as many others, at least 16" in text


def text_rows(method, size, bits, draw, **more):
    return [
        {
            "id": f"{method}-text-{size:g}-{seed}",
            "method": method,
            "factor": 1.0,
            "axis": "text",
            "size": size,
            "seed": seed,
            "document_bytes": [8] * 60,
            "document_bits": (8 * draw.normal(bits, 0.05, 60)).tolist(),
            "peak_bytes": 1,
            "training_steps": 5,
            "corpus": "c",
            "task": "t",
            **more,
        }
        for seed in range(SEEDS)
    ]


def test_the_verdict_on_text_has_differences_baselines_and_extrapolations():
    draw = np.random.default_rng(10)
    rows = text_rows("zero-shot", 0.0, 3.0, draw, general_bits=20.0, general_bytes=10)
    for share in (0.001, 0.01, 0.1, 1.0):
        rows += text_rows("xz", share, 2.5, draw)
        kept = 0 if share == 0.01 else 5
        rows += text_rows("scratch", share, 1.0 + 0.8 * share**-0.25, draw, epochs=2.0, kept_step=kept)
        rows += text_rows("lora", share, 2.2, draw, epochs=0.1, general_bits=25.0, general_bytes=10)
    text = verdict_text(rows)
    gap = r"0\.[34]\d\d \[0\.[34]\d\d, 0\.[34]\d\d\] better than lora"
    assert re.search(r"With all of the text, scratch is best \(1.*\), " + gap, text)
    assert "; significantly better: lora; significantly worse: scratch, zero-shot." in text  # at 1 %
    assert re.search(r"the foundation model needs 1\.(19|20). \[.*\] times the bits per byte of xz with 100 % of", text)
    assert re.search(r"and 1\.(49|50) times its own bits per byte on general text", text)
    assert "from 2.000 by, as mean and range over seeds, lora +0.500 (+0.500 to +0.500)." in text
    assert re.search(r"Extrapolated, not measured: with 10 times .* scratch would reach 1\.4\d", text)
    assert "epochs on all of the text: lora 0.10." in text
    assert "so the initial weights were kept: scratch with 1 % of the text." in text
    assert re.search(r"scratch and lora cross at \d", text)


@pytest.mark.parametrize(
    ("lora_bits", "lora_general", "expected"), [(2.2, 25.0, "holds"), (2.2, 31.0, "does not hold"), (2.0, 25.0, "un")]
)
def test_whether_lora_learns_less_and_forgets_less(lora_bits, lora_general, expected):
    draw = np.random.default_rng(4)
    rows = []
    for factor in (1.0, 4.0):
        for method, bits, general in (("full", 2.0, 30.0), ("lora", lora_bits, lora_general)):
            made = text_rows(method, 1.0, bits, draw, general_bytes=10)
            for row in made:
                row |= {"general_bits": draw.normal(general, 0.1), "factor": factor, "id": f"{row['id']}-{factor:g}"}
            rows += made
    text = verdict_text(rows)
    for budget in ("the budget", "4 times the budget"):
        assert re.search(rf"Biderman et al\. 2024\): {expected}\w* with all of the text and {budget}\. ", text), text
    assert len(re.findall(rf", {'' if lora_general > 30 else '-'}0\.\d\S* \[.*\] on general text", text)) == 2
    assert "Biderman" not in verdict_text([row for row in rows if row["method"] == "full"])
