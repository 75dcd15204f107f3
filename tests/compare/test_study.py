"""A whole study with the real foundation model, reduced to minutes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from texts import words

from compare.analysis.ledger import Ledger
from compare.context import Study, prepare_inference
from compare.methods.train import EVALUATIONS, MIN_STEPS
from configs.schema import TokenizerConfig
from model.likelihood import document_bits
from model.load import load_model
from tokenizer.train import train_tokenizer

DEMO = "configs/study/demo.toml"
SMALL = (
    *("--task-methods", "majority", "tfidf", "zero-shot", "few-shot", "scratch-supervised", "lora"),
    *("--budget-seconds", "1", "--tries", "2", "--shares", "1.0", "--labels", "16", "--seq-len", "64"),
    *("--lora.text.batch-size", "1", "--lora.text.micro-batch-size", "1"),
    *("--lora.task.batch-size", "1", "--lora.task.micro-batch-size", "1"),
    *("--test-documents", "6", "--task.test-items", "8", "--task.train-items", "100", "--task.max-chars", "60"),
)


SMALL_METHODS = ["xz", "ngram", "zero-shot", "few-shot", "scratch", "majority", "tfidf", "scratch-supervised", "lora"]


def check_ledger(ledger, folder):
    assert set(ledger.methods("text")) == {"xz", "ngram", "zero-shot", "few-shot", "scratch", "lora"}
    assert {"scratch-supervised", "lora", "tfidf", "few-shot"} <= set(ledger.methods("task"))
    asked = [item.id for item in Study(folder).task.test]
    assert 4 <= len(asked) <= 8
    for row in ledger.rows:
        assert {"config_hash", "seed", "commit", "device", "versions", "command", "left_out"} <= row.keys()
        assert row["overlap"] <= 0.8
        if row["method"] in ("zero-shot", "scratch", "lora"):
            assert row["inference_precision"] in ("float32", "bfloat16")
        if "correct" in row:
            assert row["items"] == asked
            assert len(row["correct"]) == len(asked)
    for method in ("scratch", "lora"):
        (row,) = ledger.largest("text", method)
        assert row["training_steps"] >= MIN_STEPS
        assert row["evaluations"] == EVALUATIONS + 1
        assert row["training_flops"] > 0
        assert ("general_bits" in row) == (method == "lora")
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


def check_search(ledger):
    for method in ("scratch", "lora"):
        search = ledger.search_of("text", method, 1.0)
        assert len(search["search"]) == 2
        assert search["setting"] == max(search["search"], key=lambda each: each["validation"])["setting"]
        assert ledger.largest("text", method)[0]["setting"] == search["setting"]
        assert "document_bits" not in search


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
    old = {
        row["id"]: row for row in map(json.loads, before.decode().splitlines()) if "seed" in row and "search" not in row
    }
    new = {row["id"]: row for row in Ledger.read(folder).rows}
    assert list(new) == list(old)
    for name, row in new.items():
        for key in ("correct", "document_bits"):
            assert row.get(key) == old[name].get(key), (name, key)


def check_keep(command, args, folder, ledger):
    # Trained again, the winner has the weights that were measured.
    kept = command("compare.run", *args, "--resume", "--keep", timeout=600)
    assert kept.returncode == 0, kept.stderr
    study = Study(folder)
    for about in (folder / "kept").glob("text-*/about.json"):
        cell = json.loads(about.read_text())
        if (about.parent / "checkpoints").exists():
            (row,) = (row for row in ledger.rows if (row["method"], row["axis"]) == (cell["method"], "text"))
            model, tokenizer = load_model(str(about.parent))
            assert document_bits(prepare_inference(model), tokenizer, study.test) == row["document_bits"]
            sampled = command("model.sample", about.parent, "--prompt", "X:1", "--max-new-tokens", "4", timeout=300)
            assert sampled.returncode == 0, sampled.stderr
            break
    else:
        raise AssertionError("no model of the text was kept")
    answers = command("adapt.classify", folder / "kept" / "task-16-tfidf", timeout=300)
    assert answers.returncode == 0, answers.stderr
    assert "test items" in answers.stdout
    prompt = min((folder / "kept").glob("task-*/prompt.toml"))
    answers = command("prompting.evaluate", prompt, timeout=300)
    assert answers.returncode == 0, answers.stderr
    assert "test items" in answers.stdout


@pytest.fixture(scope="module")
def small_foundations(tmp_path_factory):
    """Random models of 0.1 million parameters, a Llama and a Qwen3: what is measured does not matter."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = train_tokenizer([words(3, 2000)], TokenizerConfig(vocab_size=400)).to_json()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": 400, "max_position_embeddings": 2048, "num_key_value_heads": 4, "head_dim": 16}
    folders = []
    for config, kind in ((LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)):
        folders.append(tmp_path_factory.mktemp(config.model_type))
        torch.manual_seed(0)
        kind(config(**shape)).save_pretrained(folders[-1])
        (folders[-1] / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return folders


@pytest.mark.slow
def test_a_small_study_measures_every_method_and_keeps_the_best(command, cache, tmp_path):
    folder = tmp_path / "study"
    once = ("--tries", "1")  # half of the time; the search is checked with a smaller foundation below
    args = (DEMO, "--run-dir", folder, "--data.cache-dir", cache, *SMALL, *once, "--methods", *SMALL_METHODS)
    done = command("compare.run", *args, timeout=1500)
    assert done.returncode == 0, done.stderr
    ledger = Ledger.read(folder)
    check_ledger(ledger, folder)
    check_keep(command, args, folder, ledger)


@pytest.mark.slow
def test_a_study_resumes_and_is_not_run_again(command, cache, small_foundations, tmp_path):
    folder = tmp_path / "study"
    shared = ("--run-dir", folder, "--data.cache-dir", cache, "--foundations", small_foundations[0], *SMALL)
    args = (DEMO, *shared, "--methods", *SMALL_METHODS)
    done = command("compare.run", *args, timeout=600)
    assert done.returncode == 0, done.stderr
    ledger, before = Ledger.read(folder), (folder / "ledger.jsonl").read_bytes()
    check_search(ledger)
    check_resume(command, args, folder, before, len(ledger.rows) + len(ledger.searches))
    check_failed_cell(command, args, folder, tmp_path, len(ledger.rows))
    check_kills(command, args, folder, before)


@pytest.mark.slow
def test_several_foundations_are_measured_and_compared(command, cache, small_foundations, tmp_path):
    folder, methods = tmp_path / "study", ("xz", "zero-shot", "scratch", "lora")
    shared = ("--run-dir", folder, "--data.cache-dir", cache, "--foundations", *small_foundations, *SMALL)
    done = command("compare.run", DEMO, *shared, "--task.name=", "--tries", "1", "--methods", *methods, timeout=600)
    assert done.returncode == 0, done.stderr
    ledger, verdict = Ledger.read(folder), (folder / "verdict.md").read_text()
    assert len(set(ledger.variants("text", "lora"))) == 2
    for name in small_foundations:
        assert f"Without tuning, {name} needs" in verdict
    advice, *_ = (folder / "answer.md").read_text().split("\n\n")
    assert (
        f"Untuned, {small_foundations[0]} predicts" in advice or f"Untuned, {small_foundations[1]} predicts" in advice
    )


@pytest.mark.slow
def test_a_study_killed_during_training_resumes_with_the_same_numbers(command, cache, tmp_path):
    """Also: a second run with the same calibration gives the same numbers, under load too."""
    args = (DEMO, "--data.cache-dir", cache, *SMALL, "--methods", "scratch", "scratch-supervised")
    done = command("compare.run", *args, "--run-dir", tmp_path / "whole", timeout=900)
    assert done.returncode == 0, done.stderr
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        (tmp_path / "cut").mkdir()
        for name in (".homegrown", "config.toml"):
            shutil.copy(tmp_path / "whole" / name, tmp_path / "cut" / name)
        calibration, *_ = (tmp_path / "whole" / "ledger.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "cut" / "ledger.jsonl").write_text(calibration)
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
    same = ("id", "setting", "document_bits", "correct", "training_steps", "kept_step")
    for key in same:
        assert [row.get(key) for row in whole] == [row.get(key) for row in cut], key


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
