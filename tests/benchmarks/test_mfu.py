"""The variants of the MFU benchmark compute the same model."""

import pytest
import torch

from benchmarks import mfu
from benchmarks.mfu_variants import GROUPS, VARIANTS, applied
from configs.schema import ModelConfig, Recipe
from model.build import build_model

SHAPE = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, max_seq_len=32)
ON_CPU = [name for name in VARIANTS if "cuDNN" not in name and "Flex" not in name]


@pytest.mark.parametrize("name", ON_CPU)
def test_a_variant_gives_the_same_loss_and_gradients(name):
    net = build_model(SHAPE, 300).init_weights(0)
    x, y = torch.randint(0, 300, (2, 3, 32), generator=torch.Generator().manual_seed(0))
    y[:, :5] = -100
    found, rounds = [], VARIANTS[name].bfloat16_residual
    for variant in (VARIANTS["ours"], VARIANTS[name]):
        net.zero_grad()
        with applied(variant), torch.autocast("cpu", torch.bfloat16, enabled=rounds):
            loss = net(x, targets=y)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in net.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=3e-3 if rounds else 1e-5, atol=0)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert (ours - theirs).norm() <= (5e-2 if rounds else 1e-4) * ours.norm()


def test_every_variant_belongs_to_a_group():
    assert {name for names in GROUPS.values() for name in names} == set(VARIANTS)
    assert all(names[0] == "ours" for names in GROUPS.values())  # the baseline


@pytest.mark.slow
@pytest.mark.parametrize("group", ["anatomy", "changes"])
def test_a_group_is_timed(group):
    recipe = Recipe(model=SHAPE)
    implementations = mfu.build(recipe, 300, GROUPS[group], None)
    rows = mfu.measure(recipe, 300, 2, 1, implementations)
    assert [row["variant"] for row in rows][: len(GROUPS[group])] == GROUPS[group]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert rows[0]["time_over_baseline"] == 1
