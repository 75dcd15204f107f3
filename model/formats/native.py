"""Native checkpoints: safetensors and JSON with checksums, never pickle.

A run directory:

    config.toml                the resolved recipe
    tokenizer.json             the tokenizer of the weights
    checkpoints/000200/        one folder per saved step
        model.safetensors      the trained parameters, under the names of the model
        …                      optimiser and loop state (train/checkpoint.py)
        manifest.json          SHA-256 of every file above and of itself, tokenizer hash, step

A file may be sharded over ranks: `model-00002-of-00004.safetensors` holds the second rank's rows of
each tensor; readers concatenate the shards. A checkpoint is written to NUMBER.tmp, fsynced and
renamed, so a folder named by a number is complete.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
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
    """Create an empty temporary folder for the files of this step."""
    temporary = run / "checkpoints" / f"{step:06d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def write_file(folder: Path, name: str, content: dict) -> str:
    """Write tensors (*.safetensors) or JSON values and fsync; returns the SHA-256. Raises OSError."""
    path = folder / name
    if name.endswith(".safetensors"):
        try:
            save_file(content, path)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(f"{path}: {error}") from None
    else:
        path.write_text(to_json(content))
    sync_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit_checkpoint(temporary: Path, checksums: dict[str, str], info: dict) -> Path:
    """Write the manifest with `info` and rename the temporary folder; returns the final path."""
    manifest = {"step": int(temporary.stem), "files": checksums, **info}
    manifest = json.loads(to_json(manifest))  # a non-finite score is null in the file
    manifest["checksum"] = _manifest_checksum(manifest)
    write_file(temporary, "manifest.json", manifest)
    sync_folder(temporary)
    final = temporary.with_suffix("")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_folder(final.parent)
    return final


def write_checkpoint(run: Path, step: int, files: dict[str, dict], info: dict) -> Path:
    """Write a whole checkpoint atomically: `checkpoints/<step>` is complete or does not exist."""
    temporary = begin_checkpoint(run, step)
    checksums = {name: write_file(temporary, name, content) for name, content in files.items()}
    return commit_checkpoint(temporary, checksums, info)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first."""
    found = (p for p in (run / "checkpoints").glob("*") if p.name.isdigit())
    return sorted(found, key=lambda p: int(p.name))


def latest_checkpoint(run: Path) -> Path:
    """The newest undamaged checkpoint; warns about each damaged one that is newer.

    Raises UserError with the damaged file if there is none.
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
            say(f"WARNING: {error}; trying the previous checkpoint")
            damage = damage or error
        else:
            return checkpoint
    assert damage is not None
    raise damage


def best_checkpoint(run: Path) -> Path:
    """The undamaged checkpoint with the best validation score; the newest if none has a score.

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
    """Name of the weights file for evaluation and sampling: the EMA weights if there are any."""
    for name in ("ema.safetensors", "average.safetensors"):  # the second name is of version 0.1
        if name in read_manifest(checkpoint)["files"] or _shards(checkpoint, name):
            return name
    return "model.safetensors"


def _shards(checkpoint: Path, name: str) -> list[str]:
    stem, _, kind = name.partition(".")
    found = read_manifest(checkpoint)["files"]
    return sorted(n for n in found if n.startswith(f"{stem}-") and n.endswith(f".{kind}"))


def read_file(checkpoint: Path, name: str) -> dict:
    """Tensors or JSON values of one file; the shards of a sharded file are concatenated.

    Raises UserError if a file is missing or does not match its checksum.
    """
    manifest = read_manifest(checkpoint)
    if name.endswith(".json"):
        return json.loads(_checked_bytes(checkpoint, name, manifest))
    shards = _shards(checkpoint, name) or [name]
    loaded = [load(_checked_bytes(checkpoint, shard, manifest)) for shard in shards]
    if len(loaded) == 1:
        return loaded[0]
    names = {key for part in loaded for key in part}
    pieces = {key: [part[key] for part in loaded if key in part] for key in sorted(names)}
    return {key: torch.cat(rows) if rows[0].dim() else rows[0] for key, rows in pieces.items()}


def load_run(run: Path) -> tuple[Transformer, Tokenizer]:
    """The model of the newest checkpoint in float32 on the CPU, and its tokenizer.

    Loads the EMA weights if the run has them. Raises UserError if the folder is no run directory,
    its checkpoint is corrupted, or its tokenizer is not the one that the weights were trained with.
    """
    checkpoint = latest_checkpoint(run)
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    check_tokenizer(run, tokenizer, read_manifest(checkpoint))
    state = read_file(checkpoint, weights_file(checkpoint))
    if "tok_embeddings.weight" not in state:
        raise UserError(f"{run}: holds an adapter, not a whole model; use {run}/merged")
    config = validate(ModelConfig, read_toml(run / "config.toml")["model"], f"{run}/config.toml: [model]")
    return model_from_state(config, state).eval(), tokenizer


def check_tokenizer(run: Path, tokenizer: Tokenizer, manifest: dict) -> None:
    """Raise UserError if the checkpoint was trained with another tokenizer."""
    if tokenizer.hash != manifest["tokenizer"]:
        raise UserError(
            f"{run}: its checkpoint was trained with another tokenizer (hash "
            f"{manifest['tokenizer'][:12]}, not {tokenizer.hash[:12]}); use the tokenizer.json it "
            "was trained with"
        )


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
