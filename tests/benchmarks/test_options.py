"""Windows and document masks train for as many seconds as the full recipe."""

import pytest
import torch

from benchmarks import grid
from benchmarks.options import CORPORA, SEEDS, SHARE, plan_cells, shares_of
from configs.schema import ModelConfig
from model.build import build_model
from train.optim import build_optimizers

SECONDS = {
    "full": [1.0, 1.1, 0.9],
    "portable": [0.5] * 3,
    "window": [1.25, 1.375, 1.0],
    "document mask": [2.0, 2.2, 1.8],
}


def test_a_slower_step_gets_fewer_steps():
    shares = shares_of([], SECONDS)
    assert shares == pytest.approx(
        {"full": SHARE, "portable": SHARE, "window": SHARE / 1.25, "document mask": SHARE / 2}
    )
    cells = plan_cells(shares)
    assert len(cells) == len(SECONDS) * len(SEEDS) * len(CORPORA)
    steps = {cell["way"]: grid.build_recipe(cell).train.steps for cell in cells}
    assert steps["document mask"] == pytest.approx(steps["full"] / 2, abs=1)


def test_another_timing_does_not_change_cells_that_have_run():
    rows = [cell for cell in plan_cells(shares_of([], SECONDS)) if cell["way"] == "window"][:1]
    slower = SECONDS | {"window": [3.0] * 3, "document mask": [3.0] * 3}
    shares = shares_of(rows, slower)
    assert shares["window"] == pytest.approx(SHARE / 1.25)
    assert shares["document mask"] == pytest.approx(SHARE / 3, abs=1e-4)


def test_a_timed_step_masks_documents(monkeypatch):
    model = build_model(ModelConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=2, hidden_dim=32, max_seq_len=256), 300)
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **options: calls.append(options) or forward(*a, **options))
    x = torch.ones(1, 256, dtype=torch.long)
    x[:, ::100] = 0
    parameters = dict(model.named_parameters())
    optimizers = build_optimizers(
        parameters, grid.build_recipe(plan_cells({"full": SHARE})[0]).train, 1.0, torch.bfloat16
    )
    for separator in (0, -1):
        grid.train_step(model, parameters, optimizers, (x, x), separator)
    masked, plain = calls
    assert masked["document_starts"].unique().tolist() == [0, 100, 200]
    assert "document_starts" not in plain
