"""Scores a model on a whole held-out split."""

import math
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from configs.schema import TrainConfig
from model.transformer import IGNORE, Transformer
from train.distributed import Ranks


@torch.no_grad()
def evaluate(
    wrapped: nn.Module,
    model: Transformer,
    dataset,
    config: TrainConfig,
    ranks: Ranks,
    autocast: AbstractContextManager,
) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per byte of text.

    Every rank scores its share of the fixed, ordered split, and the sums are added; special tokens
    stand for no text and are not scored. Every rank must call it, and computes as many batches as
    the others, if need be without a target: sharded layers are put together by all.
    """
    nats, tokens, size = 0.0, 0.0, 0.0
    mine = np.arange(len(dataset))[ranks.rank :: ranks.world_size]
    most = -(-len(dataset) // ranks.world_size)
    whole = wrapped if config.parallel == "fsdp" else model
    model.eval()
    for start in range(0, most, config.micro_batch_size):
        chosen = mine[start : start + config.micro_batch_size]
        inputs, targets = dataset.batch(chosen if len(chosen) else np.zeros(1, np.int64))
        if not len(chosen):
            targets = torch.full_like(targets, IGNORE)
        lengths = dataset.token_bytes[targets.clamp(min=0)] * (targets != IGNORE)
        targets = targets.masked_fill(lengths == 0, IGNORE)
        # Compiled code serves training's one shape.
        with autocast, torch.compiler.set_stance("force_eager"):
            loss = whole(inputs.to(ranks.device), targets=targets.to(ranks.device))
        nats += loss.item()
        tokens += int((targets != IGNORE).sum())
        size += int(lengths.sum())
        ranks.beat()
    model.train()
    if isinstance(whole, FSDPModule):
        whole.reshard()  # without a backward pass it would keep what was gathered, perhaps averages
    nats, tokens, size = ranks.sum(nats, tokens, size)
    loss = nats / max(1, tokens)
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / max(1, size) / math.log(2),
    }
