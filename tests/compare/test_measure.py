"""Cells of a small study, measured in this process."""

import math
import os
import subprocess
import sys

import pytest
import torch
from cells import run_cell

from cli.errors import UserError
from cli.recipes import to_toml
from compare import context
from compare.analysis.ledger import Ledger, cost_of
from compare.calibrate import warn_if_busy
from compare.context import SEARCH_SEED, Cell, Study, prepare_inference
from compare.measure import measure
from compare.methods import METHODS
from compare.plan import hash_cells, plan, read_measured
from model.likelihood import document_bits
from model.load import load_model
from train.metrics import read_metrics


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


def test_the_foundation_is_loaded_once_per_process(study, monkeypatch):
    loaded = []
    monkeypatch.setattr(context, "load_model", lambda name: loaded.append(name) or load_model(name))
    first, tokenizer = study.load_foundation(Cell("lora", "text", 1.0, 0))
    with torch.no_grad():
        next(first.parameters()).zero_()  # a cell that trains does not change the next cell's
    second, same = study.load_foundation(Cell("zero-shot", "task", 0.0, 0))
    assert loaded == [study.recipe.foundations[0]]
    assert next(second.parameters()).any()
    assert same is tokenizer


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


def test_a_training_is_evaluated_twelve_times_at_even_distances(study):
    study.calibration["speeds"]["scratch-text"]["step_seconds"] = 36 / 31  # 31 steps, no multiple of twelve
    cell = Cell("scratch", "text", 1.0, SEARCH_SEED)
    run_cell(study, cell)
    rows = read_metrics(study.folder / "training" / cell.name)  # of the last try
    steps = [row["step"] for row in rows if "bits_per_byte" in row]
    assert steps == [math.ceil(31 * part / 12) for part in range(13)]


def test_a_calibration_beside_other_work_warns(capsys):
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        warn_if_busy()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert "WARNING: other programs use" in capsys.readouterr().err
