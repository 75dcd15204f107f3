"""The variants of the MFU benchmark compute the same model."""

import pytest
import torch

from benchmarks import mfu, mfu_variants
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


def test_clipping_in_the_update_takes_the_same_steps():
    """The first step of AdamW does not depend on the scale of the gradients, so there are more."""
    recipe, found = Recipe(model=SHAPE), {}
    net = build_model(SHAPE, 300).init_weights(0)
    with torch.no_grad():
        net.output.weight.mul_(100)
    batches = torch.randint(0, 300, (4, 2, 3, 32), generator=torch.Generator().manual_seed(0))
    for number, (_, y) in enumerate(batches):
        y[:, : 10 * number] = -100  # gradients of different norms
    for name, clips in (("clipped", False), ("in the update", True)):
        each = mfu.Implementation(net, mfu_variants.Variant(extent="", clip_in_update=clips), recipe)
        for x, y in batches:
            each.step(x, y)
        found[name] = torch.cat([p.detach().flatten() for p in each.parameters.values()])
    free = mfu.Implementation(net, mfu_variants.Variant(extent=""), recipe)
    norms = []
    for x, y in batches:
        (free.net(x, targets=y) / y.numel()).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in free.parameters.values()]).item())
        free.optimizer.step()
        free.optimizer.zero_grad()
    unclipped = torch.cat([p.detach().flatten() for p in free.parameters.values()])
    assert max(norms) > 1.5 * min(norms) > 1.5
    start = torch.cat([p.detach().flatten() for p in net.parameters()])
    moved = (found["clipped"] - start).norm()
    assert (found["in the update"] - found["clipped"]).norm() < 0.02 * moved
    assert (unclipped - found["clipped"]).norm() > 0.05 * moved


def test_every_variant_belongs_to_a_group():
    assert {name for names in GROUPS.values() for name in names} == set(VARIANTS)
    assert all(names[0] == "ours" for names in GROUPS.values())  # the baseline


@pytest.mark.slow
@pytest.mark.parametrize("group", ["anatomy", "changes"])
@torch._dynamo.config.patch(recompile_limit=64)  # pytest's monkeypatch would delete the setting at its end
def test_every_variant_of_a_group_is_compiled_and_timed(group):
    """A variant that ran another's compiled code would compile nothing of its own."""
    torch._dynamo.reset()
    recipe, compiled = Recipe(model=SHAPE), {}
    for name, each in mfu.build(recipe, 300, GROUPS[group], None).items():
        if name in VARIANTS:
            torch._dynamo.utils.counters.clear()
            *_, rows = mfu.measure(recipe, 300, 2, 1, {name: each})
            assert mfu.find_faults(rows) == []
            compiled[name] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert all(compiled[name] > 0 for name in compiled if VARIANTS[name].extent == "model"), compiled


def test_a_variant_that_fails_does_not_stop_the_others(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(mfu_variants, "sdpa", fail)
    recipe, names = Recipe(model=SHAPE), ["ours, eager", "torch, eager"]
    monkeypatch.setitem(VARIANTS, names[1], mfu_variants.Variant("sdpa", "torch", extent=""))
    after_round, rows = mfu.measure(recipe, 300, 2, 1, mfu.build(recipe, 300, names, None))
    assert [row["variant"] for row in after_round][:2] == [row["variant"] for row in rows][:2] == names
    assert rows[0]["time_over_baseline"] == 1
    assert rows[0]["tokens_per_second"] > 0
    assert mfu.find_faults(rows) == ["torch, eager: RuntimeError: no kernel for this device"]
    rows[1] = {"variant": "torch", "first_loss": rows[0]["first_loss"] + 1}
    assert "not the same model" in mfu.find_faults(rows)[0]


def test_the_backend_of_attention_is_part_of_the_compiled_graph():
    """torch.compile guards no backend that is chosen outside of it."""

    def attend(q):
        with mfu_variants.sdpa_kernel(mfu_variants.SDPBackend.MATH):
            return mfu_variants.sdpa(q, q, q)

    q = torch.randn(1, 8, 2, 16)
    found = torch.compile(attend, fullgraph=True, backend="eager")(q)
    torch.testing.assert_close(found, mfu_variants.sdpa(q, q, q))
