"""torch.compile: the same losses, measured only in long runs, once, and optional."""

import json

import pytest
import torch

from cli.recipes import load
from configs.schema import ModelConfig, Recipe
from data.examples import Examples, encode_completions
from model.build import build_model
from train import compilation
from train.forward import set_forward
from train.metrics import read_metrics
from train.pretrain import load_data


@pytest.fixture
def every_run_is_long(monkeypatch):
    monkeypatch.setattr(compilation, "MIN_RUN_SECONDS", 0.0)
    torch.compiler.reset()


@pytest.fixture
def compiled(monkeypatch):
    """What trainings compile, in order: "", "blocks" or "model"."""
    extents = []

    def record(model, *, compiled="", checkpointing=False):
        extents.append(compiled)
        set_forward(model, compiled=compiled, checkpointing=checkpointing)

    monkeypatch.setattr(compilation, "set_forward", record)
    return extents


def losses(run):
    return [row["loss"] for row in read_metrics(run) if "loss" in row]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_compiled_model_gives_the_same_losses(fit, compiled, checkpointing):
    torch.compiler.reset()
    _, plain, _ = fit(name="plain", steps=50)
    _, run, model = fit(name="compiled", steps=50, compile="always", activation_checkpointing=checkpointing)
    assert compiled == ["model"]
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    assert "forward" not in vars(model)  # what follows a training is eager
    assert not any("forward" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize(("window", "document_mask"), [(8, False), (8, True), (0, True)])
def test_windows_and_document_masks_compile_to_one_graph(fit, compiled, recipe, window, document_mask):
    torch.compiler.reset()
    config = load(Recipe, recipe)
    tokenizer, *_ = load_data(config)
    shape = config.model.model_copy(update={"window": window})
    runs = []
    for compile in ("never", "always"):
        model = build_model(shape, tokenizer.vocab_size).init_weights(0)
        _, run, _ = fit(model=model, name=compile, steps=10, compile=compile, document_mask=document_mask)
        runs.append(losses(run))
    assert compiled == ["model"]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)


def test_examples_of_many_lengths_compile_by_block(fit, compiled, recipe):
    torch.compiler.reset()
    tokenizer, *_ = load_data(load(Recipe, recipe))
    pairs = [("a b c d " * n, " e" * (1 + 3 * (n % 4))) for n in range(1, 9)]
    examples = Examples(encode_completions(pairs, tokenizer), 64, tokenizer)
    _, plain, _ = fit((examples, examples), name="plain")
    _, run, _ = fit((examples, examples), name="compiled", compile="always")
    assert compiled == ["blocks"]
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)


def test_compiled_bfloat16_is_as_close_to_float32_as_eager_bfloat16(recwarn):
    torch.compiler.reset()
    config = ModelConfig(
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        hidden_dim=96,
        max_seq_len=64,
        activation="relu2",
        qk_norm=True,
        key_shift=True,
        tie_embeddings=False,
        embedding_norm=True,
        value_embeddings=True,
        bigram_buckets=99,
    )
    x, y = torch.randint(0, 101, (2, 2, 48), generator=torch.Generator().manual_seed(0))

    def gradients(bfloat16, compiled):
        model = build_model(config, 101).init_weights(0)
        if compiled:
            set_forward(model, compiled="blocks")
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(x, targets=y)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradients(bfloat16=False, compiled=False)
    torch.testing.assert_close(gradients(False, compiled=True), exact, atol=1e-3, rtol=1e-3)
    plain, compiled = ((gradients(True, c) - exact).norm() for c in (False, True))
    assert 0 < compiled < 1.5 * plain < 0.1 * exact.norm()
    assert not [str(w.message) for w in recwarn if "dtype" in str(w.message)]


@pytest.mark.parametrize("speedup", [2.0, 1.0])
def test_the_speedup_is_measured_and_a_resumed_run_repeats_its_choice(
    fit, compiled, every_run_is_long, monkeypatch, capsys, speedup
):
    _, plain, _ = fit(name="plain", compile="never", steps=2)
    times = []

    def median(ratios):
        times.append(ratios)
        return speedup

    monkeypatch.setattr(compilation.statistics, "median", median)
    for resume, steps in ((False, 2), (True, 4)):
        _, run, _ = fit(steps=steps, resume=resume)
        assert (compiled[-1] == "model") is (speedup > 1)
    assert json.loads((run / "compiled.json").read_text()) == {"speedup": speedup}
    assert len(times) == 1
    assert min(times[0]) > 0
    assert ("; used" if speedup > 1 else "; not used") in capsys.readouterr().err
    assert losses(run)[:2] == pytest.approx(losses(plain), rel=1e-5)
    assert len(losses(run)) == 4


def test_short_runs_are_not_measured(fit, compiled, capsys):
    fit(name="short", steps=2)
    assert compiled == []
    assert "torch.compile" not in capsys.readouterr().err


def test_training_works_without_a_compiler(fit, every_run_is_long, monkeypatch, capsys):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/g++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    _, run, _ = fit(steps=2)
    assert len(losses(run)) == 2
    said = capsys.readouterr().err
    assert "0.00 times as fast (" in said
    assert "not used" in said
