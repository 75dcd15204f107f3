"""The packages: what each may import, and the libraries and files that need care."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "cli": set(),
    "configs": set(),
    "data": {"tokenizer"},
    "tokenizer": set(),
    "kernels": set(),
    "model": {"kernels", "tokenizer"},
    "train": {"model", "data", "tokenizer"},
    "adapt": {"model", "train", "data", "tokenizer"},
    "prompting": {"model", "data", "tokenizer"},
    "serve": {"model", "adapt", "prompting", "data", "tokenizer"},
    "compare": {"model", "train", "data", "tokenizer", "adapt", "prompting"},
}
OPTIONAL = {
    "triton",
    "wandb",
    "transformers",
    "peft",
    "lancedb",
    "matplotlib",
    "sklearn",
    "scipy",
    "gguf",
    "zstandard",
    "wordllama",
    "jinja2",
    "lm_eval",
    "ray",
    "rdkit",
    "uvicorn",
}


# What is written in Triton is imported only inside the functions that launch it.
TRITON = {"elementwise", "tiles", "forward", "backward", "launch", "kernel"}


# Copied into exported folders, and imported by transformers only.
COPIED = {"modeling_homegrown"}


def sources():
    paths = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in paths if path.stem not in COPIED]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
