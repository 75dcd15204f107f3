"""Supervised examples with a loss mask."""

import numpy as np
import pytest
import torch

from configs.schema import ModelConfig
from data.examples import Examples, encode_completions
from model.build import build_model
from model.transformer import IGNORE
from train.forward import summed_loss


def test_packed_examples_do_not_attend_to_each_other(foundation):
    _, tokenizer = foundation
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48)
    model = build_model(config, tokenizer.vocab_size).init_weights(0)
    pairs = [("what is " + "x " * n, " it" * (1 + n % 5)) for n in range(1, 60)]
    rows = encode_completions(pairs, tokenizer, end=True)
    packed, unpacked = Examples(rows, 128, tokenizer, pack=True), Examples(rows, 128, tokenizer)
    assert len(packed) < len(unpacked) / 2
    scored = [i for i, s in zip(rows[6].ids, rows[6].scored, strict=True) if s]
    assert scored == [*tokenizer.encode(" it it it"), tokenizer.separator_id]
    packed_tokens = sum(len(row.ids) for row in packed.rows)
    assert packed_tokens == sum(len(row.ids) for row in rows)
    losses = []
    for examples in (packed, unpacked):
        x, y = examples.batch(np.arange(len(examples)))
        scored = int((y != IGNORE).sum())
        with torch.no_grad():
            loss = summed_loss(model, (x, y), examples.separator, model.device)
            losses.append((scored, loss.item()))
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-5)
