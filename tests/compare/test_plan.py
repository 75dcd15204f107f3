"""The plan of a study: its cells, their hashes, and rows on disk."""

import json
import re
from pathlib import Path

import pytest

from cli.errors import UserError
from cli.recipes import load
from compare.context import SEARCH_SEED, Cell
from compare.methods import METHODS
from compare.methods.train import MIN_STEPS, steps_in
from compare.plan import describe_power, estimate_seconds, hash_cells, plan, print_plan, read_measured, shrink
from compare.rows import EDITION
from compare.sources import ROOT, source_files
from configs.study_recipe import StudyRecipe

DEMO = "configs/study/demo.toml"


def test_a_plan_puts_searches_and_base_methods_first():
    study = load(StudyRecipe, DEMO, ["--tries", "3"])
    study = study.model_copy(update={"seeds": [3, 4], "text_methods": ["xz", "zero-shot"]})
    cells = plan(study, ["scratch-supervised", "tfidf", "text-then-shots"])
    study = study.model_copy(update={"task_methods": ["scratch-supervised"]})
    cells = plan(study)
    names = [(c.method, c.axis, c.seed) for c in cells]
    order = [
        ("scratch", "text", SEARCH_SEED),
        ("scratch", "text", 3),
        ("scratch-supervised", "task", SEARCH_SEED),
        ("scratch-supervised", "task", 3),
    ]
    assert sorted(map(names.index, order)) == list(map(names.index, order))
    assert ("scratch", "text", 4) in names
    assert names.count(("xz", "text", 4)) == len(study.shares)  # the seed samples the documents
    assert ("xz", "text", SEARCH_SEED) not in names  # has nothing to choose
    assert ("zero-shot", "text", 4) not in names  # does not depend on the seed
    assert len(set(cells)) == len(cells)
    assert {c.seed for c in plan(shrink(study))} == {SEARCH_SEED, 3}
    with pytest.raises(UserError, match='no method "lorra"; did you mean "lora"'):
        plan(study, ["lorra"])


def test_budgets_and_foundations_are_axes_of_the_plan():
    study = load(StudyRecipe, DEMO, ["--foundations", "smollm2-135m", "other/model", "--budget-factors", "0.25", "4"])
    cells = plan(study)
    assert {c.factor for c in cells if c.method == "lora" and c.axis == "text" and c.size == 1} == {0.25, 1.0, 4.0}
    assert {c.factor for c in cells if c.method == "xz" or c.size < 1 or c.axis == "task"} == {1.0}
    assert {c.foundation for c in cells if c.method == "lora"} == {"smollm2-135m", "other/model"}
    assert {c.foundation for c in cells if METHODS[c.method].family in ("scratch", "baseline")} == {""}
    assert len({cell.name for cell in cells}) == len(cells)
    assert Cell("lora", "text", 1.0, SEARCH_SEED, 4.0, "other/model").name == "lora-text-1-search-x4-other_model"


def test_the_plan_states_its_power(tmp_path, capsys):
    study = load(StudyRecipe, DEMO).model_copy(update={"text_methods": ["xz"], "task_methods": ["majority"]})
    print_plan(study, plan(study), tmp_path, {})  # with baselines alone there is none to state
    assert "% power" not in capsys.readouterr().out
    cells = plan(load(StudyRecipe, "configs/study/folk-tunes.toml"))
    few, many = (int(re.search(r"answers (\d+)% of the", describe_power(cells, items))[1]) for items in (150, 1500))
    assert 10 < few < 40
    assert few == pytest.approx(many * 10**0.5, rel=0.15)
    assert "8 test items are too few to find any difference" in describe_power(cells, 8)


def test_a_budget_is_spent_to_the_nearest_step():
    assert steps_in(30, 0.1) == 300
    assert steps_in(31, 0.1) == 310
    assert steps_in(1, 60.0) == MIN_STEPS


def test_the_hash_of_the_code_covers_what_a_cell_imports():
    names = {str(path.relative_to(ROOT)) for path in source_files()}
    assert {"compare/measure.py", "train/loop.py", "model/transformer.py", "prompting/store.py"} <= names
    assert not any(name.startswith(("compare/analysis", "tests", "benchmarks")) for name in names)
    assert "compare/report.py" not in names


def test_every_method_tries_the_same_number_of_settings_or_has_none():
    study = load(StudyRecipe, DEMO, ["--tries", "3"])
    for name, method in METHODS.items():
        for axis in method.sizes:
            tried = method.settings(study, axis)
            assert len(tried) == 3 or tried == [{}], name
            assert len({str(setting) for setting in tried}) == len(tried)
            if method.is_trained:  # equally far apart
                rates = [setting["rate"] for setting in tried]
                assert rates[1] / rates[0] == pytest.approx(3)
                assert rates[2] / rates[1] == pytest.approx(3)


def test_only_from_scratch_a_longer_budget_lowers_the_rates():
    study = load(StudyRecipe, DEMO, ["--tries", "3"])
    for name, factor in (("scratch", 2), ("lora", 1), ("full", 1)):
        usual, longer = (METHODS[name].settings(study, "text", factor) for factor in (1.0, 4.0))
        assert [usual[i]["rate"] / longer[i]["rate"] for i in range(3)] == pytest.approx([factor] * 3)
        assert METHODS[name].settings(study, "text", 0.5) == usual


def test_the_hash_of_a_cell_depends_only_on_its_own_settings_and_data(study):
    def changed(**settings):
        other = StudyRecipe.model_validate(study.recipe.model_dump() | settings)
        now = hash_cells(other, plan(study.recipe))
        return {cell.method for cell, digest in now.items() if digest != before[cell]}

    before = hash_cells(study.recipe, plan(study.recipe))
    assert len(set(before.values())) == len(before)
    more = {"seeds": [0, 1, 2], "labels": [8, 64, 100], "shares": [0.2, 0.5, 1.0]}
    assert changed(price_per_hour=3.0, requests=7, task_methods=["lora"], **more) == set()
    lora = study.recipe.lora.model_dump() | {"rank": 3}
    assert changed(lora=lora) == {"lora", "lora-neighbours", "text-then-shots"}
    scratch = study.recipe.scratch.model_dump() | {"task_rate": 1e-3}
    assert changed(scratch=scratch) == {"scratch-supervised", "random-supervised"}
    scratch = study.recipe.scratch.model_dump() | {"text_rate": 1e-3}
    assert changed(scratch=scratch) == {"scratch", "scratch-supervised"}  # whose base method is scratch
    assert changed(budget_seconds=40) == set(METHODS)
    path = Path(study.recipe.task.name)
    path.write_text(path.read_text().replace('"a"', '"c"', 1))
    assert changed() == set(METHODS)  # a label changed in the file


def test_a_table_of_a_recipe_changes_the_default_table(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[scratch.model]\ndim = 64\n[full.text]\nbatch_size = 4\n")
    study = load(StudyRecipe, path)
    assert (study.scratch.model.dim, study.scratch.model.qk_norm) == (64, True)
    assert (study.full.text.batch_size, study.full.text.micro_batch_size) == (4, 1)
    with pytest.raises(UserError, match=r"budget_factors holds 1\.0"):
        load(StudyRecipe, DEMO, ["--budget-factors", "0.5", "1.0"])


@pytest.mark.parametrize("damage", ["", '{"id": "xz', "[]", "null", '{"id": "other", "edition": 2, "x": 1}', "\0"])
def test_a_damaged_cell_is_ignored(tmp_path, damage):
    cell = Cell("xz", "text", 1.0, 0)
    provenance = {cell: {"config_hash": "h"}}
    path = tmp_path / "cells" / f"{cell.name}.json"
    path.parent.mkdir()
    row = {"id": cell.name, "edition": EDITION, "config_hash": "h", "wall_seconds": 1.0}
    path.write_text(json.dumps(row))
    assert read_measured(tmp_path, provenance)[0] == {cell.name: row}
    path.write_text(damage.replace('"x": 1', '"config_hash": "h"'))
    assert read_measured(tmp_path, provenance)[0] == {}


def test_the_name_of_a_cell():
    assert Cell("lora", "text", 0.1, 2).name == "lora-text-0.1-2"
    assert Path(f"{Cell('lora', 'task', 512.0, 0).name}.json").stem == "lora-task-512-0"


def test_further_seeds_are_of_the_largest_size_alone():
    study = load(StudyRecipe, DEMO).model_copy(update={"seeds": [0], "largest_seeds": [1, 2], "shares": [0.1, 1.0]})
    cells = plan(study)
    seeds = {size: {c.seed for c in cells if (c.method, c.axis, c.size) == ("lora", "text", size)} for size in (0.1, 1)}
    assert seeds == {0.1: {0}, 1: {0, 1, 2}}
    assert {c.seed for c in cells if c.method == "scratch" and c.size == 1} == {0, 1, 2}  # what others start from
    assert {c.seed for c in plan(shrink(study))} <= {SEARCH_SEED, 0}
    with pytest.raises(UserError, match="holds a value twice"):
        load(StudyRecipe, DEMO, ["--seeds", "0", "--largest-seeds", "0"])


def test_one_thread_takes_longer_beside_the_budget():
    study = load(StudyRecipe, DEMO, ["--budget-seconds", "60"])
    one, two = (estimate_seconds(study, Cell("lora", "text", 1.0, 0), threads=threads) for threads in (1, 2))
    assert one - 60 == 2 * (two - 60) > 0
    row = {"method": "lora", "axis": "text", "wall_seconds": 100.0, "factor": 1.0}
    assert estimate_seconds(study, Cell("lora", "text", 1.0, 0), [row], threads=1) == 100
