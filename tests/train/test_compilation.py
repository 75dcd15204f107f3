"""torch.compile: the same losses, measured only in long runs, cached, and optional."""

import json

import pytest
import torch

from configs.schema import ModelConfig
from model.build import build_model
from train import compilation
from train.forward import set_block_forward
from train.metrics import read_metrics


@pytest.fixture
def compile_cache(tmp_path, monkeypatch):
    """The folder of cached speedups; every run is long enough to be measured."""
    monkeypatch.setattr(compilation, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(compilation, "CACHE", tmp_path / "compile_cache")
    torch.compiler.reset()
    return tmp_path / "compile_cache"


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


def test_the_speedup_is_measured_once_and_cached(fit, compile_cache, capsys):
    _, first, _ = fit(name="first", steps=2)
    (path,) = compile_cache.iterdir()
    assert json.loads(path.read_text())["speedup"] > 0
    assert str(path) in capsys.readouterr().err
    for speedup, used in ((2.0, True), (1.0, False)):
        path.write_text(json.dumps({"speedup": speedup, "why": ""}))
        _, run, model = fit(name=f"at-{speedup}", steps=2)
        assert all(("forward" in vars(layer)) is used for layer in model.layers)
        assert ("; used (" if used else "; not used (") in capsys.readouterr().err
        assert losses(run) == pytest.approx(losses(first), rel=1e-5)
    assert list(compile_cache.iterdir()) == [path]


def test_short_runs_ignore_the_cached_speedup(fit, compile_cache, monkeypatch):
    fit(name="long", steps=2)
    (path,) = compile_cache.iterdir()
    path.write_text(json.dumps({"speedup": 9.0, "why": ""}))
    monkeypatch.setattr(compilation, "MIN_RUN_SECONDS", 600.0)
    _, _, model = fit(name="short", steps=2)
    assert not any("forward" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_repeats_its_choice(fit, compile_cache, before):
    fit(name="to-create-the-cache-file", steps=2)
    (path,) = compile_cache.iterdir()
    for faster, resume, steps in ((before, False, 2), (not before, True, 4)):
        path.write_text(json.dumps({"speedup": 9.0 * faster, "why": ""}))
        _, run, model = fit(steps=steps, resume=resume)
        assert all(("forward" in vars(layer)) is before for layer in model.layers)
    assert len(losses(run)) == 4


def test_training_works_without_a_compiler(fit, compile_cache, monkeypatch, capsys):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/g++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    _, run, _ = fit(steps=2)
    assert len(losses(run)) == 2
    said = capsys.readouterr().err
    assert "0.00 times as fast (" in said
    assert "not used" in said
