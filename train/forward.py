"""The forward pass of a micro-batch, for training, evaluation and the preflight checks."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from data.examples import Examples
from data.shards import Windows
from model.masks import document_starts
from model.transformer import Transformer

DataSet = Windows | Examples
Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, (B, T) int64


def summed_loss(model: nn.Module, batch: Batch, separator: int, device: torch.device) -> torch.Tensor:
    """The summed loss of a batch in nats, float32, on `device`.

    With a `separator` of 0 or more, each row packs documents that start with that token, and the
    document mask limits attention to one document.
    """
    inputs, targets = (x.to(device, non_blocking=True) for x in batch)
    if separator < 0:
        return model(inputs, targets=targets)
    return model(inputs, targets=targets, document_starts=document_starts(inputs, separator))


def set_forward(model: Transformer, *, compiled: str = "", checkpointing: bool = False) -> None:
    """Choose how `model` runs its forward pass, with activation checkpointing or not.

    `compiled` is "" (eager), "blocks" (each block by itself; blocks of the same shape share the
    code) or "model" (one graph for fixed shapes, without graph breaks). Activation checkpointing
    (Chen et al. 2016, arXiv:1604.06174) computes the activations of a block again in the backward
    pass instead of storing them.
    """
    vars(model).pop("forward", None)
    for layer in model.layers:
        vars(layer).pop("forward", None)
        forward = layer.forward
        if compiled == "blocks":
            forward = torch.compile(forward)
        if checkpointing:
            forward = partial(checkpoint, forward, use_reentrant=False)
        if compiled == "blocks" or checkpointing:
            layer.forward = forward
    if compiled == "model":
        model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False)  # type: ignore[method-assign]
