"""What an arm must beat: compressors on the text, a word-count classifier on the task."""

import lzma
import time
from collections import Counter
from collections.abc import Callable, Sequence

from configs.cli import UserError
from data.tasks import Task

FLOORS = ("compressors", "majority-class", "tfidf-logistic")


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


def majority(task: Task) -> dict:
    """Always the commonest training label."""
    commonest = Counter(item.label for item in task.train).most_common(1)[0][0]
    return {"correct": [int(item.label == commonest) for item in task.test]}


def tfidf_logistic(task: Task) -> dict:
    """Logistic regression on tf-idf of character 1- to 4-grams; C is chosen on validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def fit(strength: float):
        model = LogisticRegression(C=strength, max_iter=1000)
        return model.fit(train, [item.label for item in task.train])

    started = time.perf_counter()
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False
    )
    train = vectorizer.fit_transform([item.text for item in task.train])
    validation = vectorizer.transform([item.text for item in task.validation])
    answers = [item.label for item in task.validation]
    best = max((fit(c) for c in (1.0, 10.0, 100.0)), key=lambda m: m.score(validation, answers))
    trained = time.perf_counter() - started
    started = time.perf_counter()
    predicted = best.predict(vectorizer.transform([item.text for item in task.test]))
    pairs = zip(predicted, task.test, strict=True)
    return {
        "correct": [int(label == item.label) for label, item in pairs],
        "trained_parameters": int(best.coef_.size),
        "training_seconds": trained,
        "seconds_per_request": (time.perf_counter() - started) / len(task.test),
    }
