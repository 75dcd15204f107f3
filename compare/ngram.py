"""A byte-level n-gram model with Witten-Bell smoothing, a simple baseline for text.

The estimate of order n interpolates the counts after n - 1 bytes with the estimate of order n - 1.
The weight of the lower order is the number of different bytes after that context (Bell, Witten &
Cleary 1990, chapter 6; method C). Counts are sorted arrays of hashed contexts, so tens of megabytes
take seconds.
"""

from collections.abc import Sequence

import numpy as np

_BASE = np.uint64(0x100000001B3)  # FNV's prime: a context's hash is a polynomial in it, mod 2^64


class NGram:
    """Counts of all orders from 1 to `order`, in texts with a zero byte before each."""

    def __init__(self, texts: Sequence[str], order: int):
        data = _joined(texts)
        self.order = order
        self.tables = []
        for n in range(order):
            contexts, following = _contexts(data, n)
            keys, first, counts = np.unique(contexts * _BASE + following, return_index=True, return_counts=True)
            # `totals`: how often a context occurs. `kinds`: how many different bytes follow it.
            seen, totals = np.unique(contexts, return_counts=True)
            kinds = np.zeros(len(seen), np.int64)
            np.add.at(kinds, np.searchsorted(seen, contexts[first]), 1)
            self.tables.append((keys, counts, seen, totals, kinds))

    def bits(self, texts: Sequence[str]) -> list[float]:
        """Bits of each text."""
        found = []
        for text in texts:
            data = _joined([text])
            p = np.full(len(data) - 1, 1 / 256)
            for n, (keys, counts, seen, totals, kinds) in enumerate(self.tables):
                contexts, following = _contexts(data, n)
                total, kind = (_look_up(seen, values, contexts) for values in (totals, kinds))
                count = _look_up(keys, counts, contexts * _BASE + following)
                p = np.where(total > 0, (count + kind * p) / np.maximum(1, total + kind), p)
            found.append(float(-np.log2(p).sum()))
        return found


def _joined(texts: Sequence[str]) -> np.ndarray:
    # A zero byte before each text; texts contain none, since data.prepare removes them.
    return np.frombuffer(b"".join(b"\0" + text.encode() for text in texts), np.uint8)


def _contexts(data: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    # For each byte except the first: the hash of the n bytes before it (zero before the beginning),
    # and the byte plus 1.
    padded = np.concatenate([np.zeros(n, np.uint8), data]).astype(np.uint64)
    contexts = np.zeros(len(data) - 1, np.uint64)
    for back in range(n, 0, -1):
        begin = n + 1 - back
        contexts = contexts * _BASE + padded[begin : begin + len(contexts)] + np.uint64(1)
    return contexts * np.uint64(0x9E3779B97F4A7C15), data[1:].astype(np.uint64) + np.uint64(1)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
