"""torch.compile: the same losses, measured only in long runs, once, and optional."""

import json

import pytest
import torch

from configs.schema import ModelConfig
from model.build import build_model
from train import compilation
from train.forward import set_block_forward
from train.metrics import read_metrics


@pytest.fixture
def every_run_is_long(monkeypatch):
    monkeypatch.setattr(compilation, "MIN_RUN_SECONDS", 0.0)
    torch.compiler.reset()


def losses(run):
    return [row["loss"] for row in read_metrics(run) if "loss" in row]


def test_compiled_blocks_give_the_same_losses(fit):
    torch.compiler.reset()
    _, plain, _ = fit(name="plain")
    _, run, model = fit(name="compiled", compile="always")
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    assert all("forward" in vars(layer) for layer in model.layers)
    _, again, _ = fit(name="recomputed", compile="always", activation_checkpointing=True)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)


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
            set_block_forward(model, compiled=True, checkpointing=False)
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
    fit, every_run_is_long, monkeypatch, capsys, speedup
):
    _, plain, _ = fit(name="plain", compile="never", steps=2)
    times = []

    def median(ratios):
        times.append(ratios)
        return speedup

    monkeypatch.setattr(compilation.statistics, "median", median)
    for resume, steps in ((False, 2), (True, 4)):
        _, run, model = fit(steps=steps, resume=resume)
        assert all(("forward" in vars(layer)) is (speedup > 1) for layer in model.layers)
    assert json.loads((run / "compiled.json").read_text()) == {"speedup": speedup}
    assert len(times) == 1
    assert min(times[0]) > 0
    assert ("; used" if speedup > 1 else "; not used") in capsys.readouterr().err
    assert losses(run)[:2] == pytest.approx(losses(plain), rel=1e-5)
    assert len(losses(run)) == 4


def test_short_runs_are_not_measured(fit, capsys):
    _, _, model = fit(name="short", steps=2)
    assert not any("forward" in vars(layer) for layer in model.layers)
    assert "torch.compile" not in capsys.readouterr().err


def test_training_works_without_a_compiler(fit, every_run_is_long, monkeypatch, capsys):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/g++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    _, run, _ = fit(steps=2)
    assert len(losses(run)) == 2
    said = capsys.readouterr().err
    assert "0.00 times as fast (" in said
    assert "not used" in said
