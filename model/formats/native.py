"""Our own checkpoints: safetensors and JSON with checksums, never pickle.

A run directory:

    config.toml                the resolved recipe
    tokenizer.json             travels with the weights
    checkpoints/000200/        one folder per saved step
        model.safetensors      the parameters that train, under the model's own names
        …                      optimiser and loop state (train/checkpoint.py)
        manifest.json          SHA-256 of every file above and of itself, tokenizer hash, step

A file may be sharded over ranks: `model-00002-of-00004.safetensors` holds the second rank's rows of
each tensor; readers concatenate them. A checkpoint is written aside, fsynced
and renamed, so a folder with a number is complete.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from cli.atomic import safe_join, sync_file, sync_folder, to_json
from cli.console import say
from cli.errors import UserError
from cli.recipes import read_toml, validate
from configs.schema import ModelConfig
from model.build import model_from_state
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


def begin_checkpoint(run: Path, step: int) -> Path:
    """An empty folder aside for the files of this step."""
    aside = run / "checkpoints" / f"{step:06d}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def write_file(aside: Path, name: str, content: dict) -> str:
    """Tensors (*.safetensors) or JSON values, fsynced; returns the SHA-256. Raises OSError."""
    path = aside / name
    if name.endswith(".safetensors"):
        try:
            save_file(content, path)
        except SafetensorError as error:  # a full disk comes as one of these
            raise OSError(f"{path}: {error}") from None
    else:
        path.write_text(to_json(content))
    sync_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit_checkpoint(aside: Path, checksums: dict[str, str], info: dict) -> Path:
    """Add the manifest, with `info` in it, and give the folder its name."""
    manifest = {"step": int(aside.stem), "files": checksums, **info}
    manifest = json.loads(to_json(manifest))  # a score that is not finite is null in the file
    manifest["checksum"] = _manifest_checksum(manifest)
    write_file(aside, "manifest.json", manifest)
    sync_folder(aside)
    final = aside.with_suffix("")
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    sync_folder(final.parent)
    return final


def write_checkpoint(run: Path, step: int, files: dict[str, dict], info: dict) -> Path:
    """All of the above at once: `checkpoints/<step>` either exists complete or not at all."""
    aside = begin_checkpoint(run, step)
    checksums = {name: write_file(aside, name, content) for name, content in files.items()}
    return commit_checkpoint(aside, checksums, info)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first."""
    found = (p for p in (run / "checkpoints").glob("*") if p.name.isdigit())
    return sorted(found, key=lambda p: int(p.name))


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint that is undamaged; of damaged ones on the way to it, it says so.

    Raises UserError, naming the file, if there is none.
    """
    found = checkpoints(run)
    if not found:
        raise UserError(f"{run}: not a run directory with a checkpoint")
    damage = None
    for checkpoint in reversed(found):
        try:
            manifest = read_manifest(checkpoint)
            for name in manifest["files"]:
                _checked_bytes(checkpoint, name, manifest)
        except UserError as error:
            say(f"WARNING: {error}; trying the checkpoint before it")
            damage = damage or error
        else:
            return checkpoint
    assert damage is not None
    raise damage


def best_checkpoint(run: Path) -> Path:
    """The undamaged checkpoint with the best validation score, the newest if none has one.

    Raises UserError if there is none.
    """
    newest = latest_checkpoint(run)
    scores = {path: read_manifest(path)["bits_per_byte"] for path in checkpoints(run)}
    scored = [path for path, score in scores.items() if score is not None]
    return min(scored, key=scores.__getitem__, default=newest)


def read_manifest(checkpoint: Path) -> dict:
    """The manifest of a checkpoint. Raises UserError if it is missing or damaged."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        checksum = manifest.pop("checksum")
        if checksum != _manifest_checksum(manifest):
            raise ValueError("does not match its checksum")
        if manifest["step"] != int(checkpoint.name):
            raise ValueError(f"is of step {manifest['step']}")
        for name in manifest["files"]:
            safe_join(checkpoint, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{checkpoint}: corrupted checkpoint: manifest.json: {error}") from None
    return manifest


def weights_file(checkpoint: Path) -> str:
    """The file of the weights to evaluate and sample with: the EMA's if there is one."""
    for name in ("ema.safetensors", "average.safetensors"):  # the second is of version 0.1
        if name in read_manifest(checkpoint)["files"] or _parts(checkpoint, name):
            return name
    return "model.safetensors"


def _parts(checkpoint: Path, name: str) -> list[str]:
    stem, _, kind = name.partition(".")
    found = read_manifest(checkpoint)["files"]
    return sorted(n for n in found if n.startswith(f"{stem}-") and n.endswith(f".{kind}"))


def read_file(checkpoint: Path, name: str) -> dict:
    """Tensors or JSON values of one file, its parts concatenated if it is sharded over ranks.

    Raises UserError if one is missing or differs from its checksum.
    """
    manifest = read_manifest(checkpoint)
    if name.endswith(".json"):
        return json.loads(_checked_bytes(checkpoint, name, manifest))
    parts = _parts(checkpoint, name) or [name]
    loaded = [load(_checked_bytes(checkpoint, part, manifest)) for part in parts]
    if len(loaded) == 1:
        return loaded[0]
    names = {key for part in loaded for key in part}
    pieces = {key: [part[key] for part in loaded if key in part] for key in sorted(names)}
    return {key: torch.cat(rows) if rows[0].dim() else rows[0] for key, rows in pieces.items()}


def load_run(run: Path) -> tuple[Transformer, Tokenizer]:
    """The newest checkpoint's model, in float32 on the CPU, and its tokenizer.

    The EMA of the weights if the run kept one.

    Raises UserError if the folder is no run directory, its checkpoint is corrupted, or its
    tokenizer is not the one that the weights were trained with.
    """
    checkpoint = latest_checkpoint(run)
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    check_tokenizer(run, tokenizer, read_manifest(checkpoint))
    state = read_file(checkpoint, weights_file(checkpoint))
    if "tok_embeddings.weight" not in state:
        raise UserError(f"{run}: holds an adapter, not a whole model; use {run}/merged")
    tables = validate(_HasModel, read_toml(run / "config.toml"), f"{run}/config.toml")
    return model_from_state(tables.model, state).eval(), tokenizer


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


def _checked_bytes(checkpoint: Path, name: str, manifest: dict) -> bytes:
    try:
        data = (checkpoint / name).read_bytes()
    except OSError as error:
        raise UserError(f"{checkpoint}: corrupted checkpoint: {name}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != manifest["files"].get(name):
        raise UserError(f"{checkpoint}: corrupted checkpoint: {name} does not match its checksum")
    return data


def _manifest_checksum(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
