"""Scores a model on held-out windows: a fixed subset while it trains, all of them at the end."""

import math
import time
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from configs.schema import TrainConfig
from model.transformer import IGNORE, Transformer
from train.distributed import Ranks
from train.forward import summed_loss

MAX_TIME_SHARE = 0.01  # of the training time between two evaluations that one of them takes
FORWARD_TIME_SHARE = 1 / 3  # of a training step's time that a forward pass takes
MIN_TOKENS = 16_384  # fewer tell too little


def evaluation_subset(dataset, config: TrainConfig, count: int = 0) -> np.ndarray:
    """Sorted int64 indices of the windows that every periodic evaluation of a run scores.

    They are drawn by one seed for all runs: `count` of them, as the run had before it was resumed,
    or so many that scoring them takes MAX_TIME_SHARE of the time, but MIN_TOKENS at least.
    """
    affordable = int(MAX_TIME_SHARE / FORWARD_TIME_SHARE * config.eval_every * config.batch_size)
    count = count or max(affordable, MIN_TOKENS // dataset.seq_len, 1)
    return np.sort(np.random.default_rng(0).permutation(len(dataset))[:count])


@torch.no_grad()
def evaluate(
    wrapped: nn.Module,
    model: Transformer,
    dataset,
    config: TrainConfig,
    ranks: Ranks,
    autocast: AbstractContextManager,
    windows: np.ndarray | None = None,
    compiled: bool = False,
) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per byte of text; the seconds that it took.

    `windows` are indices of `dataset`, all of it by default. Every rank scores its share of them,
    and the sums are added; special tokens stand for no text and are not scored. Every rank must
    call it, and computes as many batches as the others, if need be without a target: sharded
    layers are gathered by all. `compiled` says that the model's blocks are.
    """
    started = time.perf_counter()
    windows = np.arange(len(dataset)) if windows is None else windows
    nats, tokens, size = 0.0, 0.0, 0.0
    mine, most = windows[ranks.rank :: ranks.world_size], -(-len(windows) // ranks.world_size)
    whole = wrapped if config.parallel == "fsdp" else model
    model.eval()
    for start in range(0, most, config.micro_batch_size):
        chosen = mine[start : start + config.micro_batch_size]
        # A compiled model has code for one shape: the last batch is filled up, unscored.
        rows = config.micro_batch_size if compiled else max(1, len(chosen))
        filled = np.pad(chosen, (0, rows - len(chosen)), constant_values=windows[0])
        inputs, targets = dataset.batch(filled)
        targets[len(chosen) :] = IGNORE
        lengths = dataset.token_bytes[targets.clamp(min=0)] * (targets != IGNORE)
        targets = targets.masked_fill(lengths == 0, IGNORE)
        with autocast, torch.compiler.set_stance("default" if compiled else "force_eager"):
            batch_nats = summed_loss(whole, (inputs, targets), dataset.separator, ranks.device)
        nats += batch_nats.item()
        tokens += int((targets != IGNORE).sum())
        size += int(lengths.sum())
        ranks.heartbeat()
    model.train()
    if isinstance(whole, FSDPModule):
        whole.reshard()  # without a backward pass it would keep what was gathered, perhaps averages
    nats, tokens, size = ranks.sum(nats, tokens, size)
    loss = nats / max(1, tokens)
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / max(1, size) / math.log(2),
        "evaluation_seconds": time.perf_counter() - started,
    }
