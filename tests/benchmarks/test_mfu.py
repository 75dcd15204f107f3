"""The implementations of the MFU benchmark compute the same model."""

import pytest
import torch

from benchmarks.mfu import measure, plain, sdpa, use_torch_operators
from configs.schema import ModelConfig, Recipe
from model.build import build_model

SHAPE = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, max_seq_len=32)


@pytest.mark.parametrize("attend", [sdpa, plain])
def test_torch_operators_give_the_same_loss_and_gradients(attend):
    net = build_model(SHAPE, 300).init_weights(0)
    x, y = torch.randint(0, 300, (2, 3, 32), generator=torch.Generator().manual_seed(0))
    found = []
    for attention in (None, attend):
        net.zero_grad()
        if attention is None:
            loss = net(x, targets=y)
        else:
            with use_torch_operators(attention):
                loss = net(x, targets=y)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in net.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_implementation_is_timed():
    recipe = Recipe(model=SHAPE)
    rows = measure(recipe, 300, batch=2, rounds=2)
    assert [row["way"].split(",")[0] for row in rows] == ["ours", "sdpa", "plain"] * 2
    assert all(row["tokens_per_second"] > 0 and 0 < row["share_of_product"] < 1 for row in rows)
    assert rows[3]["time_over_ours_compiled"] == 1
