"""Baselines: compressors and n-grams on the text, majority class and tf-idf on the task."""

import lzma
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cli.errors import UserError
from compare.context import Cell, Study
from compare.method import Learned, Setting, score_labels
from compare.ngram import NGram
from data.items import Task
from prompting.shots import fit_tfidf

ORDERS: tuple[Setting, ...] = tuple({"order": order} for order in (5, 4, 6, 3))
STRENGTHS: tuple[Setting, ...] = tuple({"strength": strength} for strength in (10.0, 100.0, 1.0, 1000.0))
Stream = Any  # a streaming compressor, with the methods compress and flush


def compressor_bits(stream: Stream, train: Sequence[str], test: Sequence[str]) -> list[float]:
    """Bits that each held-out text adds to the archive of the training texts, each text alone."""
    for text in train:  # one by one: xz delays a single large input until the end
        stream.compress(f"{text}\n\n".encode())
    before, *after = [_remaining_bytes(stream, text.encode()) for text in ("", *test)]
    return [8.0 * (size - before) for size in after]


def _remaining_bytes(stream: Stream, data: bytes) -> int:
    # Bytes still to write if `data` ends the archive. Measured in a forked process, since neither
    # library can copy the state of a compressor.
    if sys.platform == "win32":
        raise UserError("the baselines xz and zstd need os.fork; run them on Linux or macOS")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, str(len(stream.compress(data)) + len(stream.flush())).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        size = int(pipe.read())
    os.waitpid(child, 0)
    return size


def xz() -> Stream:
    """Xz -9e, as a bare stream: the usual container pads to four bytes."""
    return lzma.LZMACompressor(lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)


def zstd() -> Stream:
    """Zstd -19 with long-distance matching and a window of 128 MiB."""
    try:
        import zstandard
    except ImportError:
        raise UserError("the zstd baseline needs: pip install -e '.[compare]'") from None
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=settings).compressobj()


def learn_compressor(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Xz or zstd, by the method's name: compresses the training text, then one held-out text."""
    train = study.training_texts(cell.size, cell.method)
    stream = {"xz": xz, "zstd": zstd}[cell.method]
    return Learned(train, bits=lambda texts: compressor_bits(stream(), train, texts))


def learn_ngram(study: Study, cell: Cell, setting: Setting) -> Learned:
    """A byte-level n-gram model of the training text."""
    train, started = study.training_texts(cell.size, cell.method), time.perf_counter()
    model = NGram(train, setting["order"])
    stored = sum(array.nbytes for table in model.tables for array in table)
    costs = {"training_seconds": time.perf_counter() - started, "stored_bytes": stored}
    return Learned(train, bits=model.bits, general_bits=model.bits, costs=costs)


def learn_majority(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The majority class: the most frequent label of the labelled items, for every input."""
    task = study.labelled_task(int(cell.size), cell.method)
    majority, count = Counter(item.label for item in task.train).most_common(1)[0]

    def answers(split: str) -> dict:
        items = getattr(task, split)
        return score_labels(items, [majority] * len(items), [count / len(task.train)] * len(items))

    return Learned([], answers=answers)


def learn_tfidf(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Logistic regression on tf-idf of character 1- to 4-grams, trained on the labelled items."""
    task = study.labelled_task(int(cell.size), cell.method)
    return tfidf_logistic(task, setting["strength"])


def tfidf_logistic(task: Task, strength: float) -> Learned:
    """`learn_tfidf` for a task and an inverse regularisation strength."""
    started = time.perf_counter()
    vectorizer, train = fit_tfidf(task.train)
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    labels = [item.label for item in task.train]
    has_one_label = len(set(labels)) == 1  # logistic regression refuses that
    model = DummyClassifier() if has_one_label else LogisticRegression(C=strength, max_iter=1000)
    model.fit(train, labels)
    size = 0 if has_one_label else int(model.coef_.size)
    costs = {
        "training_seconds": time.perf_counter() - started,
        "trained_parameters": size,
        "stored_bytes": 8 * size + len("".join(vectorizer.vocabulary_).encode()),
    }

    def answers(split: str) -> dict:
        items, started = getattr(task, split), time.perf_counter()
        # One request at a time, as for prompts.
        p = np.concatenate([model.predict_proba(vectorizer.transform([item.text])) for item in items])
        scores = score_labels(items, model.classes_[p.argmax(1)], p.max(1))
        return scores | {"seconds_per_request": (time.perf_counter() - started) / len(items)}

    return Learned([item.text for item in task.train], answers=answers, costs=costs)
