"""The state of a run: saved whole, restored exactly.

Beside the weights (model/formats/native.py) a checkpoint holds

    optimizer.safetensors      AdamW's moments by parameter name
    rng.safetensors            torch's generator of every rank (CPU and CUDA)
    state.json                 step, tokens, seconds, loader cursor, data fingerprint, Python and
                               numpy generators of every rank
"""

import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from configs.cli import UserError
from data.loader import Loader
from model.formats.native import (
    check_tokenizer,
    checkpoints,
    latest_checkpoint,
    read_file,
    read_manifest,
    write_checkpoint,
)
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks


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
    """Steps not taken because the gradient was not finite."""


def save(
    run: Path,
    progress: Progress,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    fingerprint: str,
    tokenizer: Tokenizer,
    bits_per_byte: float | None,
    keep_last: int,
    ranks: Ranks,
) -> None:
    """Write a checkpoint and delete old ones; the newest `keep_last` and the best stay.

    Every rank must call it; the first one writes.
    """
    generators = ranks.gather(_generators())
    if not ranks.first:
        return
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    tensors = {
        f"{kind}.{rank}": state["torch"][kind]
        for rank, state in enumerate(generators)
        for kind in state["torch"]
    }
    state = {
        "progress": asdict(progress),
        "loader": loader.state(),
        "data": fingerprint,
        "generators": [{k: g[k] for k in ("python", "numpy")} for g in generators],
    }
    files: dict[str, dict] = {
        "model.safetensors": {name: p.detach() for name, p in parameters.items()},
        "optimizer.safetensors": moments,
        "rng.safetensors": tensors,
        "state.json": state,
    }
    info = {"tokenizer": tokenizer.hash, "bits_per_byte": bits_per_byte}
    write_checkpoint(run, progress.step, files, info)
    _prune(run, keep_last)


def restore(
    run: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    fingerprint: str,
    tokenizer: Tokenizer,
    ranks: Ranks,
) -> Progress:
    """Load the newest checkpoint into everything given.

    Raises UserError if there is none, it is corrupted, or it belongs to other data, another
    tokenizer or another model.
    """
    checkpoint = latest_checkpoint(run)
    state = read_file(checkpoint, "state.json")
    if state["data"] != fingerprint:
        raise UserError(
            f"{run}: was trained on other data, or on another base model (a file has changed since "
            "then); restore it, or start anew with --overwrite"
        )
    check_tokenizer(run, tokenizer, read_manifest(checkpoint))
    weights = read_file(checkpoint, "model.safetensors")
    moments = read_file(checkpoint, "optimizer.safetensors")
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
            parameter.copy_(weights[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := moments.get(f"{name}.{key}")) is not None:
                    where = "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                    optimizer.state[parameter][key] = value.to(where)
    loader.restore(state["loader"])
    if ranks.rank < len(state["generators"]):  # a new rank keeps its freshly seeded generators
        tensors = read_file(checkpoint, "rng.safetensors")
        _restore_generators(state["generators"][ranks.rank], tensors, ranks.rank)
    return Progress(**state["progress"])


def _generators() -> dict:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": tensors,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def _restore_generators(state: dict, tensors: dict[str, torch.Tensor], rank: int) -> None:
    torch.set_rng_state(tensors[f"cpu.{rank}"])
    if f"cuda.{rank}" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"cuda.{rank}"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))


def _prune(run: Path, keep_last: int) -> None:
    found = checkpoints(run)
    scores = {path: read_manifest(path)["bits_per_byte"] for path in found}
    scored = {path: score for path, score in scores.items() if score is not None}
    best = min(scored, key=scored.__getitem__, default=None)
    for path in found[:-keep_last]:
        if path != best:
            shutil.rmtree(path)
