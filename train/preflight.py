"""Preflight checks: the memory and time that a run needs, measured before its first step."""

import contextlib
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cli.console import say
from cli.errors import UserError
from configs.schema import TrainConfig
from model.flops import training_flops
from model.transformer import Transformer
from train.distributed import Ranks
from train.evaluate import FORWARD_TIME_SHARE
from train.forward import DataSet, summed_loss
from train.metrics import format_duration
from train.sharding import local

MAX_MEMORY_SHARE = 0.7  # of free memory for an automatic micro-batch; the estimate counts only saved tensors
SLOW_PASS_SECONDS = 10.0  # a slower first pass is not repeated for timing
TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann et al. 2022, arXiv:2203.15556)


def frozen_hash(model: Transformer) -> str:
    """SHA-256 of the frozen weights, because an adapter fits only the base it was trained on."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            total.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def uses_bfloat16(precision: str, model: Transformer, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: if set, or with "auto" if that is faster here."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # With narrow matrices the casts cost as much as bfloat16 instructions save (docs/log.md).
    return model.config.dim >= 256 and torch.cpu._is_avx512_bf16_supported()


def report_setup(model: Transformer, train_set: DataSet, config: TrainConfig, ranks: Ranks, bfloat16: bool) -> None:
    """Print model size, data size, precision, ranks and gradient accumulation."""
    windows, length = len(train_set), train_set.seq_len
    precision = "bfloat16 autocast" if bfloat16 else "float32"
    micro = config.micro_batch_size
    accumulation = -(-config.batch_size // ranks.world_size // micro)
    sharded = ", sharded" if config.parallel == "fsdp" and ranks.world_size > 1 else ""
    trained = model.num_parameters(True)
    frozen = model.num_parameters() - trained
    say(
        f"model: {model.num_parameters():,} parameters, {trained:,} trained, {frozen:,} frozen, "
        f"{precision} on {ranks.world_size} x {ranks.device.type}{sharded}"
    )
    tokens = config.steps * config.batch_size * length
    optimal = tokens / TOKENS_PER_PARAMETER
    ratio = model.num_parameters() / optimal
    if not frozen and not config.max_seconds and not config.max_flops and not 0.5 < ratio < 2:
        say(
            f"note: the model is {ratio:,.2f} times the compute-optimal size for "
            f"{tokens:,} tokens ({TOKENS_PER_PARAMETER} per parameter: {optimal:,.0f} parameters)"
        )
    say(
        f"data: {windows:,} windows/epoch of {length} tokens, up to {windows * length:,} "
        f"tokens/epoch, {windows / config.batch_size:,.1f} steps/epoch; {config.batch_size} "
        f"windows/step = {ranks.world_size} ranks x {accumulation} x {micro}"
    )
    weights = getattr(train_set, "weights", ())
    for (name, _, count), weight in zip(getattr(train_set, "parts", ()), weights, strict=False):
        share = weight / sum(weights)
        epochs = config.steps * config.batch_size * share / count
        say(f"data: {share:.0%} from {name}, {count:,} windows/epoch, {epochs:,.2f} epochs in {config.steps:,} steps")


def report_duration(
    model: Transformer,
    sets: tuple,
    config: TrainConfig,
    ranks: Ranks,
    pass_seconds: float,
    subset: int,
    begin: int,
    left: float,
) -> None:
    """Print the estimated time of the run from step `begin` on, with evaluation.

    `pass_seconds` is the time of one forward and backward pass of a micro-batch, `subset` the
    number of windows in a periodic evaluation, `left` the share of the run that remains. Saving and
    sampling are not included.
    """
    train_set, validation_set = sets
    windows = config.micro_batch_size
    step = pass_seconds * -(-config.batch_size // ranks.world_size // windows)
    training = config.steps * step
    if config.max_seconds:
        training = config.max_seconds
    elif config.max_flops:
        tokens = config.batch_size * train_set.seq_len
        training = step * config.max_flops / training_flops(model, tokens, tokens, train_set.seq_len)
    training *= left
    window = FORWARD_TIME_SHARE * pass_seconds / windows / ranks.world_size
    whole = len(validation_set)
    end = begin + max(1, round(training / step))
    count = end // config.eval_every - begin // config.eval_every
    count += (begin == 0) + (end % config.eval_every > 0)
    periodic, final = count * subset * window, whole * window * (subset < whole)
    total = training + periodic + final
    say(
        f"time: about {format_duration(total)} in total: training {format_duration(training)}; {count} evaluations of "
        f"{subset:,} windows {format_duration(periodic)} ({periodic / total:.1%})"
        + (f"; at the end all {whole:,} {format_duration(final)} ({final / total:.1%})" if final else "")
    )


def find_micro_batch(
    model: nn.Module, train_set: DataSet, config: TrainConfig, ranks: Ranks, autocast: torch.autocast
) -> tuple[int, float]:
    """The micro-batch size, and the seconds of its forward and backward pass.

    The size is `config.micro_batch_size`, or with 0 the largest power of two that fits in memory.
    Runs one pass, so that out of memory shows before step 1, and prints the memory needed. Every
    rank must call it; all get the same size. Raises UserError, naming the setting to lower, if
    memory is too small.
    """
    most = config.batch_size // ranks.world_size
    size = config.micro_batch_size
    if not size:
        needs = dry_run(model, train_set, 1, ranks, autocast)
        size = min(ranks.gather(largest_micro_batch(needs, most)))
    size = min(size, most)
    needs = dry_run(model, train_set, size, ranks, autocast)
    total = needs.fixed + needs.activations
    say(
        f"memory: weights {_size(needs.weights)}, gradients and moments "
        f"{_size(needs.fixed - needs.weights)}, activations {_size(needs.activations)} "
        f"({needs.rows} windows) = {_size(total)} of {_size(needs.free)} free"
    )
    if total > needs.free:
        say(
            f"WARNING: this run needs {_size(total)} of memory and {_size(needs.free)} are free: "
            "lower train.micro_batch_size, model.max_seq_len or model.dim, or close other programs"
        )
    # The first pass includes one-time set-up, which on a GPU compiles kernels.
    if ranks.device.type == "cuda" or max(ranks.gather(needs.seconds)) < SLOW_PASS_SECONDS:
        needs = dry_run(model, train_set, size, ranks, autocast)
    return size, max(ranks.gather(needs.seconds))


def largest_micro_batch(needs: "MemoryNeeds", most: int) -> int:
    """The largest power of two, at most `most`, of windows that fit in memory; at least 1.

    `needs` is of a pass with one window.
    """
    fit = (MAX_MEMORY_SHARE * needs.free - needs.fixed) / max(1, needs.activations)
    return 1 << (max(1, int(min(fit, most))).bit_length() - 1)


@dataclass
class MemoryNeeds:
    """Memory of one forward and backward pass on one device, in bytes, and its time."""

    free: int
    """Available for weights, gradients, moments and activations."""
    weights: int
    fixed: int
    """Weights, gradients and optimiser moments."""
    activations: int
    rows: int = 1
    seconds: float = 0.0


def dry_run(model: nn.Module, train_set: DataSet, size: int, ranks: Ranks, autocast: torch.autocast) -> MemoryNeeds:
    """Measure one forward and backward pass of `size` windows, then discard its gradients.

    Raises UserError, naming the setting to lower, if memory is too small.
    """
    inputs, targets = train_set.batch(train_set.longest(size))
    saved: dict[int, int] = {}

    def record(x: torch.Tensor) -> torch.Tensor:
        base = x if x._base is None else x._base
        if not (base.is_leaf and base.requires_grad):  # else a weight, perhaps gathered by FSDP
            storage = x.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    trained = [p for p in model.parameters() if p.requires_grad]
    weight_pointers = {local(p).untyped_storage().data_ptr() for p in model.parameters()}
    weights, gradients = (sum(map(_bytes, ps)) for ps in (model.parameters(), trained))
    free = free_memory(ranks.device) + weights  # the weights are already allocated
    started = time.perf_counter()
    try:
        with autocast, torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
            loss = summed_loss(model, (inputs, targets), train_set.separator, ranks.device)
        loss.backward()
        loss.item()  # waits for the device
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise UserError(
            f"out of memory with a micro-batch of {tuple(inputs.shape)} tokens: lower "
            "train.micro_batch_size first (the result stays the same), then model.max_seq_len or "
            "model.dim"
        ) from None
    seconds = time.perf_counter() - started
    for parameter in trained:
        parameter.grad = None
    activations = sum(size for pointer, size in saved.items() if pointer not in weight_pointers)
    # Per trained weight: its gradient and AdamW's two moments.
    return MemoryNeeds(free, weights, weights + 3 * gradients, activations, len(inputs), seconds)


def free_memory(device: torch.device) -> int:
    """Free memory in bytes: of the GPU, or the smaller of the machine's and the container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    limits = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        # The kernel frees its file cache when a program needs memory.
        cached = re.search(r"(?m)^inactive_file (\d+)", (group / "memory.stat").read_text())
        limits.append(most - used + int(cached[1] if cached else 0))
    return min(limits)


def _bytes(parameter: nn.Parameter) -> int:
    return local(parameter).numel() * parameter.element_size()


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
