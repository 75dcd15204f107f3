"""Int8 weights: the matrix product, and the loss on real text."""

import copy
import math
from pathlib import Path

import pytest
import torch

from configs.schema import ModelConfig
from model.build import build_model
from model.int8 import MAX_KERNEL_ROWS, Int8Linear, equalize, quantize


@pytest.mark.parametrize(("rows_out", "columns"), [(96, 64), (1, 8), (33, 40), (100, 100)])
def test_product_uses_the_rounded_weights(rows_out, columns):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows_out, columns, generator=draw, dtype=torch.bfloat16)
    linear = Int8Linear(weight)
    exact = linear.weight.double() * linear.scale.double()[:, None]
    assert (exact - weight.double()).abs().max() <= 0.51 * linear.scale.max()
    for rows in (1, MAX_KERNEL_ROWS, MAX_KERNEL_ROWS + 1, 40):  # both implementations
        x = torch.randn(rows, columns, generator=draw, dtype=torch.bfloat16)
        torch.testing.assert_close(linear(x).double(), x.double() @ exact.T, rtol=0.02, atol=0.2)
    assert linear(torch.zeros(2, 3, columns, dtype=torch.bfloat16)).shape == (2, 3, rows_out)


def test_a_row_of_zeros_stays_zero():
    linear = Int8Linear(torch.zeros(4, 8, dtype=torch.bfloat16))
    assert (linear(torch.ones(1, 8, dtype=torch.bfloat16)) == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"activation": "relu2", "tie_embeddings": False}])
def test_equalize_keeps_the_outputs(options):
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48, **options)
    model, x = build_model(config, 61).init_weights(0).double(), torch.arange(50)[None]
    expected, w2 = model(x), model.layers[0].feed_forward.w2
    before = w2.weight.abs().amax(0)
    torch.testing.assert_close(equalize(model)(x), expected)
    torch.testing.assert_close(w2.weight.abs().amax(0), before**0.75)


@torch.no_grad()
def test_int8_loss_is_within_half_a_percent(foundation):
    model, tokenizer = foundation
    text = (Path(__file__).parents[2] / "kernels" / "README.md").read_text()[:4000]
    ids = torch.tensor([[tokenizer.separator_id, *tokenizer.encode(text)]])
    float32 = model(ids[:, :-1], targets=ids[:, 1:]).item()
    quantised = quantize(copy.deepcopy(model).to(torch.bfloat16))
    logits = quantised(ids[:, :-1]).float()
    int8 = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
    assert math.isclose(int8, float32, rel_tol=0.005)
    whole = sum(p.numel() * 4 for p in model.parameters())
    kept = {t.data_ptr(): t.nbytes for t in [*quantised.parameters(), *quantised.buffers()]}
    assert sum(kept.values()) < 0.4 * whole  # the embedding stays bfloat16
