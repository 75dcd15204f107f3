"""Evaluation on held-out windows: a fixed subset during training, the whole split at the end."""

import math
import time
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from configs.schema import TrainConfig
from model.transformer import IGNORE, Transformer
from train.distributed import Ranks
from train.forward import DataSet, summed_loss
from train.sharding import is_fsdp

MAX_TIME_SHARE = 0.01  # time of one evaluation / training time between two evaluations
FORWARD_TIME_SHARE = 1 / 3  # time of a forward pass / time of a training step
BATCH_TOKENS = 2048  # of an evaluation without compiled code, which needs less memory than a training step
MIN_TOKENS = 16_384  # a smaller subset gives too noisy a score


def evaluation_subset(dataset: DataSet, config: TrainConfig, count: int = 0) -> np.ndarray:
    """Sorted int64 indices of the windows that every periodic evaluation of a run scores.

    All runs draw them with the same seed. `count` is their number in the run that is resumed; 0
    chooses as many as can be scored in MAX_TIME_SHARE of the time, but at least MIN_TOKENS.
    """
    affordable = int(MAX_TIME_SHARE / FORWARD_TIME_SHARE * config.eval_every * config.batch_size)
    count = count or max(affordable, MIN_TOKENS // dataset.seq_len, 1)
    return np.sort(np.random.default_rng(0).permutation(len(dataset))[:count])


@torch.no_grad()
def evaluate(
    wrapped: nn.Module,
    model: Transformer,
    dataset: DataSet,
    config: TrainConfig,
    ranks: Ranks,
    autocast: AbstractContextManager,
    windows: np.ndarray | None = None,
    compiled: bool = False,
) -> dict[str, float]:
    """Loss (nats per token), perplexity, bits per byte of text, and the seconds of the evaluation.

    `windows` are indices of `dataset`; the default is all of it. Every rank scores its share, and
    the sums are added. Special tokens have no bytes and are not scored. Every rank must call it and
    runs the same number of batches, some without targets, because gathering a sharded layer needs
    all ranks. `compiled` states that the model's blocks are compiled.
    """
    started = time.perf_counter()
    windows = np.arange(len(dataset)) if windows is None else windows
    nats, tokens, size = 0.0, 0.0, 0.0
    mine, most = windows[ranks.rank :: ranks.world_size], -(-len(windows) // ranks.world_size)
    gathered = wrapped if config.parallel == "fsdp" else model
    model.eval()
    # Compiled code is specialised to one shape: pad the last batch with windows that do not count.
    count = config.micro_batch_size if compiled else max(config.micro_batch_size, BATCH_TOKENS // dataset.seq_len)
    for start in range(0, most, count):
        chosen = mine[start : start + count]
        rows = count if compiled else max(1, len(chosen))
        filled = np.pad(chosen, (0, rows - len(chosen)), constant_values=windows[0])
        inputs, targets = dataset.batch(filled)
        targets[len(chosen) :] = IGNORE
        lengths = dataset.token_bytes[targets.clamp(min=0)] * (targets != IGNORE)
        targets = targets.masked_fill(lengths == 0, IGNORE)
        with autocast, torch.compiler.set_stance("default" if compiled else "force_eager"):
            batch_nats = summed_loss(gathered, (inputs, targets), dataset.separator, ranks.device)
        nats += batch_nats.item()
        tokens += int((targets != IGNORE).sum())
        size += int(lengths.sum())
        ranks.heartbeat()
    model.train()
    if is_fsdp(gathered):
        gathered.reshard()  # no backward pass frees the gathered weights, which may be the EMA's
    nats, tokens, size = ranks.sum(nats, tokens, size)
    loss = nats / max(1, tokens)
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / max(1, size) / math.log(2),
        "evaluation_seconds": time.perf_counter() - started,
    }
