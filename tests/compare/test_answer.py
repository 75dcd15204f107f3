"""The answer of a study, on ledgers whose best methods are known."""

import re

import numpy as np
import pytest

from compare.analysis.answer import MOST_LINES, answer, choose, options
from compare.analysis.ledger import Ledger
from compare.analysis.verdict import verdict
from compare.rows import CALIBRATION
from configs.study_recipe import StudyRecipe

RECIPE = StudyRecipe()
WORSE = "– (scratch has a better mean and costs no more)"
SHARED = {"corpus": "c", "task": "t", "setting": {}, "peak_bytes": 1, "edition": 2, "foundation": ""}


def rows(method, axis, size, scores, factor=1.0, seeds=3, **measured):
    """Rows whose scores are the same with every seed: bits of 50 documents, or 200 right or wrong answers."""
    found = []
    for seed in range(seeds):
        row = {"id": f"{method}-{axis}-{size:g}-{seed}-{factor:g}", "method": method, "axis": axis, "size": size}
        row |= {"seed": seed, "factor": factor, "training_seconds": 10.0, **SHARED, **measured}
        if axis == "text":
            noise = np.random.default_rng(1).normal(1, 0.1, 50)  # of the documents, the same for every method
            row |= {"document_bytes": [8] * 50, "document_bits": (8 * scores * noise).tolist()}
        else:
            row["correct"] = [1.0] * scores + [0.0] * (200 - scores)
        found.append(row)
    return found


def text(scratch=1.5, lora=2.0, seeds=3):
    ledger = rows("xz", "text", 1.0, 1.2, seeds=seeds, training_seconds=0.0)
    for size, near in ((0.01, 2.0), (0.1, 1.3), (1.0, 1.0)):
        ledger += rows("scratch", "text", size, scratch * near, seeds=seeds)
        ledger += rows("lora", "text", size, lora, seeds=seeds, training_seconds=30.0)
    return ledger


def test_the_best_method_is_recommended_with_what_would_change_that():
    more = rows("scratch", "text", 1.0, 1.4, factor=4.0) + rows("lora", "text", 1.0, 1.1, factor=4.0)
    lines = answer(Ledger([*text(), *more]), RECIPE)
    assert lines[0].startswith("For the text: train a model from scratch, with all of the text: 1.49")
    assert not any("of one core" in line for line in lines)  # the ledger has no calibration
    assert "significantly better than every other method that can write; the next, lora, is 0.49" in lines[1]
    assert "It takes 10 s to build" in lines[2]
    timed = [{"id": CALIBRATION, "threads": 1, "speeds": {}}, *(row | {"device": "2 cores, AMD"} for row in text())]
    assert "  It takes 10 s of one core to build, search included." in answer(Ledger(timed), RECIPE)
    assert "  Below 8.96 % of the text" in lines[3]
    assert "lora has the better mean, above it scratch." in lines[3]
    assert lines[4].startswith("  With 4 times the budget, lora is best: 1.09")
    assert "the next, scratch, is 0.29" in lines[4]
    assert len(lines) == 5


def test_a_small_difference_with_more_budget_is_no_claim():
    more = rows("scratch", "text", 1.0, 1.4, factor=4.0) + rows("lora", "text", 1.0, 1.4, factor=4.0)
    (line,) = [line for line in answer(Ledger([*text(), *more]), RECIPE) if "4 times the budget" in line]
    assert "scratch has the best score" in line
    assert line.endswith("no significant difference to lora (1.395) was found.")


def test_prompts_are_rivals_with_every_budget():
    prompted = rows("zero-shot", "text", 0.0, 1.2)
    more = rows("scratch", "text", 1.0, 1.3, factor=4.0) + rows("lora", "text", 1.0, 1.4, factor=4.0)
    lines = answer(Ledger([*text(), *more, *prompted]), RECIPE)
    assert any(line.startswith("  With 4 times the budget, zero-shot is best") for line in lines)


def test_a_few_seconds_less_are_no_reason_for_a_worse_method():
    best = rows("lora", "text", 1.0, 1.0, training_seconds=100.0)
    for seconds, reason in ((95.0, "–"), (50.0, "cost matters more than quality")):
        ledger = Ledger(best + rows("full", "text", 1.0, 1.5, training_seconds=seconds))
        found = {option.method: option.choose_when for option in options(ledger, RECIPE, "text")}
        assert found == {"lora": "first choice", "full": reason}


def test_a_method_is_compared_in_cost_with_those_that_can_be_chosen():
    ledger = rows("xz", "text", 1.0, 1.7, training_seconds=0.1) + rows("lora", "text", 1.0, 1.0, training_seconds=100.0)
    ledger += rows("few-shot", "text", 0.0, 2.0, training_seconds=0.0)
    found = {option.method: option.choose_when for option in options(Ledger(ledger), RECIPE, "text")}
    assert found["few-shot"] == "cost matters more than quality"  # xz is cheaper, but writes no text


def test_a_crossing_names_the_method_that_is_better_before_it():
    ledger = []
    for size, near in ((0.01, 0.7), (0.1, 1.0), (1.0, 1.4)):  # from scratch is better with little text
        ledger += rows("scratch", "text", size, 2.0 * near) + rows("lora", "text", size, 2.1)
    assert any("scratch has the better mean, above it lora." in line for line in answer(Ledger(ledger), RECIPE))


def test_a_cheaper_method_within_the_margin_is_recommended():
    ledger = Ledger(text(scratch=1.99 / 1.0, lora=1.98))
    choice = choose(ledger, RECIPE, "text")
    assert (choice.method, choice.best, choice.is_sure) == ("scratch", "lora", False)
    assert "lora (1.9" in answer(ledger, RECIPE)[1]
    assert "is no more than the margin better, and costs more" in answer(ledger, RECIPE)[1]
    assert choose(ledger, RECIPE.model_copy(update={"text_margin": 0.0}), "text").method == "lora"


def test_the_distance_to_the_foundation_is_stated():
    ledger = Ledger(rows("xz", "text", 1.0, 1.0) + rows("zero-shot", "text", 0.0, 1.5))
    (line,) = (line for line in answer(ledger, RECIPE) if "Untuned" in line)
    assert line.startswith("  Untuned, the foundation model predicts the text worse than xz: it needs 1.500 [")
    near = Ledger(rows("xz", "text", 1.0, 1.0) + rows("zero-shot", "text", 0.0, 0.8))
    assert any("predicts the text better than xz: it needs 0.800 [" in line for line in answer(near, RECIPE))


def test_labels_have_a_cost_for_each_request():
    ledger = rows("tfidf", "task", 512.0, 150, labels=576.0, seconds_per_request=0.001)
    ledger += rows("lora", "task", 512.0, 152, labels=576.0, seconds_per_request=0.1, training_seconds=60.0)
    ledger += rows("majority", "task", 512.0, 60, labels=512.0, training_seconds=0.0)
    found = Ledger(ledger)
    lines = answer(found, RECIPE)
    assert lines[0].startswith("For the labels: use logistic regression on character n-grams")
    assert "and 1 s for 1,000 requests; 576 labels." in lines[2]
    table = {option.method: option for option in options(found, RECIPE, "task")}
    assert list(table) == ["lora", "tfidf", "majority"]
    assert table["tfidf"].choose_when == "first choice"
    assert table["lora"].choose_when == "only the best score will do"
    assert table["majority"].choose_when == "baseline only: the same label for every item"
    assert table["lora"].requests == "100 s"


@pytest.mark.parametrize(("tfidf", "is_sure"), [(159, False), (100, True)])
def test_the_best_method_is_not_sure_while_a_baseline_is_close(tfidf, is_sure):
    ledger = rows("tfidf", "task", 512.0, tfidf) + rows("majority", "task", 512.0, 60)
    ledger += rows("features", "task", 512.0, 160) + rows("lora", "task", 512.0, 80)
    found = Ledger(ledger)
    recipe = RECIPE.model_copy(update={"task_margin": 0.0})
    assert choose(found, recipe, "task").is_sure == is_sure
    expected = "significantly better than every other" if is_sure else "no significant difference to tfidf"
    assert expected in answer(found, recipe)[1]


def test_a_baseline_can_be_the_answer():
    ledger = Ledger(rows("tfidf", "task", 64.0, 190) + rows("majority", "task", 64.0, 60))
    assert answer(ledger, RECIPE)[1] == "  It is a baseline; no method was measured to be better."


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_an_illustration(seeds):
    lines = answer(Ledger(text(seeds=seeds)), RECIPE)
    assert lines[-1].startswith(f"This is an illustration, not a result: it has {seeds} seed")
    assert len(lines) <= MOST_LINES


def test_compressors_are_no_choice_for_text():
    alone = Ledger(rows("xz", "text", 1.0, 1.2))
    assert "only baselines were measured" in answer(alone, RECIPE)[0]
    assert options(alone, RECIPE, "text")[0].choose_when == "baseline only: it writes no text"
    table = {option.method: option.choose_when for option in options(Ledger(text()), RECIPE, "text")}
    assert table == {"xz": "baseline only: it writes no text", "scratch": "first choice", "lora": WORSE}


def test_one_method_alone_is_no_recommendation():
    ledger = Ledger(rows("xz", "text", 1.0, 1.0) + rows("zero-shot", "text", 0.0, 1.5))
    assert answer(ledger, RECIPE)[0].startswith("For the text: zero-shot alone was measured beside the baselines: 1.49")
    assert {option.method: option.choose_when for option in options(ledger, RECIPE, "text")} == {
        "xz": "baseline only: it writes no text",
        "zero-shot": "measured alone",
    }


def test_curves_that_cross_twice_give_no_advice():
    ledger = []
    for size, scratch in ((0.01, 3.0), (0.1, 1.0), (1.0, 3.0)):
        ledger += rows("scratch", "text", size, scratch) + rows("lora", "text", size, 2.0)
    assert not any("has the better mean" in line for line in answer(Ledger(ledger), RECIPE))


def test_a_method_that_is_not_shown_to_be_best_is_compared_with_those_that_may_be():
    sure = rows("lora", "task", 64.0, 160) + rows("full", "task", 64.0, 100)
    noisy = [row | {"correct": [float(seed == 2)] * 200} for seed, row in enumerate(rows("features", "task", 64.0, 0))]
    (line,) = (line for line in answer(Ledger(sure + noisy), RECIPE) if "best score" in line)
    assert line.endswith("It has the best score; no significant difference to features (0.333) was found.")
    # A lead that suffices for one comparison, but not for as many as were made.
    others = [row for method in ("full", "features", "top-layers", "tfidf") for row in rows(method, "task", 64.0, 100)]
    best = [row | {"correct": [0.0] * 3 + [1.0] * 109 + [0.0] * 88} for row in rows("lora", "task", 64.0, 0)]
    (line,) = (line for line in answer(Ledger(best + others), RECIPE) if "best score" in line)
    assert re.match(r"  It has the best score; its lead over full, 0.045 \[0.00\d, 0.08\d\], is not significant", line)


def split_names(ledger):
    """Rows with the foundation out of the name of their method."""
    named = ((row, *row["method"].partition(" @ ")[::2]) for row in ledger)
    return [row | {"method": method, "foundation": foundation} for row, method, foundation in named]


def test_several_foundations_have_all_sentences():
    ledger = text()
    for name, near in (("small", 1.0), ("large", 0.8)):
        ledger += rows(f"zero-shot @ {name}", "text", 0.0, 2.4 * near, general_bits=8.0, general_bytes=8)
        for method in ("lora", "full"):
            forgot = {"general_bits": 8.0 + (method == "lora"), "general_bytes": 8}
            for size in (0.01, 0.1, 1.0):
                ledger += rows(f"{method} @ {name}", "text", size, 2.0 * near, training_seconds=30.0, **forgot)
    ledger = Ledger(split_names([row for row in ledger if row["method"] != "lora"]))
    sentences = "\n".join(sentence.text for sentence in verdict(ledger))
    for name, times in (("small", 2.0), ("large", 1.6)):
        assert f"Without tuning, {name} needs {times:.3f}" in sentences
        assert f"The curves of scratch and lora @ {name} cross at" in sentences
        assert f"{name}: LoRA learns less and forgets less than full fine-tuning" in sentences
        assert f"lora @ {name} +0.125 (" in sentences
    lines = "\n".join(answer(ledger, RECIPE))
    assert "Untuned, large predicts the text worse than xz: it needs 1.600 [" in lines
    assert "lora @ large has the better mean, above it scratch" in lines  # the better of both
