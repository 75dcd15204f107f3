"""A small model with the interpreted Triton kernels, against the same model with torch."""

import pytest
import torch

from configs.schema import ModelConfig
from kernels.device import use_triton
from model.build import build_model


@pytest.mark.parametrize(
    "variant", [{"activation": "swiglu"}, {"activation": "relu2", "qk_norm": True, "tie_embeddings": False}]
)
def test_loss_and_gradients_match_torch(variant):
    config = ModelConfig(
        dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, hidden_dim=40, max_seq_len=50, **variant
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 61, (2, 38), generator=generator)
    targets = torch.where(tokens < 7, -100, tokens.roll(-1, 1))
    losses, gradients = [], []
    for triton in (False, True):
        model = build_model(config, 61).init_weights(0)
        if triton:
            with use_triton():
                loss = model(tokens, targets=targets)
                loss.backward()
        else:
            loss = model(tokens, targets=targets)
            loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).norm()
        assert error <= 1e-5 * expected.norm(), name
