"""Compiled blocks: the same losses, tried only where it can pay, remembered, not needed."""

import json

import pytest
import torch

from configs.schema import ModelConfig
from model.build import build_model
from train import compilation
from train.forward import set_block_forward
from train.metrics import read_metrics


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Where answers go; every run is long enough to be tried."""
    monkeypatch.setattr(compilation, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(compilation, "CACHE", tmp_path / "tried")
    torch.compiler.reset()
    return tmp_path / "tried"


def losses(run):
    return [row["loss"] for row in read_metrics(run) if "loss" in row]


def test_compiled_blocks_learn_the_same(fit):
    torch.compiler.reset()
    _, plain, _ = fit(name="plain")
    _, run, model = fit(name="compiled", compile="always")
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    assert all("forward" in vars(layer) for layer in model.layers)
    _, again, _ = fit(name="recomputed", compile="always", activation_checkpointing=True)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)


def test_every_part_compiled_in_bfloat16_is_as_near_to_float32_as_it_is_not_compiled(recwarn):
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


def test_an_answer_is_found_once_and_used(fit, tried, capsys):
    _, first, _ = fit(name="first", steps=2)
    (path,) = tried.iterdir()
    assert json.loads(path.read_text())["speedup"] > 0
    assert str(path) in capsys.readouterr().err
    for speedup, used in ((2.0, True), (1.0, False)):
        path.write_text(json.dumps({"speedup": speedup, "why": ""}))
        _, run, model = fit(name=f"at-{speedup}", steps=2)
        assert all(("forward" in vars(layer)) is used for layer in model.layers)
        assert ("; used (" if used else "; not used (") in capsys.readouterr().err
        assert losses(run) == pytest.approx(losses(first), rel=1e-5)
    assert list(tried.iterdir()) == [path]


def test_short_runs_are_left_alone_whatever_a_long_one_found(fit, tried, monkeypatch):
    fit(name="long", steps=2)
    (path,) = tried.iterdir()
    path.write_text(json.dumps({"speedup": 9.0, "why": ""}))
    monkeypatch.setattr(compilation, "MIN_RUN_SECONDS", 600.0)
    _, _, model = fit(name="short", steps=2)
    assert not any("forward" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_does_what_it_did_before(fit, tried, before):
    fit(name="to-learn-where-the-answer-goes", steps=2)
    (path,) = tried.iterdir()
    for used, resume, steps in ((before, False, 2), (not before, True, 4)):
        path.write_text(json.dumps({"speedup": 9.0 * used, "why": ""}))
        _, run, model = fit(steps=steps, resume=resume)
        assert all(("forward" in vars(layer)) is before for layer in model.layers)
    assert len(losses(run)) == 4


def test_without_a_compiler_training_goes_on(fit, tried, monkeypatch, capsys):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/g++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    _, run, _ = fit(steps=2)
    assert len(losses(run)) == 2
    said = capsys.readouterr().err
    assert "0.00 times as fast (" in said
    assert "not used" in said
