"""Use torch.compile if it is faster, which is measured once per run."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from cli.atomic import read_json, to_json, write_atomically
from cli.console import say
from configs.schema import TrainConfig
from data.shards import Windows
from model.transformer import Transformer
from train.distributed import Ranks
from train.forward import DataSet, set_forward, summed_loss

MIN_SPEEDUP = 1.05  # a smaller speedup does not repay the compile time at every start
MIN_RUN_SECONDS = 600.0  # in shorter runs the measurement costs more than compiling can gain
ROUNDS = 5


def compile_if_faster(
    model: Transformer,
    wrapped: nn.Module,
    train_set: DataSet,
    config: TrainConfig,
    ranks: Ranks,
    autocast: torch.autocast,
    run: Path,
    pass_seconds: float,
) -> float | None:
    """Compile `model` in place if that makes a pass at least 1.05 times as fast.

    On one device, windows of one shape go through one graph of the whole model; under DDP and FSDP,
    and for examples of many lengths, each block is compiled by itself.
    `pass_seconds` is the time of an eager pass over a micro-batch. Returns the speedup, 1 if it was
    not measured, None if nothing is compiled.

    Every rank must call it; all ranks measure together. Runs of less than ten minutes are not
    compiled, and neither are runs where the compiler fails (on a CPU it needs g++). A resumed run
    repeats its earlier choice (`run`/compiled.json), because compiled code rounds differently.
    """
    if config.compile == "never":
        return None
    extent = "model" if ranks.world_size == 1 and isinstance(train_set, Windows) else "blocks"
    compile_model = partial(set_forward, model, compiled=extent, checkpointing=config.activation_checkpointing)
    speedup = 1.0
    if config.compile == "auto":
        batch = train_set.batch(train_set.longest(config.micro_batch_size))

        def time_pass() -> float:
            started = time.perf_counter()
            with autocast:
                loss = summed_loss(wrapped, batch, train_set.separator, ranks.device)
            loss.backward()
            for parameter in wrapped.parameters():
                parameter.grad = None
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        saved = ranks.gather(read_json(run / "compiled.json"))[0]
        passes = config.steps * -(-config.batch_size // ranks.world_size // config.micro_batch_size)
        if isinstance(saved, dict):
            speedup = saved["speedup"]
        # A run with a FLOP budget must give the same numbers on every machine.
        elif config.max_flops or (config.max_seconds or passes * pass_seconds) < MIN_RUN_SECONDS:
            speedup = 0.0
        else:
            speedup = _measure(compile_model, time_pass, ranks)
            set_forward(model, checkpointing=config.activation_checkpointing)
        if ranks.is_main:
            write_atomically(run / "compiled.json", to_json({"speedup": speedup}) + "\n")
        if speedup < MIN_SPEEDUP:
            return None
    compile_model()
    return speedup


def _measure(compile_model: Callable[[], None], time_pass: Callable[[], float], ranks: Ranks) -> float:
    # The median ratio of alternating eager and compiled passes; 0 if the compiler fails.
    say("torch.compile: measuring the speedup, which takes a minute or two …")
    compile_model()
    why, ratios = "", [0.0]
    try:
        time_pass()
    except RuntimeError as error:  # the base class of all compiler errors
        why = f" ({str(error).strip().splitlines()[0][:200]})"
    why = next(filter(None, ranks.gather(why)), "")
    if not why:
        ratios = []
        for _ in range(ROUNDS):
            with torch.compiler.set_stance("force_eager"):
                eager = time_pass()
            ratios.append(eager / time_pass())
    (speedup,) = ranks.sum(statistics.median(ratios) / ranks.world_size)
    say(f"torch.compile: {speedup:.2f} times as fast{why}; {'used' if speedup >= MIN_SPEEDUP else 'not used'}")
    return speedup
