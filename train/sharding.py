"""Parameters sharded over ranks with FSDP2, and functions for tensors that may be sharded.

Imports of `torch.distributed.tensor` and `.fsdp` take half a second, so only a run with FSDP makes them:
no tensor is sharded before.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_sharded(x: torch.Tensor) -> "TypeGuard[DTensor]":
    """Whether each rank holds only some rows of `x`."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def is_fsdp(model: nn.Module) -> "TypeGuard[FSDPModule]":
    """Whether `model` was sharded by `fully_shard`."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(model, module.FSDPModule)


def local(x: torch.Tensor) -> torch.Tensor:
    """The part of a tensor on this rank: its rows if sharded, else the whole tensor."""
    return x.to_local() if is_sharded(x) else x


def whole(x: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered from all ranks if sharded."""
    return x.full_tensor() if is_sharded(x) else x


def shard_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`value`, which every rank holds in full, moved and sharded like `parameter`."""
    value = value.to(parameter.device)
    if not is_sharded(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)  # None: no communication


def part_like(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The tensor, sharded like `parameter`, of which `part` is on this rank; without sharding, `part`."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, placements, shape=parameter.shape, stride=parameter.stride())


def shard(model: nn.Module, layers: nn.ModuleList, bfloat16: bool) -> None:
    """Shard parameters, gradients and optimiser moments by rows (FSDP2; Zhao et al. 2023, arXiv:2304.11277).

    Each of the model's `layers` is gathered for its computation, in bfloat16 if `bfloat16`.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mp_policy=half if bfloat16 else MixedPrecisionPolicy())
    fully_shard(model)
