"""A whole study with the real foundation model, reduced to minutes."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from cli.errors import UserError
from cli.recipes import load, to_toml
from compare.analysis.ledger import Ledger, cost_of
from compare.cells import measure
from compare.context import Cell, Study, prepare_inference
from compare.methods import METHODS
from compare.plan import hash_cells, plan, read_measured, shrink
from configs.study_recipe import StudyRecipe
from model.likelihood import document_bits
from model.load import load_model

DEMO = "configs/study/demo.toml"
SMALL = (
    "--budget-seconds",
    "5",
    "--test-documents",
    "6",
    "--task.test-items",
    "8",
    "--task.train-items",
    "100",
    "--labels",
    "16",
    "--shares",
    "1.0",
)


def test_a_plan_puts_base_methods_first():
    study = load(StudyRecipe, DEMO)
    study = study.model_copy(update={"seeds": [3, 4], "text_methods": ["xz", "zero-shot"]})
    cells = plan(study, ["scratch-supervised", "tfidf", "text-then-shots"])
    study = study.model_copy(update={"task_methods": ["scratch-supervised"]})
    cells = plan(study)
    names = [(c.method, c.axis, c.seed) for c in cells]
    assert names.index(("scratch", "text", 3)) < names.index(("scratch-supervised", "task", 3))
    assert ("scratch", "text", 4) in names
    assert names.count(("xz", "text", 4)) == len(study.shares)  # the seed samples the documents
    assert ("zero-shot", "text", 4) not in names  # does not depend on the seed
    assert len(set(cells)) == len(cells)
    assert {c.seed for c in plan(shrink(study))} == {3}
    with pytest.raises(UserError, match='no method "lorra"; did you mean "lora"'):
        plan(study, ["lorra"])


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
    study = load(StudyRecipe, DEMO)
    rates = [1e-3, 2e-3, 3e-3]
    same = {"text_rates": rates, "task_rates": rates}
    changes = {
        name: getattr(study, name).model_copy(update=same)
        for name in ("scratch", "full", "top_layers", "lora", "soft_prompt")
    }
    study = study.model_copy(update={"tries": 3, **changes})
    for name, method in METHODS.items():
        for axis in method.sizes:
            tried = method.settings(study, axis)
            assert len(tried) == 3 or tried == [{}], name
            assert len({str(setting) for setting in tried}) == len(tried)


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
    scratch = study.recipe.scratch.model_dump() | {"task_rates": [1e-3, 2e-3]}
    assert changed(scratch=scratch) == {"scratch-supervised", "random-supervised"}
    scratch = study.recipe.scratch.model_dump() | {"text_rates": [1e-3, 2e-3]}
    assert changed(scratch=scratch) == {"scratch", "scratch-supervised"}  # whose base method is scratch
    assert changed(budget_flops=2e10) == set(METHODS)
    path = Path(study.recipe.task.name)
    path.write_text(path.read_text().replace('"a"', '"c"', 1))
    assert changed() == set(METHODS)  # a label changed in the file


def test_an_unequal_search_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"lora\.text_rates has 2 rates, but tries = 1"):
        load(StudyRecipe, DEMO, ["--lora.text-rates", "1e-3", "2e-3"])


SMALL_METHODS = ["xz", "ngram", "zero-shot", "few-shot", "scratch", "majority", "tfidf", "scratch-supervised", "lora"]


def check_ledger(ledger, folder):
    assert set(ledger.methods("text")) == {"xz", "ngram", "zero-shot", "few-shot", "scratch", "lora"}
    assert {"scratch-supervised", "lora", "tfidf", "few-shot"} <= set(ledger.methods("task"))
    asked = [item.id for item in Study(folder).task.test]
    assert 4 <= len(asked) <= 8
    for row in ledger.rows:
        assert {"config_hash", "seed", "commit", "device", "versions", "command"} <= row.keys()
        assert row["overlap"] <= 0.8
        if "correct" in row:
            assert row["items"] == asked
            assert len(row["correct"]) == len(asked)
    for method in ("scratch", "lora"):
        (row,) = ledger.largest("text", method)
        assert 5 <= row["training_seconds"] < 60
        assert row["training_flops"] > 0
        assert row["general_bits"] > 0
        assert len(row["written"]) == 2
    assert ledger.largest("text", "lora")[0]["stored_bytes"] < 2e7
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
    assert "cells were measured with other settings or data (" in refused.stderr
    assert (folder / "ledger.jsonl").read_bytes() == before
    planned = command("compare.run", *other, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"{cells} cells, {cells} to run in {folder}" in planned.stdout
    assert re.search(r"about [1-9]\d* minutes", planned.stdout)
    assert re.search(r"task lora +sizes 16 +1 seeds, 1 settings tried", planned.stdout)


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
    check_resume(command, args, folder, before, len(ledger.rows))
    check_failed_cell(command, args, folder, tmp_path, len(ledger.rows))
    check_kills(command, args, folder, before)


@pytest.mark.slow
def test_a_study_killed_during_training_resumes_with_the_same_numbers(command, cache, tmp_path):
    args = (
        DEMO,
        "--data.cache-dir",
        cache,
        *SMALL,
        "--budget-flops",
        "4e11",
        "--methods",
        "scratch",
        "scratch-supervised",
    )
    done = command("compare.run", *args, "--run-dir", tmp_path / "whole", timeout=900)
    assert done.returncode == 0, done.stderr
    for method in ("scratch-text-1-0", "scratch-supervised-task-16-0"):
        running = command.start(
            "compare.run", *args, "--run-dir", tmp_path / "cut", *(["--resume"] if (tmp_path / "cut").exists() else [])
        )
        steps = tmp_path / "cut" / "training" / method / "metrics.jsonl"
        while not (steps.exists() and steps.read_text().count("\n") > 5):
            assert running.poll() is None
            time.sleep(0.05)
        running.kill()  # only the parent: the cell's process must notice
        running.communicate()
    again = command("compare.run", *args, "--run-dir", tmp_path / "cut", "--resume", timeout=900)
    assert again.returncode == 0, again.stderr
    whole, cut = (Ledger.read(tmp_path / folder).rows for folder in ("whole", "cut"))
    same = ("id", "setting", "document_bits", "correct", "training_steps", "general_bits")
    for key in same:
        assert [row.get(key) for row in whole] == [row.get(key) for row in cut], key


def test_the_model_of_the_chosen_try_is_saved(study):
    row = measure(study, Cell("scratch", "text", 1.0, 0))
    assert row["setting"] == {"rate": 6e-3}
    assert row["search"][0]["validation"] > row["search"][1]["validation"]
    model, tokenizer = load_model(study.folder / "models" / "scratch-0")
    kept = document_bits(prepare_inference(model), tokenizer, study.test)
    assert kept == pytest.approx(row["document_bits"], rel=1e-3)
    each = row["search"][0]["flops"]
    assert 1e10 <= each < 1.2e10  # the budget, and at most one step more
    assert cost_of([row]).fixed_flops == pytest.approx(2 * each, rel=0.01)
    assert 2**27 < row["peak_bytes"] < 2**33  # torch itself takes more
    assert row["stored_bytes"] == 4 * model.num_parameters()
    assert row["overlap"] == study.held_out.overlap(study.training_texts(1.0, "x"))
    assert row["epochs"] * len(study.training_texts(1.0, "x")) > row["training_steps"] > row["kept_step"] > 0
    general = document_bits(prepare_inference(model), tokenizer, study.general_texts)
    assert row["general_bits"] == pytest.approx(sum(general), rel=1e-3)


def test_the_test_split_is_read_once_and_validation_labels_are_counted(study, monkeypatch):
    asked = []
    method = METHODS["tfidf"]

    def learn(*args):
        learned = method.learn(*args)
        answers = learned.answers
        learned.answers = lambda split: asked.append(split) or answers(split)
        return learned

    monkeypatch.setitem(METHODS, "tfidf", method._replace(learn=learn))
    row = measure(study, Cell("tfidf", "task", 8.0, 0))
    assert asked == ["validation", "validation", "test"]
    assert row["labels"] == 8 + len(study.labelled_task(8, "x").validation)
    assert measure(study, Cell("majority", "task", 8.0, 0))["labels"] == 8  # no validation


def test_features_are_extracted_once_for_all_settings(study):
    row = measure(study, Cell("features", "task", 64.0, 0))
    first, second = row["search"]
    assert first["flops"] > second["flops"] > 0
    assert cost_of([row]).fixed_flops == pytest.approx(first["flops"] + second["flops"])


@pytest.mark.parametrize("damage", ["", '{"id": "xz', "[]", "null", '{"id": "other", "x": 1}', "\0"])
def test_a_damaged_cell_is_ignored(tmp_path, damage):
    cell = Cell("xz", "text", 1.0, 0)
    provenance = {cell: {"config_hash": "h"}}
    path = tmp_path / "cells" / f"{cell.name}.json"
    path.parent.mkdir()
    row = {"id": cell.name, "config_hash": "h", "wall_seconds": 1.0}
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
