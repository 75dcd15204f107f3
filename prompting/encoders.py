"""Texts as vectors of length 1: from a packaged sentence encoder, or from a model of ours."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cli.errors import UserError
from model.load import load_model

Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> (N, width) float32
WORDS = "wordllama"
BATCH = 8


def open_encoder(name: str) -> Encode:
    """`wordllama`, whose weights are in its package, or any model that `load_model` opens.

    Raises UserError if it is not installed or cannot be opened, and later for a text that is longer
    than the model's context.
    """
    return _wordllama() if name == WORDS else _features(name)


def _wordllama() -> Encode:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise UserError("the sentence encoder needs: pip install -e '.[retrieval]'")
    from wordllama import WordLlama

    # Its weights and tokenizer lie in the package, where it looks only if it is told to.
    model = WordLlama.load(cache_dir=Path(spec.origin).parent, disable_download=True)
    return lambda texts: np.asarray(model.embed(list(texts), norm=True), np.float32)


def _features(name: str) -> Encode:
    # The mean of the last layer's features, without the part that all texts share: in a model of
    # language it is most of every vector (Mu & Viswanath 2018, arXiv:1702.01417).
    model, tokenizer = load_model(name)
    sample = ["The cat sat.", "def f(x):", "Returns a list of all items.", "1, 2, 3", "Why?"]

    @torch.no_grad()
    def read(texts: Sequence[str]) -> np.ndarray:
        ids = [[tokenizer.separator_id, *i] for i in tokenizer.encode_batch(texts)]
        if (longest := max(map(len, ids))) > model.config.context:
            raise UserError(
                f"a passage of {longest} tokens does not fit the {model.config.context} that "
                f"{name} reads; lower chunk_chars"
            )
        found = np.zeros((len(texts), model.config.dim), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = torch.zeros(len(rows), max(len(ids[i]) for i in rows), dtype=torch.int64)
            for at, i in enumerate(rows):
                inputs[at, : len(ids[i])] = torch.tensor(ids[i])
            features = model.features(inputs)
            for at, i in enumerate(rows):
                found[i] = features[at, 1 : max(2, len(ids[i]))].mean(0)
        return found

    common = read(sample).mean(0)

    def encode(texts: Sequence[str]) -> np.ndarray:
        x = read(texts) - common
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    return encode
