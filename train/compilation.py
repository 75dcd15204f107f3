"""Use torch.compile if it is faster: measured once per model, batch shape and machine, then cached."""

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cli.atomic import read_json, to_json, write_atomically
from cli.console import say
from configs.schema import TrainConfig
from model.transformer import Transformer
from train.distributed import Ranks
from train.forward import DataSet, set_block_forward, summed_loss

MIN_SPEEDUP = 1.05  # a smaller speedup does not repay the compile time at every start
MIN_RUN_SECONDS = 600.0  # in shorter runs the measurement costs more than compiling can gain
ROUNDS = 5
CACHE = Path("cache/compiled")


def compile_if_faster(
    model: Transformer,
    wrapped: nn.Module,
    train_set: DataSet,
    config: TrainConfig,
    ranks: Ranks,
    autocast: torch.autocast,
    bfloat16: bool,
    run: Path,
) -> float | None:
    """Compile the blocks of `model` in place if that makes a pass at least 1.05 times as fast.

    Returns the speedup, 1 if it was not measured, None if nothing is compiled.

    Every rank must call it. All ranks follow the main rank's cached result, or measure together.
    Runs of less than ten minutes are not compiled, and neither are runs where the compiler fails
    (on a CPU it needs g++). A resumed run repeats its earlier choice (`run`/compiled.json), because
    compiled blocks round differently.
    """
    if config.compile == "never":
        return None
    checkpointing = config.activation_checkpointing
    if config.compile == "always":
        set_block_forward(model, compiled=True, checkpointing=checkpointing)
        return 1.0
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

    settings = [*batch[0].shape, bfloat16, config.parallel, checkpointing]
    identity = _identity(model, ranks, settings)
    chosen = ranks.gather(_read(run / "compiled.json"))[0]
    if chosen.get("identity") != identity:
        speedup = _speedup(model, time_pass, config, ranks, identity)
        chosen = {"identity": identity, "speedup": speedup}
        if ranks.is_main:
            _write(run / "compiled.json", chosen)
    if chosen["speedup"] < MIN_SPEEDUP:
        return None
    set_block_forward(model, compiled=True, checkpointing=checkpointing)
    return chosen["speedup"]


def _speedup(
    model: Transformer, time_pass: Callable[[], float], config: TrainConfig, ranks: Ranks, identity: str
) -> float:
    # The cached or measured speedup; 0 if compiling is not tried.
    if config.max_flops:  # a run with a FLOP budget must give the same numbers on every machine
        return 0.0
    expected = config.max_seconds
    if not expected:
        time_pass()
        (seconds,) = ranks.sum(time_pass() / ranks.world_size)
        passes = -(-config.batch_size // ranks.world_size // config.micro_batch_size)
        expected = config.steps * passes * seconds
    if expected < MIN_RUN_SECONDS:
        return 0.0
    path = CACHE / f"{identity}.json"
    answer = ranks.gather(_read(path))[0]
    if not answer:
        say("torch.compile: measuring the speedup, which takes a minute or two …")
        answer = _measure(model, time_pass, config, ranks)
        if ranks.is_main:
            _write(path, answer)
    used = "used" if answer["speedup"] >= MIN_SPEEDUP else "not used"
    say(f"torch.compile: {answer['speedup']:.2f} times as fast{answer['why']}; {used} ({path})")
    return answer["speedup"]


def _measure(model: Transformer, time_pass: Callable[[], float], config: TrainConfig, ranks: Ranks) -> dict:
    # The median ratio of alternating eager and compiled passes, or the reason why there is none.
    checkpointing = config.activation_checkpointing
    set_block_forward(model, compiled=True, checkpointing=checkpointing)
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
    set_block_forward(model, compiled=False, checkpointing=checkpointing)
    (speedup,) = ranks.sum(statistics.median(ratios) / ranks.world_size)
    return {"speedup": speedup, "why": why}


def _read(path: Path) -> dict:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json(value) + "\n")


def _identity(model: Transformer, ranks: Ranks, settings: list) -> str:
    device = platform.processor() or platform.machine()
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_name()
    weights = [[name, [*p.shape], p.requires_grad] for name, p in model.named_parameters()]
    machine = [torch.__version__, device, torch.get_num_threads(), ranks.world_size]
    return hashlib.sha256(json.dumps([settings, machine, weights]).encode()).hexdigest()[:16]
