"""The state of a run: taken whole, restored exactly, on any number of ranks.

Beside the weights (model/formats/native.py) a checkpoint holds

    optimizer.safetensors      the optimisers' tensors by parameter name
    ema.safetensors            the EMA of the weights, if `train.ema` is set (before: average.safetensors)
    state.json                 progress, loader cursor, data fingerprint
    generators-00000.json      torch's, Python's and numpy's generators of each rank

Where parameters are sharded (FSDP) every rank writes its rows of weights and optimiser tensors;
whoever restores takes the rows that it needs, sharded otherwise or not at all.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from cli.errors import UserError
from data.loader import Loader
from model.formats.native import check_tokenizer, latest_checkpoint, read_file, read_manifest, weights_file
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks, local, shard_like


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    tokens: int = 0
    """Tokens that were trained on (targets scored), over all ranks."""
    seconds: float = 0.0
    """Wall-clock time in training steps; evaluation and saving are not in it."""
    flops: float = 0.0
    skipped: int = 0
    """Steps not taken because loss or gradient was not finite."""
    rewound: int = 0
    """Times that a loss spike sent the run back to a checkpoint."""
    recent: list[float] = field(default_factory=list)
    """The last losses per token, which a spike is measured against."""
    best: float | None = None
    """The best evaluation so far, in bits per byte."""
    stale: int = 0
    """Evaluations since then."""
    evaluated_windows: int = 0
    """Windows that each periodic evaluation scores, so that all scores of a run compare."""

    def update_best(self, bits_per_byte: float) -> bool:
        """Whether this evaluation is the best so far."""
        better = math.isfinite(bits_per_byte) and (self.best is None or bits_per_byte < self.best)
        self.best = bits_per_byte if better else self.best
        self.stale = 0 if better else self.stale + 1
        return better


@dataclass
class TrainState:
    """Everything that a resumed run must find again."""

    parameters: dict[str, nn.Parameter]
    """Those that are trained, by name."""
    optimizers: list[torch.optim.Optimizer]
    loader: Loader
    tokenizer: Tokenizer
    fingerprint: str
    """Of the data and of the weights that are not trained."""
    ema: dict[str, torch.Tensor]
    """The EMA of the parameters; empty if there is none."""
    progress: Progress = field(default_factory=Progress)

    def optimizer_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """The one that updates this parameter."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return optimizer
        raise AssertionError("a parameter without an optimiser")


def snapshot(state: TrainState, ranks: Ranks) -> dict[str, dict]:
    """The files that this rank adds to a checkpoint, copied to the CPU: training may go on."""
    moments = {
        f"{name}.{key}": value
        for name, parameter in state.parameters.items()
        for key, value in state.optimizer_of(parameter).state[parameter].items()
    }
    files = {f"generators-{ranks.rank:05}.json": _generators()}
    if ranks.is_main:
        files["state.json"] = {
            "progress": asdict(state.progress),
            "loader": state.loader.state(),
            "data": state.fingerprint,
            "ranks": ranks.world_size,
        }
    sharded = any(isinstance(p, DTensor) for p in state.parameters.values())
    if ranks.is_main or sharded:
        part = f"-{ranks.rank + 1:05}-of-{ranks.world_size:05}" if sharded else ""
        kinds = {"model": state.parameters, "optimizer": moments, "ema": state.ema}
        for stem, tensors in kinds.items():
            if stem == "ema" and not tensors:
                continue
            files[f"{stem}{part}.safetensors"] = {
                name: local(x).detach().to("cpu", copy=True).contiguous()
                for name, x in tensors.items()
                if ranks.is_main or isinstance(x, DTensor)
            }
    return files


def restore(run: Path, state: TrainState, ranks: Ranks) -> None:
    """Load the newest undamaged checkpoint into everything that `state` holds.

    Raises UserError if there is none, or it belongs to other data, another tokenizer or another
    model.
    """
    checkpoint = latest_checkpoint(run)
    saved = read_file(checkpoint, "state.json")
    if saved["data"] != state.fingerprint:
        raise UserError(
            f"{run}: was trained on other data, or on another base model (a file has changed since "
            "then); restore it, or start anew with --overwrite"
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
        elif parameter.is_cuda:  # AdamW's count of steps, a scalar
            value = value.to(parameter.device)
        state.optimizer_of(parameter).state[parameter][kind] = value
    state.loader.restore(saved["loader"])
    if ranks.rank < saved["ranks"]:  # a new rank keeps its freshly seeded generators
        _restore_generators(read_file(checkpoint, f"generators-{ranks.rank:05}.json"))
    vars(state.progress).update(saved["progress"])


def rewind(run: Path, state: TrainState, ranks: Ranks) -> None:
    """Back to the newest checkpoint, but on with data not seen yet; time spent stays spent."""
    progress, data = state.progress, state.loader.state()
    seconds, flops, rewound = progress.seconds, progress.flops, progress.rewound
    restore(run, state, ranks)
    state.loader.restore(data)
    progress.seconds, progress.flops, progress.rewound = seconds, flops, rewound + 1


def _restore_weights(run: Path, parameters: Mapping[str, torch.Tensor], weights: dict) -> None:
    if weights.keys() != parameters.keys():
        odd = sorted(weights.keys() ^ parameters.keys())[0]
        raise UserError(f'{run}: the checkpoint is of another model ("{odd}" is in only one)')
    with torch.no_grad():
        for name, parameter in parameters.items():
            if weights[name].shape != parameter.shape:
                raise UserError(
                    f"{run}: the checkpoint is of another model ({name} is "
                    f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)})"
                )
            parameter.copy_(shard_like(weights[name], parameter))


def seed_generators(seed: int) -> None:
    """Seed every generator that a checkpoint holds."""
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
