"""A classifier without a language model: logistic regression on tf-idf of character n-grams.

`compare` fits it as a baseline. Here it is a file, and equals scikit-learn's, which it does not need.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from adapt.features import softmax
from cli.atomic import to_json, write_atomically

ORDERS = (1, 2, 3, 4)  # characters of an n-gram, as in prompting.shots.fit_tfidf
_SPACES = re.compile(r"\s\s+")


class TfIdfClassifier(NamedTuple):
    """Logistic regression on character 1- to 4-grams: sublinear term frequency times idf, of unit length."""

    labels: list[str]
    ngrams: dict[str, int]
    """The column of every n-gram."""
    idf: np.ndarray
    weight: np.ndarray  # (labels, n-grams)
    bias: np.ndarray

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> (N, labels) probabilities, float64."""
        return softmax(np.stack([self._logits(text) for text in texts]))

    def _logits(self, text: str) -> np.ndarray:
        text = _SPACES.sub(" ", text)
        found = Counter(text[i : i + n] for n in ORDERS for i in range(len(text) - n + 1))
        known = {self.ngrams[each]: 1 + math.log(count) for each, count in found.items() if each in self.ngrams}
        columns = np.fromiter(known, np.int64, len(known))
        values = np.fromiter(known.values(), np.float64, len(known)) * self.idf[columns]
        return self.weight[:, columns] @ values / max(float(np.linalg.norm(values)), 1e-300) + self.bias

    def save(self, folder: Path) -> None:
        """Write tfidf.safetensors and tfidf.json."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("idf", "weight", "bias")}
        save_file(arrays, folder / "tfidf.safetensors")
        about = {"labels": self.labels, "ngrams": sorted(self.ngrams, key=self.ngrams.__getitem__)}
        write_atomically(folder / "tfidf.json", to_json(about) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "TfIdfClassifier":
        """Read the files of `save`."""
        about = json.loads((folder / "tfidf.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "tfidf.safetensors")
        ngrams = {ngram: column for column, ngram in enumerate(about["ngrams"])}
        return cls(about["labels"], ngrams, *(arrays[name] for name in ("idf", "weight", "bias")))
