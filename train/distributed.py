"""One process or many: who this process is, and the few things ranks tell each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from configs.cli import UserError


class Ranks:
    """The processes of a run. Started by torchrun: gloo on CPU, nccl on CUDA. Else: just one.

    Use as a context manager, so that the group is taken down when the run ends.
    """

    def __init__(self, device: str):
        """`device` is auto, cpu or cuda. Raises UserError if there is no such device."""
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise UserError('train.device = "cuda": no GPU is visible to torch; use "auto"')
        if device == "cpu" or not cuda:
            self.device = torch.device("cpu")
        else:
            if local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"rank {local_rank} of this machine has no GPU: there are "
                    f"{torch.cuda.device_count()}; lower --nproc-per-node"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=30))
            # Preparing a corpus may take the first rank hours, while the others only wait.
            self._patient = dist.new_group(backend="gloo", timeout=timedelta(days=2))

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks, in float64; every rank must call it."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        """The value of every rank, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The body runs on the first rank, then on the others, which find what it has cached.

        If it fails on the first one, the others end without a word, with exit status 2.
        """
        if self.world_size == 1:
            yield
            return
        done = [False]
        if not self.first:
            dist.broadcast_object_list(done, 0, group=self._patient)
            if not done[0]:
                raise SystemExit(2)
            yield
            return
        try:
            yield
            done = [True]
        finally:
            dist.broadcast_object_list(done, 0, group=self._patient)

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged over ranks by DDP; itself if there is one rank."""
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
