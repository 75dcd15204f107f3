"""Optimisers, schedules and EMA, compared with torch and with direct formulas."""

import pytest
import torch

from configs.schema import ModelConfig, TrainConfig
from model.build import build_model
from train.ema import ema_weights, start_ema, update_ema
from train.muon import Muon
from train.optim import build_optimizers, learning_rate


def test_muon_matches_torch():
    shapes = [(16, 48), (48, 16), (32, 32), (16, 48), (32, 32), (32, 32)]  # matrices of one shape are updated at once
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    first = Muon(ours, 0.02, 0.1)
    second = torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    for a, b in zip(ours, theirs, strict=True):  # torch computes the products in bfloat16
        assert (a - b).norm() <= 5e-3 * b.norm()


def test_muon_accepts_only_matrices():
    with pytest.raises(ValueError, match=r"params: Muon takes matrices, not a tensor of \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], 0.1, 0.0)


def test_muon_updates_hidden_matrices_and_adamw_the_rest():
    names = {
        "tok_embeddings.weight": (9, 4),
        "layers.0.attention.wq.weight": (4, 4),
        "layers.0.ffn_norm.weight": (4,),
        "norm.weight": (4,),
        "output.weight": (9, 4),
    }
    parameters = {n: torch.nn.Parameter(torch.randn(shape)) for n, shape in names.items()}
    muon, adamw = build_optimizers(parameters, TrainConfig(optimizer="muon", weight_decay=0.3))
    of = {
        id(p): (type(o).__name__, g["weight_decay"]) for o in (muon, adamw) for g in o.param_groups for p in g["params"]
    }
    found = {name: of[id(p)] for name, p in parameters.items()}
    assert found == {
        "tok_embeddings.weight": ("AdamW", 0.3),
        "layers.0.attention.wq.weight": ("Muon", 0.3),
        "layers.0.ffn_norm.weight": ("AdamW", 0.0),
        "norm.weight": ("AdamW", 0.0),
        "output.weight": ("AdamW", 0.3),
    }


def test_linear_schedule_is_a_straight_line():
    config = TrainConfig(schedule="linear", learning_rate=1.0, min_lr_ratio=0.0, warmup=0.2)
    rates = [learning_rate(step / 10, config) for step in range(11)]
    assert rates == pytest.approx([0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])


def test_the_ema_is_exponential_and_swaps_back():
    p = torch.nn.Parameter(torch.zeros(3))
    ema = start_ema({"p": p})
    expected = torch.zeros(3)
    decays = [2 / 11, 3 / 12, 0.3, 0.3, 0.3]  # the warm-up of the decay, then the decay itself
    for step, decay in enumerate(decays, 1):
        p.data.fill_(step)
        update_ema(ema, {"p": p}, 0.3, step)
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(ema["p"], expected)
    with ema_weights(ema, {"p": p}):
        torch.testing.assert_close(p.detach(), expected)
    assert p.tolist() == [5, 5, 5]
    torch.testing.assert_close(ema["p"], expected)


@pytest.mark.parametrize(("base", "grows"), [(32, False), (0, True)])
def test_with_a_base_width_logits_change_equally_at_every_width(base, grows):
    """The coordinate check of Yang et al. 2022, appendix D.1."""
    changes = []
    for width in (32, 128, 512):
        shape = ModelConfig(
            dim=width,
            n_layers=2,
            n_heads=width // 16,
            n_kv_heads=width // 16,
            head_dim=16,
            hidden_dim=2 * width,
            max_seq_len=32,
            base_dim=base,
        )
        model = build_model(shape, 60).init_weights(0)
        config = TrainConfig(learning_rate=4e-3, weight_decay=0.0)
        (optimizer,) = build_optimizers(dict(model.named_parameters()), config, shape.width_ratio)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("scale", 1.0)
        tokens = torch.randint(0, 60, (4, 32), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            before = model(tokens)
        for _ in range(3):
            (model(tokens, targets=tokens.roll(-1, 1)) / tokens.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            changes.append((model(tokens) - before).square().mean().sqrt().item())
    assert (changes[-1] > 2.5 * changes[0]) == grows, changes
