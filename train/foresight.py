"""What a run will need, found out and said before its first step."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs.cli import UserError
from configs.console import say
from configs.schema import TrainConfig
from model.transformer import Transformer
from train.distributed import Ranks, local

SHARE = 0.7  # of free memory that a found micro-batch may fill: what is kept is not all there is
TOKENS_PER_PARAMETER = 20  # of a compute-optimal run (Hoffmann et al. 2022, arXiv:2203.15556)


def frozen_hash(model: Transformer) -> str:
    """SHA-256 of the weights that are not trained: an adapter is nothing without them."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            total.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def uses_bfloat16(precision: str, model: Transformer, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: where asked for or, with "auto", where it pays."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Narrow matrices lose as much to the casts as bfloat16 instructions win (docs/log.md).
    return model.config.dim >= 256 and torch.cpu._is_avx512_bf16_supported()


def describe(
    model: Transformer, train_set, config: TrainConfig, ranks: Ranks, bfloat16: bool
) -> None:
    """Say what is about to happen: sizes, epochs, precision, ranks."""
    windows, length = len(train_set), train_set.seq_len
    precision = "bfloat16 autocast" if bfloat16 else "float32"
    micro = min(config.micro_batch_size, config.batch_size // ranks.world_size)
    accumulation = -(-config.batch_size // ranks.world_size // micro)
    sharded = ", sharded" if config.parallel == "fsdp" and ranks.world_size > 1 else ""
    trained = model.num_parameters(True)
    frozen = model.num_parameters() - trained
    say(
        f"model: {model.num_parameters():,} parameters, {trained:,} trained, {frozen:,} frozen, "
        f"{precision} on {ranks.world_size} x {ranks.device.type}{sharded}"
    )
    tokens = config.steps * config.batch_size * length
    fits = tokens / TOKENS_PER_PARAMETER
    times = model.num_parameters() / fits
    if not frozen and not config.max_seconds and not config.max_flops and not 0.5 < times < 2:
        say(
            f"note: the model is {times:,.2f} times as large as is compute-optimal for "
            f"{tokens:,} tokens ({TOKENS_PER_PARAMETER} per parameter: {fits:,.0f} parameters)"
        )
    say(
        f"data: {windows:,} windows/epoch of {length} tokens, up to {windows * length:,} "
        f"tokens/epoch, {windows / config.batch_size:,.1f} steps/epoch; {config.batch_size} "
        f"windows/step = {ranks.world_size} ranks x {accumulation} x {micro}"
    )


def find_micro_batch(
    model: nn.Module, train_set, config: TrainConfig, ranks: Ranks, autocast: torch.autocast
) -> int:
    """The micro-batch size: the one asked for, else the largest power of two that fits.

    Tries it, so that too little memory is met before step 1, and says what is needed. Every rank
    calls it and gets the same. Raises UserError, naming what to lower, if there is too little.
    """
    most = config.batch_size // ranks.world_size
    if config.micro_batch_size:
        dry_run(model, train_set, min(config.micro_batch_size, most), ranks, autocast)
        return config.micro_batch_size
    needs = dry_run(model, train_set, 1, ranks, autocast)
    room = (SHARE * needs.free - needs.fixed) / max(1, needs.activations)
    size = 1 << max(0, int(min(room, most)).bit_length() - 1)
    size = min(ranks.gather(size))
    if size > 1:
        dry_run(model, train_set, size, ranks, autocast)
    return size


@dataclass
class Needs:
    """Bytes on one device."""

    free: int
    """What there is for all of the below."""
    fixed: int
    """Weights, gradients and moments."""
    activations: int


def dry_run(
    model: nn.Module, train_set, size: int, ranks: Ranks, autocast: torch.autocast
) -> Needs:
    """One forward and backward pass of `size` windows, thrown away.

    Raises UserError, naming what to lower, if memory is too small.
    """
    inputs, targets = train_set.batch(train_set.longest(size))
    saved: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        whole = x if x._base is None else x._base
        if not (whole.is_leaf and whole.requires_grad):  # a weight, perhaps put together by FSDP
            storage = x.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    trained = [p for p in model.parameters() if p.requires_grad]
    weights = {local(p).untyped_storage().data_ptr() for p in model.parameters()}
    weight, gradient = (sum(map(_bytes, ps)) for ps in (model.parameters(), trained))
    free = free_memory(ranks.device) + weight  # which is there already
    try:
        with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss = model(inputs.to(ranks.device), targets=targets.to(ranks.device))
        loss.backward()
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise UserError(
            f"out of memory with {tuple(inputs.shape)} tokens at a time: lower "
            "train.micro_batch_size first (the result stays the same), then model.max_seq_len or "
            "model.dim"
        ) from None
    for parameter in trained:
        parameter.grad = None
    activations = sum(size for start, size in saved.items() if start not in weights)
    fixed = weight + 3 * gradient  # AdamW keeps two moments of each weight
    say(
        f"memory: weights {_size(weight)}, gradients {_size(gradient)}, moments "
        f"{_size(2 * gradient)}, activations {_size(activations)} ({len(inputs)} windows) = "
        f"{_size(fixed + activations)} of {_size(free)} free"
    )
    return Needs(free, fixed, activations)


def free_memory(device: torch.device) -> int:
    """Bytes that a run may still take: of the GPU, or of the machine and of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [int(_field("/proc/meminfo", "MemAvailable:")) * 1024]
    maximum, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if maximum.exists() and maximum.read_text().strip() != "max":
        limits.append(int(maximum.read_text()) - int(used.read_text()))
    return min(limits)


def _field(path: str, name: str) -> str:
    text = Path(path).read_text() if Path(path).exists() else f"{name} 0"
    return text.split(name)[1].split()[0]


def _bytes(parameter: nn.Parameter) -> int:
    return local(parameter).numel() * parameter.element_size()


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
