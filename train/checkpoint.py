"""The training state in a checkpoint: saved and restored exactly, on any number of ranks.

Besides the weights (model/formats/native.py) a checkpoint holds

    optimizer.safetensors      optimiser tensors by parameter name
    ema.safetensors            EMA of the weights, if `train.ema` is set (older: average.safetensors)
    state.json                 progress, loader cursor, data fingerprint
    generators-00000.json      random states of torch, Python and numpy, one file per rank

With sharded parameters (FSDP) every rank writes its own rows of weights and optimiser tensors. A
restore reads the rows it needs, also with another number of ranks or without sharding.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cli.errors import UserError
from model.formats.native import check_tokenizer, latest_checkpoint, read_file, read_manifest, weights_file
from tokenizer.bpe import Tokenizer
from train.batches import Batches
from train.distributed import Ranks
from train.sharding import is_sharded, local, shard_like


@dataclass
class Progress:
    """Counters of a run; the field names are keys of state.json."""

    step: int = 0
    tokens: int = 0
    """Training tokens (targets with a loss), over all ranks."""
    seconds: float = 0.0
    """Wall-clock time of training steps, without evaluation and saving."""
    flops: float = 0.0
    skipped: int = 0
    """Steps skipped because the loss or gradient was not finite."""
    rewound: int = 0
    """Number of rewinds to a checkpoint after a loss spike."""
    recent: list[float] = field(default_factory=list)
    """The last losses per token, the reference for spike detection."""
    best: float | None = None
    """The best evaluation so far, in bits per byte."""
    stale: int = 0
    """Evaluations since the best one, for early stopping."""
    evaluated_windows: int = 0
    """Windows per periodic evaluation; fixed, so that all scores of a run are comparable."""

    def update_best(self, bits_per_byte: float) -> bool:
        """Record an evaluation; returns whether it is the best so far."""
        better = math.isfinite(bits_per_byte) and (self.best is None or bits_per_byte < self.best)
        self.best = bits_per_byte if better else self.best
        self.stale = 0 if better else self.stale + 1
        return better


@dataclass
class TrainState:
    """Everything that an exact resume needs."""

    parameters: dict[str, nn.Parameter]
    """The trained parameters, by name."""
    optimizers: list[torch.optim.Optimizer]
    batches: Batches
    tokenizer: Tokenizer
    fingerprint: str
    """Hash of the data and of the frozen weights."""
    ema: dict[str, torch.Tensor]
    """The EMA of the parameters; empty without an EMA."""
    progress: Progress = field(default_factory=Progress)

    def optimizer_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """The optimiser that updates this parameter."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return optimizer
        raise AssertionError("a parameter without an optimiser")


def snapshot(state: TrainState, ranks: Ranks) -> dict[str, dict]:
    """The files of this rank for a checkpoint, copied to the CPU so that training can continue."""
    moments = {
        f"{name}.{key}": value
        for name, parameter in state.parameters.items()
        for key, value in state.optimizer_of(parameter).state[parameter].items()
    }
    files = {f"generators-{ranks.rank:05}.json": _generators()}
    if ranks.is_main:
        files["state.json"] = {
            "progress": asdict(state.progress),
            "loader": state.batches.state(),
            "data": state.fingerprint,
            "ranks": ranks.world_size,
        }
    sharded = any(is_sharded(p) for p in state.parameters.values())
    if ranks.is_main or sharded:
        part = f"-{ranks.rank + 1:05}-of-{ranks.world_size:05}" if sharded else ""
        kinds = {"model": state.parameters, "optimizer": moments, "ema": state.ema}
        for stem, tensors in kinds.items():
            if stem == "ema" and not tensors:
                continue
            files[f"{stem}{part}.safetensors"] = {
                name: local(x).detach().to("cpu", copy=True).contiguous()
                for name, x in tensors.items()
                if ranks.is_main or is_sharded(x)
            }
    return files


def restore(run: Path, state: TrainState, ranks: Ranks) -> None:
    """Load the newest valid checkpoint into `state`.

    Raises UserError if there is none, or if its data, tokenizer or model differ from this run's.
    """
    checkpoint = latest_checkpoint(run)
    saved = read_file(checkpoint, "state.json")
    if saved["data"] != state.fingerprint:
        raise UserError(
            f"{run}: the data or the base model has changed since this run started; restore the "
            "changed file, or start again with --overwrite"
        )
    check_tokenizer(run, state.tokenizer, read_manifest(checkpoint))
    _restore_weights(run, state.parameters, read_file(checkpoint, "model.safetensors"))
    if state.ema:
        _restore_weights(run, state.ema, read_file(checkpoint, weights_file(checkpoint)))
    for key, value in read_file(checkpoint, "optimizer.safetensors").items():
        name, _, kind = key.rpartition(".")
        parameter = state.parameters[name]
        if value.shape == parameter.shape:
            value = shard_like(value, parameter)
        elif parameter.is_cuda:  # AdamW's step counter, a scalar
            value = value.to(parameter.device)
        state.optimizer_of(parameter).state[parameter][kind] = value
    state.batches.restore(saved["loader"])
    if ranks.rank < saved["ranks"]:  # additional ranks keep their freshly seeded generators
        _restore_generators(read_file(checkpoint, f"generators-{ranks.rank:05}.json"))
    vars(state.progress).update(saved["progress"])


def rewind(run: Path, state: TrainState, ranks: Ranks) -> None:
    """Restore the newest checkpoint, but keep the data order position, seconds and FLOPs of now."""
    progress, data = state.progress, state.batches.state()
    seconds, flops, rewound = progress.seconds, progress.flops, progress.rewound
    restore(run, state, ranks)
    state.batches.restore(data)
    progress.seconds, progress.flops, progress.rewound = seconds, flops, rewound + 1


def _restore_weights(run: Path, parameters: Mapping[str, torch.Tensor], weights: dict) -> None:
    if weights.keys() != parameters.keys():
        name = sorted(weights.keys() ^ parameters.keys())[0]
        side = "checkpoint" if name in weights else "model"
        raise UserError(f'{run}: the checkpoint is of another model: only the {side} has "{name}"')
    with torch.no_grad():
        for name, parameter in parameters.items():
            if weights[name].shape != parameter.shape:
                raise UserError(
                    f"{run}: the checkpoint is of another model: {name} has shape "
                    f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)}"
                )
            parameter.copy_(shard_like(weights[name], parameter))


def seed_generators(seed: int) -> None:
    """Seed torch, Python and numpy, the generators that a checkpoint stores."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _generators() -> dict:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": {name: bytes(x.numpy()).hex() for name, x in tensors.items()},
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def _restore_generators(state: dict) -> None:
    def tensor(name: str) -> torch.Tensor:
        return torch.frombuffer(bytearray.fromhex(state["torch"][name]), dtype=torch.uint8)

    torch.set_rng_state(tensor("cpu"))
    if "cuda" in state["torch"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensor("cuda"))
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
