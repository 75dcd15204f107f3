"""Our own checkpoints: safetensors and JSON with checksums, never pickle.

A run directory:

    config.toml                the resolved recipe
    tokenizer.json             travels with the weights
    checkpoints/000200/        one folder per saved step
        model.safetensors      the parameters that train, under the model's own names
        …                      optimiser and loop state (train/checkpoint.py)
        manifest.json          SHA-256 of every file above, tokenizer hash, step

A checkpoint is written aside, fsynced and renamed, so a folder with a number is complete.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load, save

from configs.cli import UserError, read_toml, validate
from configs.schema import ModelConfig
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


def write_checkpoint(run: Path, step: int, files: dict[str, dict], info: dict) -> Path:
    """Write `checkpoints/<step>` so that it either exists complete or not at all.

    `files` maps a name to tensors (*.safetensors) or to JSON values (*.json); `info` goes into the
    manifest beside the checksums.
    """
    final = run / "checkpoints" / f"{step:06d}"
    aside = final.with_name(f"{final.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    checksums = {}
    for name, content in files.items():
        data = save(content) if name.endswith(".safetensors") else json.dumps(content).encode()
        checksums[name] = hashlib.sha256(data).hexdigest()
        _write(aside / name, data)
    manifest = {"step": step, "files": checksums, **info}
    _write(aside / "manifest.json", json.dumps(manifest, indent=2).encode())
    _sync_folder(aside)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _sync_folder(final.parent)
    return final


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first."""
    found = (p for p in (run / "checkpoints").glob("*") if p.name.isdigit())
    return sorted(found, key=lambda p: int(p.name))


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint. Raises UserError if there is none."""
    found = checkpoints(run)
    if not found:
        raise UserError(f"{run}: not a run directory with a checkpoint")
    return found[-1]


def read_manifest(checkpoint: Path) -> dict:
    """The manifest of a checkpoint. Raises UserError if it is missing or malformed."""
    try:
        return json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint}: corrupted checkpoint: manifest.json: {error}") from None


def read_file(checkpoint: Path, name: str) -> dict:
    """Tensors or JSON values of one file. Raises UserError if it differs from its checksum."""
    expected = read_manifest(checkpoint)["files"].get(name)
    try:
        data = (checkpoint / name).read_bytes()
    except OSError as error:
        raise UserError(f"{checkpoint}: corrupted checkpoint: {name}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise UserError(
            f"{checkpoint}: corrupted checkpoint: {name} does not match its checksum; delete this "
            "folder to use the one before it"
        )
    return load(data) if name.endswith(".safetensors") else json.loads(data)


def load_run(run: Path) -> tuple[Transformer, Tokenizer]:
    """The newest checkpoint's model, in float32 on the CPU, and its tokenizer.

    Raises UserError if the folder is no run directory, its checkpoint is corrupted, or its
    tokenizer is not the one that the weights were trained with.
    """
    checkpoint = latest_checkpoint(run)
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    check_tokenizer(run, tokenizer, read_manifest(checkpoint))
    state = read_file(checkpoint, "model.safetensors")
    if "tok_embeddings.weight" not in state:
        raise UserError(f"{run}: holds an adapter, not a whole model; use {run}/merged")
    tables = validate(_HasModel, read_toml(run / "config.toml"), f"{run}/config.toml")
    return Transformer.from_state(tables.model, state).eval(), tokenizer


def check_tokenizer(run: Path, tokenizer: Tokenizer, manifest: dict) -> None:
    """Raises UserError if the checkpoint was trained with another tokenizer."""
    if tokenizer.hash != manifest["tokenizer"]:
        raise UserError(
            f"{run}: its checkpoint was trained with another tokenizer (hash "
            f"{manifest['tokenizer'][:12]}, not {tokenizer.hash[:12]}); use the tokenizer.json it "
            "was trained with"
        )


class _HasModel(BaseModel):
    # A run's recipe may be of any kind; only its [model] table matters here.
    model_config = ConfigDict(extra="ignore")
    model: ModelConfig


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
