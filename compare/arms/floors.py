"""What an arm must beat: compressors and n-grams on the text, word counts on the task."""

import lzma
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from compare.arm import Learned, Setting
from compare.ngram import NGram
from compare.study import Cell, Study
from configs.cli import UserError
from configs.study import StudyRecipe
from data.tasks import Task

ORDERS = (5, 4, 6, 3)
STRENGTHS = (10.0, 100.0, 1.0, 1000.0)


def compressor_bits(
    compress: Callable[[bytes], bytes], train: Sequence[str], test: Sequence[str]
) -> float:
    """Bits that the held-out texts add to the archive of the training texts."""
    seen = "\n\n".join(train).encode()
    both = seen + b"\n\n" + "\n\n".join(test).encode()
    return 8.0 * (len(compress(both)) - len(compress(seen)))


def xz(data: bytes) -> bytes:
    """Xz -9e."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def zstd(data: bytes) -> bytes:
    """Zstd -19, long-distance matching, a window of 128 MiB."""
    try:
        import zstandard
    except ImportError:
        raise UserError("the zstd floor needs: pip install -e '.[compare]'") from None
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=settings).compress(data)


def learn_compressor(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Xz or zstd, by the arm's name: it sees the training text, then the held-out text."""
    train = study.texts(cell.size, cell.arm)
    tool = {"xz": xz, "zstd": zstd}[cell.arm]
    return Learned(train, total_bits=lambda texts: compressor_bits(tool, train, texts))


def ngram_orders(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """Orders that are tried."""
    return [{"order": order} for order in ORDERS[: recipe.tries]]


def learn_ngram(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Counts of bytes in the training text."""
    train, started = study.texts(cell.size, cell.arm), time.perf_counter()
    model = NGram(train, setting["order"])
    stored = sum(array.nbytes for table in model.tables for array in table)
    costs = {"training_seconds": time.perf_counter() - started, "stored_bytes": stored}
    return Learned(train, bits=model.bits, general=model.bits, costs=costs)


def learn_majority(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The commonest label of the labelled items, whatever is asked."""
    task = study.labelled(int(cell.size), cell.arm)
    common, count = Counter(item.label for item in task.train).most_common(1)[0]

    def answers(split: str) -> dict:
        items = getattr(task, split)
        share = count / len(task.train)
        return {
            "correct": [float(item.label == common) for item in items],
            "confidence": [share] * len(items),
        }

    return Learned([], answers=answers)


def strengths(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """Inverse regularisations that are tried."""
    return [{"strength": strength} for strength in STRENGTHS[: recipe.tries]]


def learn_tfidf(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Logistic regression on tf-idf of character 1- to 4-grams of the labelled items."""
    task = study.labelled(int(cell.size), cell.arm)
    return tfidf_logistic(task, setting["strength"])


def tfidf_logistic(task: Task, strength: float) -> Learned:
    """As `learn_tfidf`, of a task."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    started = time.perf_counter()
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False
    )
    train = vectorizer.fit_transform([item.text for item in task.train])
    labels = [item.label for item in task.train]
    alone = len(set(labels)) == 1  # which scikit-learn does not take
    model = None if alone else LogisticRegression(C=strength, max_iter=1000).fit(train, labels)
    size = 0 if model is None else int(model.coef_.size)
    costs = {
        "training_seconds": time.perf_counter() - started,
        "trained_parameters": size,
        "stored_bytes": 8 * size,
    }

    def answers(split: str) -> dict:
        items, started = getattr(task, split), time.perf_counter()
        if model is None:
            chosen, sure = [labels[0]] * len(items), np.ones(len(items))
        else:  # one request at a time, as prompts are answered
            p = np.concatenate(
                [model.predict_proba(vectorizer.transform([item.text])) for item in items]
            )
            chosen, sure = model.classes_[p.argmax(1)], p.max(1)
        return {
            "correct": [float(a == i.label) for a, i in zip(chosen, items, strict=True)],
            "confidence": [float(x) for x in sure],
            "seconds_per_request": (time.perf_counter() - started) / len(items),
        }

    return Learned([item.text for item in task.train], answers=answers, costs=costs)
