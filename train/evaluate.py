"""Scores a model on a whole held-out split."""

import math
from contextlib import AbstractContextManager

import numpy as np
import torch

from model.transformer import IGNORE, Transformer
from train.distributed import Ranks


@torch.no_grad()
def evaluate(
    model: Transformer, dataset, batch_size: int, ranks: Ranks, autocast: AbstractContextManager
) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per byte of text.

    Every rank scores its share of the fixed, ordered split, and the sums are added; special tokens
    stand for no text and are not scored. Every rank must call it.
    """
    nats, tokens, size = 0.0, 0.0, 0.0
    mine = np.arange(len(dataset))[ranks.rank :: ranks.world_size]
    model.eval()
    for start in range(0, len(mine), batch_size):
        inputs, targets = dataset.batch(mine[start : start + batch_size])
        lengths = dataset.token_bytes[targets.clamp(min=0)] * (targets != IGNORE)
        targets = targets.masked_fill(lengths == 0, IGNORE)
        with autocast:
            loss = model(inputs.to(ranks.device), targets=targets.to(ranks.device))
        nats += loss.item()
        tokens += int((targets != IGNORE).sum())
        size += int(lengths.sum())
    model.train()
    nats, tokens, size = ranks.sum(nats, tokens, size)
    loss = nats / max(1, tokens)
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / max(1, size) / math.log(2),
    }
