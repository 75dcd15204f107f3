"""What an method must beat: compressors and n-grams on the text, word counts on the task."""

import lzma
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cli.errors import UserError
from compare.context import Cell, Study
from compare.method import Learned, Setting
from compare.ngram import NGram
from configs.study_recipe import StudyRecipe
from data.items import Task

ORDERS = (5, 4, 6, 3)
STRENGTHS = (10.0, 100.0, 1.0, 1000.0)


class Stream(Protocol):
    """A compressor that is fed piece by piece."""

    def compress(self, data: bytes) -> bytes:
        """What is ready to be written after more has been fed."""

    def flush(self) -> bytes:
        """The rest, at the end."""


def compressor_bits(stream: Stream, train: Sequence[str], test: Sequence[str]) -> list[float]:
    """Bits that each held-out text, alone, adds to the archive of the training texts."""
    for text in train:  # one by one: xz puts off what it is fed at once until its end
        stream.compress(f"{text}\n\n".encode())
    before, *after = [_rest(stream, text.encode()) for text in ("", *test)]
    return [8.0 * (size - before) for size in after]


def _rest(stream: Stream, data: bytes) -> int:
    # Bytes that are still to be written if `data` ends the archive: found out in a child process,
    # since no such library copies the state of a compressor.
    if sys.platform == "win32":
        raise UserError("the baselines xz and zstd need a system that can fork a process")
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
    """Xz -9e, as a bare stream: the usual container is padded to four bytes."""
    return lzma.LZMACompressor(lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)


def zstd() -> Stream:
    """Zstd -19, long-distance matching, a window of 128 MiB."""
    try:
        import zstandard
    except ImportError:
        raise UserError("the zstd baseline needs: pip install -e '.[compare]'") from None
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=settings).compressobj()


def learn_compressor(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Xz or zstd, by the method's name: it sees the training text, then one held-out text."""
    train = study.texts(cell.size, cell.method)
    stream = {"xz": xz, "zstd": zstd}[cell.method]
    return Learned(train, bits=lambda texts: compressor_bits(stream(), train, texts))


def ngram_orders(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """Orders that are tried."""
    return [{"order": order} for order in ORDERS[: recipe.tries]]


def learn_ngram(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Counts of bytes in the training text."""
    train, started = study.texts(cell.size, cell.method), time.perf_counter()
    model = NGram(train, setting["order"])
    stored = sum(array.nbytes for table in model.tables for array in table)
    costs = {"training_seconds": time.perf_counter() - started, "stored_bytes": stored}
    return Learned(train, bits=model.bits, general=model.bits, costs=costs)


def learn_majority(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The commonest label of the labelled items, whatever is asked."""
    task = study.labelled(int(cell.size), cell.method)
    common, count = Counter(item.label for item in task.train).most_common(1)[0]

    def answers(split: str) -> dict:
        items = getattr(task, split)
        share = count / len(task.train)
        return {"correct": [float(item.label == common) for item in items], "confidence": [share] * len(items)}

    return Learned([], answers=answers)


def strengths(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """Inverse regularisations that are tried."""
    return [{"strength": strength} for strength in STRENGTHS[: recipe.tries]]


def learn_tfidf(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Logistic regression on tf-idf of character 1- to 4-grams of the labelled items."""
    task = study.labelled(int(cell.size), cell.method)
    return tfidf_logistic(task, setting["strength"])


def tfidf_logistic(task: Task, strength: float) -> Learned:
    """As `learn_tfidf`, of a task."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    started = time.perf_counter()
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False)
    train = vectorizer.fit_transform([item.text for item in task.train])
    labels = [item.label for item in task.train]
    alone = len(set(labels)) == 1  # which scikit-learn does not take
    model = None if alone else LogisticRegression(C=strength, max_iter=1000).fit(train, labels)
    size = 0 if model is None else int(model.coef_.size)
    costs = {
        "training_seconds": time.perf_counter() - started,
        "trained_parameters": size,
        "stored_bytes": 8 * size + len("".join(vectorizer.vocabulary_).encode()),
    }

    def answers(split: str) -> dict:
        items, started = getattr(task, split), time.perf_counter()
        if model is None:
            chosen, sure = [labels[0]] * len(items), np.ones(len(items))
        else:  # one request at a time, as prompts are answered
            p = np.concatenate([model.predict_proba(vectorizer.transform([item.text])) for item in items])
            chosen, sure = model.classes_[p.argmax(1)], p.max(1)
        return {
            "correct": [float(a == i.label) for a, i in zip(chosen, items, strict=True)],
            "confidence": [float(x) for x in sure],
            "seconds_per_request": (time.perf_counter() - started) / len(items),
        }

    return Learned([item.text for item in task.train], answers=answers, costs=costs)
