"""Text embeddings of norm 1, from a packaged sentence encoder or from one of our models."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cli.errors import UserError
from model.batches import batch_by_length
from model.load import load_model

Encoder = Callable[[Sequence[str]], np.ndarray]  # texts -> (N, width) float32
WORDLLAMA = "wordllama"
BATCH = 8


def load_encoder(name: str) -> Encoder:
    """`wordllama`, whose package contains its weights, or any model that `load_model` loads.

    Raises UserError if it is not installed or cannot be loaded. The encoder raises UserError for a
    text longer than the model's context.
    """
    return _load_wordllama() if name == WORDLLAMA else _model_encoder(name)


def _load_wordllama() -> Encoder:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise UserError("the sentence encoder needs: pip install -e '.[retrieval]'")
    from wordllama import WordLlama

    # The package contains weights and tokenizer, but looks there only with this cache_dir.
    model = WordLlama.load(cache_dir=Path(spec.origin).parent, disable_download=True)
    return lambda texts: np.asarray(model.embed(list(texts), norm=True), np.float32)


def _model_encoder(name: str) -> Encoder:
    # The mean of the last layer's features, minus the part common to all texts, which dominates
    # the vectors of a language model (Mu & Viswanath 2018, arXiv:1702.01417).
    model, tokenizer = load_model(name)
    sample = ["The cat sat.", "def f(x):", "Returns a list of all items.", "1, 2, 3", "Why?"]

    @torch.no_grad()
    def mean_features(texts: Sequence[str]) -> np.ndarray:
        ids = [[tokenizer.separator_id, *i] for i in tokenizer.encode_batch(texts)]
        if (longest := max(map(len, ids))) > model.config.context:
            raise UserError(
                f"a passage of {longest} tokens does not fit the context of {model.config.context} of "
                f"{name}; lower chunk_chars"
            )
        pooled = np.zeros((len(texts), model.config.dim), np.float32)
        for rows, inputs in batch_by_length(ids, BATCH):
            features = model.features(inputs)
            for row, i in enumerate(rows):
                pooled[i] = features[row, 1 : max(2, len(ids[i]))].mean(0)
        return pooled

    common = mean_features(sample).mean(0)

    def encode(texts: Sequence[str]) -> np.ndarray:
        x = mean_features(texts) - common
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    return encode
