"""Distributed training: this process's rank, collectives, and DDP or FSDP around the model."""

import copy
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from cli.console import say
from cli.errors import UserError
from model.transformer import Transformer
from train.sharding import is_fsdp, shard


def share_cores(local_rank: int, local_ranks: int) -> None:
    """Bind this process to its share of the cores, with one thread per core.

    By default torchrun gives each process one thread, and the system may run two processes on one
    core. With fewer cores than ranks, or on systems other than Linux, each process gets one thread.
    """
    count = 0
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        count = len(cores) // local_ranks
        if count:
            os.sched_setaffinity(0, cores[local_rank * count : (local_rank + 1) * count])
    torch.set_num_threads(max(1, count))


@contextmanager
def sync_gradients(model: nn.Module, is_last: bool) -> Iterator[None]:
    """Reduce gradients over ranks inside the `with` block if `is_last`; else only accumulate them."""
    if is_fsdp(model):
        model.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield


class Ranks:
    """The process group of a run: started by torchrun (gloo on CPU, nccl on CUDA), or one process.

    A context manager that destroys the process group at the end.
    """

    def __init__(self, device: str):
        """`device` is auto, cpu or cuda. Raises UserError if the device does not exist.

        Apple's GPUs ("mps") are not supported: auto uses the CPU there and prints a note.
        """
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.heartbeats, self.last_heartbeat = 0, time.monotonic()
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise UserError('train.device = "cuda": no GPU is visible to torch; use "auto"')
        if device == "cpu" or not cuda:
            self.device = torch.device("cpu")
            if device == "auto" and torch.backends.mps.is_available():
                say("note: Apple's GPU (MPS) is not supported; training runs on the CPU")
        else:
            if local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"local rank {local_rank} has no GPU: this machine has "
                    f"{torch.cuda.device_count()}; lower --nproc-per-node"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            if self.device.type == "cpu" and "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun
                share_cores(local_rank, int(os.environ["LOCAL_WORLD_SIZE"]))
            # Tensors on the CPU always go over gloo, so that the host's numbers do not wait for a GPU.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            timeout = timedelta(minutes=30)
            store, *_ = next(rendezvous("env://", timeout=timeout))
            # After a restart torchrun keeps the store, which still holds the old workers' addresses.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt-{attempt}-{self.world_size}", store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout)
            # The other ranks wait while the main rank prepares the corpus, which may take hours.
            self._slow_group = dist.new_group(backend="gloo", timeout=timedelta(days=2))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def single_rank(self, device: torch.device) -> "Ranks":
        """A copy that treats this process as the only rank, on `device`."""
        one = copy.copy(self)
        one.rank, one.world_size, one.device = 0, 1, device
        return one

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        if self.world_size > 1:
            # DDP must be freed while the process group lives: its destructor would free the group
            # while it holds the GIL, and wait for a thread of gloo that waits for the GIL.
            gc.collect()
            dist.destroy_process_group()

    def heartbeat(self) -> None:
        """Record that this rank makes progress; the watchdog reads it."""
        self.heartbeats += 1
        self.last_heartbeat = time.monotonic()

    def publish(self, status: str) -> None:
        """Store a status for the other ranks in the shared store, without waiting for them."""
        if self.world_size > 1:
            dist.distributed_c10d._get_default_store().set(f"homegrown/{self.rank}", status)
        self._published = status

    def published(self) -> list[str]:
        """The last status of each rank; this rank's own for ranks that published none."""
        if self.world_size == 1:
            return [self._published]
        store = dist.distributed_c10d._get_default_store()
        keys = [f"homegrown/{rank}" for rank in range(self.world_size)]
        return [store.get(k).decode() if store.check([k]) else self._published for k in keys]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks, in float64. Every rank must call it."""
        self.heartbeat()
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """`value` summed over ranks, in place, without a host sync. Every rank must call it."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: object) -> list:
        """The values of all ranks, in rank order. Every rank must call it."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the `with` block on the main rank, then on the others, which use its cached files.

        If it fails on the main rank, the others exit with status 2.
        """
        if self.world_size == 1:
            yield
            return
        done = [False]
        if not self.is_main:
            dist.broadcast_object_list(done, 0, group=self._slow_group)
            if not done[0]:
                raise SystemExit(2)
            yield
            return
        try:
            yield
            done = [True]
        finally:
            dist.broadcast_object_list(done, 0, group=self._slow_group)

    def wrap(self, model: Transformer, parallel: str, bfloat16: bool) -> nn.Module:
        """Wrap `model` so that gradients are averaged over ranks; unchanged with one rank.

        "ddp": every rank holds the whole model. "fsdp": see `train.sharding.shard`.
        """
        if self.world_size == 1:
            return model.to(self.device)
        if parallel == "fsdp":
            shard(model, model.layers, bfloat16)
            return model.to(self.device)
        devices = [self.device.index] if self.device.type == "cuda" else None
        model = model.to(self.device)
        return DistributedDataParallel(model, device_ids=devices)
