"""A whole study with the real foundation model, reduced to minutes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cells import run_cell

from cli.errors import UserError
from cli.recipes import load, to_toml
from compare.analysis.ledger import Ledger, cost_of
from compare.context import SEARCH_SEED, Cell, Study, prepare_inference
from compare.measure import measure
from compare.methods import METHODS
from compare.methods.train import EVALUATIONS, MIN_STEPS, steps_in
from compare.plan import hash_cells, plan, read_measured, shrink
from compare.rows import EDITION
from compare.sources import ROOT, source_files
from configs.study_recipe import StudyRecipe
from model.likelihood import document_bits
from model.load import load_model

DEMO = "configs/study/demo.toml"
SMALL = (
    *("--budget-seconds", "1", "--tries", "2", "--shares", "1.0", "--labels", "16", "--seq-len", "64"),
    *("--lora.text.batch-size", "1", "--lora.text.micro-batch-size", "1"),
    *("--lora.task.batch-size", "1", "--lora.task.micro-batch-size", "1"),
    *("--test-documents", "6", "--task.test-items", "8", "--task.train-items", "100", "--task.max-chars", "60"),
)


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


def test_a_budget_is_a_multiple_of_the_evaluations():
    assert steps_in(30, 0.1) == 300
    assert steps_in(31, 0.1) == 312
    assert steps_in(1, 60.0) == MIN_STEPS
    assert all(steps_in(seconds, 0.37) % EVALUATIONS == 0 for seconds in range(1, 50))


def test_the_hash_of_the_code_covers_what_a_cell_imports():
    names = {str(path.relative_to(ROOT)) for path in source_files()}
    assert {"compare/measure.py", "train/loop.py", "model/transformer.py", "prompting/store.py"} <= names
    assert not any(name.startswith(("compare/analysis", "tests", "benchmarks")) for name in names)
    assert "compare/report.py" not in names


def test_a_corpus_without_labels_is_measured_on_text_alone(study):
    nothing = study.recipe.task.model_copy(update={"name": ""})
    recipe = study.recipe.model_copy(update={"task": nothing})
    cells = plan(recipe)
    assert {cell.axis for cell in cells} == {"text"}
    assert len(hash_cells(recipe, cells)) == len(cells)
    (study.folder / "config.toml").write_text(to_toml(recipe))
    alone = Study(study.folder)
    assert alone.test == study.test
    row = measure(alone, Cell("xz", "text", 1.0, 0))
    assert sum(row["document_bits"]) > 0


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
    assert (study.full.text.batch_size, study.full.text.micro_batch_size) == (4, 2)
    with pytest.raises(UserError, match=r"budget_factors holds 1\.0"):
        load(StudyRecipe, DEMO, ["--budget-factors", "0.5", "1.0"])


SMALL_METHODS = ["xz", "ngram", "zero-shot", "few-shot", "scratch", "majority", "tfidf", "scratch-supervised", "lora"]


def check_ledger(ledger, folder):
    assert set(ledger.methods("text")) == {"xz", "ngram", "zero-shot", "few-shot", "scratch", "lora"}
    assert {"scratch-supervised", "lora", "tfidf", "few-shot"} <= set(ledger.methods("task"))
    asked = [item.id for item in Study(folder).task.test]
    assert 4 <= len(asked) <= 8
    for row in ledger.rows:
        assert {"config_hash", "seed", "commit", "device", "versions", "command", "left_out"} <= row.keys()
        assert row["overlap"] <= 0.8
        if "correct" in row:
            assert row["items"] == asked
            assert len(row["correct"]) == len(asked)
    for method in ("scratch", "lora"):
        (row,) = ledger.largest("text", method)
        assert row["training_steps"] >= MIN_STEPS
        assert row["training_steps"] % EVALUATIONS == 0
        assert row["training_flops"] > 0
        assert ("general_bits" in row) == (method == "lora")
        search = ledger.search_of("text", method, 1.0)
        assert len(search["search"]) == 2
        assert search["setting"] == max(search["search"], key=lambda each: each["validation"])["setting"]
        assert row["setting"] == search["setting"]
        assert "document_bits" not in search
        assert len(row["written"]) == 2
    assert ledger.largest("text", "lora")[0]["stored_bytes"] < 2e7
    scratch, lora = (ledger.largest("text", method)[0]["peak_bytes"] for method in ("scratch", "lora"))
    assert scratch < lora / 2  # the cached foundation model does not count
    assert set(ledger.calibration["speeds"]) == {
        "scratch-text",
        "scratch-task",
        "lora-text-smollm2-135m",
        "lora-task-smollm2-135m",
    }
    for name in ("table.md", "verdict.md", "report.html", "plots/curves.png"):
        assert (folder / name).stat().st_size > 50
    assert "before 3 seeds" in (folder / "verdict.md").read_text()


def check_resume(command, args, folder, before, cells):
    again = command("compare.run", *args, "--resume", timeout=120)
    assert again.returncode == 0, again.stderr
    assert "===" not in again.stderr  # no cell was run
    assert (folder / "ledger.jsonl").read_bytes() == before
    again = command("compare.run", *args[: -len(SMALL_METHODS)], "xz", "--resume", timeout=120)
    assert again.returncode == 0, again.stderr
    assert (folder / "ledger.jsonl").read_bytes() == before  # of all methods
    # Without --resume, as after a kill between the last cell and the ledger.
    (folder / "ledger.jsonl").unlink()
    again = command("compare.run", *args, "--price-per-hour", "7", timeout=120)
    assert again.returncode == 0, again.stderr
    assert "all cells have been measured" in again.stderr
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert "in money at 7 per hour" in (folder / "verdict.md").read_text()
    other = (*args, "--test-documents", "5")
    refused = command("compare.run", *other)
    assert refused.returncode == 2
    assert "exists; continue it with --resume" in refused.stderr
    refused = command("compare.run", *other, "--resume")
    assert refused.returncode == 2
    assert "cells were measured with other settings, data or code (" in refused.stderr
    assert (folder / "ledger.jsonl").read_bytes() == before
    planned = command("compare.run", *other, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"{cells} cells, {cells} to run in {folder}" in planned.stdout
    assert re.search(r"about [1-9]\d* minutes", planned.stdout)
    assert re.search(r"task lora +sizes 16 +1 seeds, 2 settings tried", planned.stdout)


def check_failed_cell(command, args, folder, tmp_path, cells):
    # A failed cell is named and does not affect the others.
    (folder / "cells" / "scratch-supervised-task-16-0.json").rename(tmp_path / "kept.json")
    (folder / "ledger.jsonl").unlink()
    (folder / "models").rename(tmp_path / "models")
    failed = command("compare.run", *args, "--resume", timeout=300)
    assert failed.returncode == 2
    assert "error: scratch-supervised-task-16-0 failed (see above)" in failed.stderr
    assert len(Ledger.read(folder).rows) == cells - 1
    (tmp_path / "models").rename(folder / "models")
    (tmp_path / "kept.json").rename(folder / "cells" / "scratch-supervised-task-16-0.json")


def check_kills(command, args, folder, before):
    # Killed at any point and resumed, the ledger has the same deterministic numbers.
    names = ("ngram-text-1-0", "few-shot-text-0-0", "tfidf-task-16-0")
    for name in names:
        (folder / "cells" / f"{name}.json").unlink()
    (folder / "cells" / "zero-shot-text-0-0.json").write_text('{"id": "zero-sh')  # truncated
    shutil.rmtree(folder / "plots")
    (folder / "ledger.jsonl").unlink()
    # While a cell is measured; after the first one is saved; before the last one.
    points = (f"=== {names[0]}", f"=== {names[0]}: ", "=== zero-shot-text-0-0: ", f"=== {names[2]}")
    for point in points:
        running = command.start("compare.run", *args, "--resume")
        output = ""
        while point not in output:
            line = running.stderr.readline()
            assert line, output
            output += line
        running.kill()
        running.communicate()
        assert running.returncode == -signal.SIGKILL
    kept = {p.stem for p in (folder / "cells").glob("*.json")}
    assert names[0] in kept
    assert names[2] not in kept
    again = command("compare.run", *args, "--resume", timeout=600)
    assert again.returncode == 0, again.stderr
    old = {row["id"]: row for row in map(json.loads, before.decode().splitlines())}
    new = {row["id"]: row for row in Ledger.read(folder).rows}
    assert list(new) == list(old)
    for name, row in new.items():
        for key in ("correct", "document_bits"):
            assert row.get(key) == old[name].get(key), (name, key)


@pytest.mark.slow
def test_a_small_study_runs_resumes_and_is_not_run_again(command, cache, tmp_path):
    folder = tmp_path / "study"
    args = (DEMO, "--run-dir", folder, "--data.cache-dir", cache, *SMALL, "--methods", *SMALL_METHODS)
    done = command("compare.run", *args, timeout=1500)
    assert done.returncode == 0, done.stderr
    ledger, before = Ledger.read(folder), (folder / "ledger.jsonl").read_bytes()
    check_ledger(ledger, folder)
    cells = len(ledger.rows) + len(ledger.searches)
    check_resume(command, args, folder, before, cells)
    check_failed_cell(command, args, folder, tmp_path, len(ledger.rows))
    check_kills(command, args, folder, before)


@pytest.mark.slow
def test_a_study_killed_during_training_resumes_with_the_same_numbers(command, cache, tmp_path):
    """Also: a second run with the same calibration gives the same numbers, under load too."""
    args = (DEMO, "--data.cache-dir", cache, *SMALL, "--methods", "scratch", "scratch-supervised")
    done = command("compare.run", *args, "--run-dir", tmp_path / "whole", timeout=900)
    assert done.returncode == 0, done.stderr
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        (tmp_path / "cut").mkdir()
        for name in (".homegrown", "config.toml", "calibration.json"):
            shutil.copy(tmp_path / "whole" / name, tmp_path / "cut" / name)
        (tmp_path / "cut" / "cells").mkdir()
        for method in ("scratch-text-1-search", "scratch-supervised-task-16-0"):
            running = command.start("compare.run", *args, "--run-dir", tmp_path / "cut", "--resume")
            steps = tmp_path / "cut" / "training" / method / "metrics.jsonl"
            while not (steps.exists() and steps.read_text().count("\n") > 5):
                assert running.poll() is None
                time.sleep(0.05)
            running.kill()  # only the parent: the worker must notice
            running.communicate()
        again = command("compare.run", *args, "--run-dir", tmp_path / "cut", "--resume", timeout=900)
        assert again.returncode == 0, again.stderr
        assert "calibration" not in again.stderr
    finally:
        busy.kill()
        busy.wait()
    whole, cut = (Ledger.read(tmp_path / folder).rows for folder in ("whole", "cut"))
    same = ("id", "setting", "document_bits", "correct", "training_steps", "training_seconds", "kept_step")
    for key in same:
        assert [row.get(key) for row in whole] == [row.get(key) for row in cut], key


def test_a_search_chooses_by_validation_and_keeps_its_model(study):
    search = run_cell(study, Cell("scratch", "text", 1.0, SEARCH_SEED))
    tried = {each["setting"]["rate"]: each["validation"] for each in search["search"]}
    assert search["setting"] == {"rate": max(tried, key=tried.get)}
    assert "document_bits" not in search
    assert load_model(study.folder / "models" / "scratch-text-1-search")
    cell = Cell("scratch", "text", 1.0, 0)
    row = run_cell(study, cell)
    assert row["setting"] == search["setting"]
    model, tokenizer = load_model(study.folder / "models" / cell.name)
    kept = document_bits(prepare_inference(model), tokenizer, study.test)
    assert kept == pytest.approx(row["document_bits"], rel=1e-3)
    assert row["training_steps"] == 36
    assert row["training_seconds"] - 36 == pytest.approx(0, abs=5)  # calibrated steps and the tokenizer
    assert row["evaluations"] == 13
    cost = cost_of([row], search)
    assert cost.fixed_flops == pytest.approx(row["training_flops"] + sum(each["flops"] for each in search["search"]))
    assert 2**27 < row["peak_bytes"] < 2**33  # torch itself takes more
    assert row["stored_bytes"] == 4 * model.num_parameters()
    assert row["overlap"] == study.held_out.overlap(study.training_texts(cell))
    assert row["epochs"] * len(study.training_texts(cell)) > row["training_steps"] >= row["kept_step"] > 0
    half = run_cell(study, cell._replace(factor=0.5, seed=SEARCH_SEED))
    assert half["training_steps"] == 24
    assert len(row["groups"]) == len(study.test)


def test_a_cell_measured_twice_gives_the_same_numbers(study):
    cell = Cell("scratch", "text", 0.2, 0)
    run_cell(study, cell.search)
    first, second = measure(study, cell), measure(Study(study.folder), cell)
    assert first["document_bits"] == second["document_bits"]


def test_a_cell_without_its_search_is_refused(study):
    with pytest.raises(UserError, match="scratch-text-1-search is missing or damaged"):
        measure(study, Cell("scratch", "text", 1.0, 0))


def test_the_test_split_is_read_once_and_validation_labels_are_counted(study, monkeypatch):
    asked = []
    method = METHODS["tfidf"]

    def learn(*args):
        learned = method.learn(*args)
        answers = learned.model.answers
        learned.model.answers = lambda items: asked.append(len(items)) or answers(items)
        return learned

    monkeypatch.setitem(METHODS, "tfidf", method._replace(learn=learn))
    cell = Cell("tfidf", "task", 8.0, 0)
    run_cell(study, cell.search)
    count = len(study.labelled_task(cell, 8).validation)
    assert asked == [count, count]  # for each setting
    row = measure(study, cell)
    assert asked == [count, count, len(study.task.test)]
    assert row["labels"] == 8 + count
    assert len(row["groups"]) == len(row["items"]) == len(row["correct"])
    assert measure(study, Cell("majority", "task", 8.0, 0))["labels"] == 8  # no validation


def test_features_are_extracted_once_for_all_settings(study):
    search = run_cell(study, Cell("features", "task", 64.0, SEARCH_SEED))
    first, second = search["search"]
    assert first["flops"] > second["flops"] > 0


def test_a_ledger_of_the_first_edition_is_refused(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"id": "xz-text-1-0", "arm": "xz", "commit": "0123456789abc"}\n')
    for read in (Ledger.read, lambda folder: read_measured(folder, {})):
        with pytest.raises(
            UserError, match=r"its ledger is of edition 1 of the protocol.*check out the commit 0123456789"
        ):
            read(tmp_path)


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


@pytest.mark.slow
def test_cells_run_on_a_cluster_into_the_same_ledger(command, cache, tmp_path):
    pytest.importorskip("ray")
    args = (DEMO, "--data.cache-dir", cache, *SMALL, "--methods", "xz", "majority", "tfidf")
    for folder, more in (("alone", ()), ("ray", ("--ray",))):
        done = command("compare.run", *args, "--run-dir", tmp_path / folder, *more, timeout=600)
        assert done.returncode == 0, done.stderr
    alone, cluster = (Ledger.read(tmp_path / folder).rows for folder in ("alone", "ray"))
    for key in ("id", "correct", "document_bits", "setting"):
        assert [row.get(key) for row in alone] == [row.get(key) for row in cluster]
