"""One process or many: who this process is, and the few things ranks tell each other."""

import copy
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from configs.cli import UserError
from configs.console import say
from model.transformer import Transformer


def local(x: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it: its rows where it is sharded, else all."""
    return x.to_local() if isinstance(x, DTensor) else x


def cut_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`value`, which every rank has whole, where `parameter` is and sharded as it is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)  # nothing is sent


def share_cores(local_rank: int, local_ranks: int) -> None:
    """Give this process its share of the cores it may use, and as many threads.

    torchrun leaves a single thread to each, and the system may put two on one core. Where there are
    fewer cores than ranks, or the system cannot bind processes, each just has one thread.
    """
    count = 0
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        count = len(cores) // local_ranks
        if count:
            os.sched_setaffinity(0, cores[local_rank * count : (local_rank + 1) * count])
    torch.set_num_threads(max(1, count))


@contextmanager
def gradients_summed(model: nn.Module, now: bool) -> Iterator[None]:
    """Within it, backward passes add gradients up over ranks `now`, or leave that to later ones."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
        yield
    elif isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
    else:
        yield


class Ranks:
    """The processes of a run. Started by torchrun: gloo on CPU, nccl on CUDA. Else: just one.

    Use as a context manager, so that the group is taken down when the run ends.
    """

    def __init__(self, device: str):
        """`device` is auto, cpu or cuda. Raises UserError if there is no such device.

        Apple's GPUs ("mps") are not used: auto is the CPU there, which says so.
        """
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.beats, self.last_beat = 0, time.monotonic()
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
                    f"rank {local_rank} of this machine has no GPU: there are "
                    f"{torch.cuda.device_count()}; lower --nproc-per-node"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            if self.device.type == "cpu" and "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun
                share_cores(local_rank, int(os.environ["LOCAL_WORLD_SIZE"]))
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            patience = timedelta(minutes=30)
            store, *_ = next(rendezvous("env://", timeout=patience))
            # torchrun keeps one store while it starts workers again, with the addresses of those
            # that are gone in it.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt-{attempt}-{self.world_size}", store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=patience)
            # Preparing a corpus may take the first rank hours, while the others only wait.
            self._patient = dist.new_group(backend="gloo", timeout=timedelta(days=2))

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def alone(self, device: torch.device) -> "Ranks":
        """A group of this process only, on `device`: what it sums and gathers is its own."""
        one = copy.copy(self)
        one.rank, one.world_size, one.device = 0, 1, device
        return one

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    def beat(self) -> None:
        """Note that this rank is alive."""
        self.beats += 1
        self.last_beat = time.monotonic()

    def publish(self, word: str) -> None:
        """Tell the others something, whether they listen or not."""
        if self.world_size > 1:
            dist.distributed_c10d._get_default_store().set(f"homegrown/{self.rank}", word)
        self._published = word

    def published(self) -> list[str]:
        """What each rank last published, its own word for those that never did."""
        if self.world_size == 1:
            return [self._published]
        store = dist.distributed_c10d._get_default_store()
        keys = [f"homegrown/{rank}" for rank in range(self.world_size)]
        return [store.get(k).decode() if store.check([k]) else self._published for k in keys]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks, in float64; every rank must call it."""
        self.beat()
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

    def wrap(self, model: Transformer, parallel: str, bfloat16: bool) -> nn.Module:
        """`model` with gradients averaged over ranks; itself if there is one rank.

        "ddp": every rank holds all of it. "fsdp" (FSDP2, Zhao et al. 2023, arXiv:2304.11277): every
        rank holds its rows of each parameter, of its gradient and of its moments, and the ranks put
        a layer together for as long as it is computed with, its matrices in bfloat16 if so asked.
        """
        if self.world_size == 1:
            return model.to(self.device)
        if parallel == "fsdp":
            half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            for layer in model.layers:
                fully_shard(layer, mp_policy=half if bfloat16 else MixedPrecisionPolicy())
            fully_shard(model)
            return model.to(self.device)
        devices = [self.device.index] if self.device.type == "cuda" else None
        model = model.to(self.device)
        return DistributedDataParallel(model, device_ids=devices)
