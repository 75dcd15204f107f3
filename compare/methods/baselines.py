"""Baselines: compressors and n-grams on the text, majority class and tf-idf on the task."""

import lzma
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.features import fit_linear
from adapt.tfidf import TfIdfClassifier
from cli.errors import UserError
from compare.context import Cell, Study
from compare.method import Learned, Setting, score_labels
from compare.ngram import NGram
from data.items import Item, Task
from prompting.shots import fit_tfidf

ORDERS: tuple[Setting, ...] = tuple({"order": order} for order in (5, 4, 6, 3))
STRENGTHS: tuple[Setting, ...] = tuple({"strength": strength} for strength in (10.0, 100.0, 1.0, 1000.0))
Stream = Any  # a streaming compressor, with the methods compress and flush


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


class Compressor:
    """A compressor as a text model."""

    def __init__(self, stream: Stream, train: Sequence[str]):
        """Compresses the training texts."""
        self.stream = stream
        for text in train:  # one by one: xz delays a single large input until the end
            stream.compress(f"{text}\n\n".encode())

    def bits(self, texts: Sequence[str]) -> list[float]:
        """Bits that each text adds to the archive of the training texts, each text alone."""
        before, *after = [_remaining_bytes(self.stream, text.encode()) for text in ("", *texts)]
        return [8.0 * (size - before) for size in after]


def learn_compressor(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Xz or zstd, by the method's name: compresses the training text, then one held-out text."""
    train, started = study.training_texts(cell), time.perf_counter()
    model = Compressor({"xz": xz, "zstd": zstd}[cell.method](), train)
    return Learned(model, train, {"training_seconds": time.perf_counter() - started})


def learn_ngram(study: Study, cell: Cell, setting: Setting) -> Learned:
    """A byte-level n-gram model of the training text."""
    train, started = study.training_texts(cell), time.perf_counter()
    model = NGram(train, setting["order"])
    stored = sum(array.nbytes for table in model.tables for array in table)
    costs = {"training_seconds": time.perf_counter() - started, "stored_bytes": stored}
    return Learned(model, train, costs)


class Majority:
    """The majority class: the most frequent label of the labelled items, for every input."""

    def __init__(self, task: Task):
        self.label, count = Counter(item.label for item in task.train).most_common(1)[0]
        self.share = count / len(task.train)

    def answers(self, items: Sequence[Item]) -> dict:
        """See `TaskModel`."""
        return score_labels(items, [self.label] * len(items), [self.share] * len(items))


def learn_majority(study: Study, cell: Cell, setting: Setting) -> Learned:
    """`Majority` of the labelled items."""
    return Learned(Majority(study.labelled_task(cell, int(cell.size))), [])


class TfIdf:
    """Logistic regression on tf-idf of character 1- to 4-grams."""

    def __init__(self, task: Task, strength: float):
        """Trained on the items of `task`; `strength` is an inverse regularisation strength."""
        started = time.perf_counter()
        vectorizer, train = fit_tfidf(task.train)
        labels, weight, bias = fit_linear(train, [item.label for item in task.train], strength, max_iter=1000)
        self.classifier = TfIdfClassifier(labels, vectorizer.vocabulary_, vectorizer.idf_, weight, bias)
        size = weight.size if len(labels) > 2 else (len(labels) - 1) * weight.shape[1]
        self.costs = {
            "training_seconds": time.perf_counter() - started,
            "trained_parameters": size,
            "stored_bytes": 8 * size + len("".join(vectorizer.vocabulary_).encode()),
        }

    def answers(self, items: Sequence[Item]) -> dict:
        """See `TaskModel`; one request at a time, as for prompts."""
        started = time.perf_counter()
        p = np.concatenate([self.classifier.probabilities([item.text]) for item in items])
        seconds = (time.perf_counter() - started) / len(items)
        scores = score_labels(items, [self.classifier.labels[best] for best in p.argmax(1)], p.max(1))
        return scores | {"seconds_per_request": seconds}


def learn_tfidf(study: Study, cell: Cell, setting: Setting) -> Learned:
    """`TfIdf` of the labelled items."""
    task = study.labelled_task(cell, int(cell.size))
    model = TfIdf(task, setting["strength"])
    return Learned(model, [item.text for item in task.train], model.costs)
