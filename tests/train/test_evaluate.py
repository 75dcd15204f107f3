"""Evaluation: a cheap subset during a run, the whole split at its end, the same after a resume."""

import re

import numpy as np
import pytest
import torch

import train.evaluate as module
from cli.recipes import load
from configs.schema import Recipe, TrainConfig
from model.build import build_model
from model.export import _training_facts
from model.formats.native import checkpoints, read_manifest
from train.distributed import Ranks
from train.evaluate import FORWARD_TIME_SHARE, MAX_TIME_SHARE, MIN_TOKENS, evaluate, evaluation_subset
from train.metrics import read_metrics
from train.preflight import MemoryNeeds, find_micro_batch, free_memory, largest_micro_batch
from train.pretrain import load_data


class Data:
    """A dataset of `count` windows."""

    def __init__(self, count, seq_len):
        self.count, self.seq_len = count, seq_len

    def __len__(self):
        return self.count


@pytest.mark.parametrize(("every", "batch", "length"), [(250, 8, 512), (100, 8, 256), (10, 2, 64), (1000, 512, 1024)])
@pytest.mark.parametrize("windows", [1, 37, 2000, 10**6])
def test_a_periodic_evaluation_takes_one_percent_of_the_time(every, batch, length, windows):
    config = TrainConfig(eval_every=every, batch_size=batch)
    chosen = evaluation_subset(Data(windows, length), config)
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < windows
    cost = FORWARD_TIME_SHARE * len(chosen) / (every * batch)
    is_minimum = len(chosen) * length <= MIN_TOKENS
    assert cost <= MAX_TIME_SHARE or is_minimum or len(chosen) == 1
    if len(chosen) < windows:  # one more window would exceed the limit
        assert FORWARD_TIME_SHARE * (len(chosen) + 1) / (every * batch) > MAX_TIME_SHARE
    again = evaluation_subset(Data(windows, length), config)
    assert (chosen == again).all()


@pytest.fixture
def small_subset(monkeypatch):
    """Make the evaluation subset smaller than the validation split of the small corpus."""
    monkeypatch.setattr(module, "MIN_TOKENS", 640)


def test_the_whole_split_is_scored_once_at_the_end(small_subset, fit, recipe):
    result, run, model = fit(steps=6, eval_every=2, save_every=2, keep_last=9)
    rows = read_metrics(run)
    periodic = [row for row in rows if "bits_per_byte" in row]
    (whole,) = [row for row in rows if "whole_bits_per_byte" in row]
    assert [row["step"] for row in periodic] == [0, 2, 4, 6]
    assert whole["step"] == 6
    _, _, validation = load_data(load(Recipe, recipe))
    config = TrainConfig(micro_batch_size=4, eval_every=2, batch_size=8)
    with Ranks("cpu") as ranks:
        plain = torch.autocast("cpu", enabled=False)
        every = evaluate(model, model, validation, config, ranks, plain)
        subset = evaluation_subset(validation, config)
        some = evaluate(model, model, validation, config, ranks, plain, subset)
    assert 0 < len(subset) < len(validation)
    assert whole["whole_bits_per_byte"] == pytest.approx(every["bits_per_byte"], rel=1e-6)
    assert periodic[-1]["bits_per_byte"] == pytest.approx(some["bits_per_byte"], rel=1e-6)
    assert result.bits_per_byte == whole["whole_bits_per_byte"] != periodic[-1]["bits_per_byte"]
    # Checkpoints have the score of the subset, the model card that of the whole split.
    scores = [read_manifest(path)["bits_per_byte"] for path in checkpoints(run)]
    assert scores == [row["bits_per_byte"] for row in periodic[1:]]
    card = dict(_training_facts(run))
    assert card["Validation bits per byte"] == f"{whole['whole_bits_per_byte']:.4f}"


def test_a_resumed_run_scores_the_same_windows(small_subset, fit):
    _, whole, _ = fit(steps=6, eval_every=2, save_every=2, name="whole")
    fit(steps=4, eval_every=2, save_every=2, name="cut")
    _, cut, _ = fit(steps=6, eval_every=2, save_every=2, name="cut", resume=True)

    def scores(run):
        return {row["step"]: row["bits_per_byte"] for row in read_metrics(run) if "bits_per_byte" in row}

    # A run of 4 steps has another learning rate schedule, so only the first evaluation is equal.
    assert scores(whole)[0] == scores(cut)[0]
    assert scores(whole).keys() == scores(cut).keys()


def test_a_padded_batch_gives_the_same_score(recipe):
    config = load(Recipe, recipe)
    tokenizer, _, validation = load_data(config)
    model = build_model(config.model, tokenizer.vocab_size).init_weights(0)
    plain = torch.autocast("cpu", enabled=False)
    found = []
    with Ranks("cpu") as ranks:
        for rows, compiled in ((4, False), (7, False), (7, True), (64, True)):
            settings = config.train.model_copy(update={"micro_batch_size": rows})
            shapes: set[tuple] = set()

            def note(module, inputs, shapes=shapes):
                shapes.add(tuple(inputs[0].shape))

            hook = model.register_forward_pre_hook(note)
            score = evaluate(model, model, validation, settings, ranks, plain, None, compiled)
            hook.remove()
            found.append(score["bits_per_byte"])
            if compiled:
                assert shapes == {(rows, 64)}
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_preflight_prints_the_estimated_time(command, recipe, tmp_path):
    done = command("train.pretrain", recipe, "--run-dir", tmp_path / "run", "--train.steps", "20")
    assert done.returncode == 0, done.stderr
    said = re.search(
        r"time: about (\d+:\d\d) in total: training \d+:\d\d; 5 evaluations of ([\d,]+) windows "
        r"\d+:\d\d \(\d+\.\d%\)",
        done.stderr,
    )
    assert said, done.stderr
    assert done.stderr.index("time: about") < done.stderr.index("step 1 ")


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "fixed", "activations", "most", "rows"),
    [
        (2 * GIB, 8 * GIB, GIB, 128, 1),  # regression: this chose 128
        (0, GIB, GIB, 64, 1),
        (10 * GIB, 8 * GIB, GIB, 64, 1),
        (100 * GIB, GIB, GIB, 64, 64),
        (100 * GIB, GIB, GIB, 500, 64),  # 69 fit
        (100 * GIB, GIB, 2 * GIB, 33, 32),
        (100 * GIB, GIB, GIB, 1, 1),
        (100 * GIB, GIB, 0, 48, 32),
    ],
)
def test_the_largest_micro_batch_that_fits_is_chosen(free, fixed, activations, most, rows):
    assert largest_micro_batch(MemoryNeeds(free, 0, fixed, activations), most) == rows


def test_too_little_memory_prints_which_settings_to_lower(recipe, monkeypatch, capsys):
    config = load(Recipe, recipe)
    tokenizer, train_set, _ = load_data(config)
    model = build_model(config.model, tokenizer.vocab_size).init_weights(0)
    monkeypatch.setattr("train.preflight.free_memory", lambda device: 1000)
    settings = config.train.model_copy(update={"micro_batch_size": 0})
    with Ranks("cpu") as ranks:
        plain = torch.autocast("cpu", enabled=False)
        size, seconds = find_micro_batch(model, train_set, settings, ranks, plain)
    assert size == 1
    assert seconds > 0
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"WARNING: this run needs \d+ MiB of memory and \d+ MiB are free: lower", said)


def test_free_memory_is_plausible():
    assert 2**28 < free_memory(torch.device("cpu")) < 2**45
