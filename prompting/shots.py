"""Which labelled items to show in a prompt: the same few for all, or each input's neighbours."""

import random
from collections.abc import Callable, Sequence

from configs.cli import UserError
from data.tasks import Item, Task

Choose = Callable[[str], Sequence[Item]]


def no_shots(text: str) -> Sequence[Item]:
    """Zero-shot."""
    return ()


def fixed_shots(task: Task, count: int, seed: int) -> Choose:
    """The same `count` training items for every input, drawn at random.

    A draw that balances the labels would hide how common each is.
    """
    chosen = random.Random(seed).sample(task.train, min(count, len(task.train)))
    return lambda text: chosen


def neighbour_shots(task: Task, count: int) -> Choose:
    """The `count` training items most like the input by tf-idf of character n-grams, nearest last.

    Only training items can be retrieved.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise UserError("retrieval needs: pip install -e '.[compare]'") from None
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False
    )
    stored = vectorizer.fit_transform([item.text for item in task.train])

    def nearest(text: str) -> Sequence[Item]:
        similarity = (stored @ vectorizer.transform([text]).T).toarray()[:, 0]
        return [task.train[i] for i in similarity.argsort(kind="stable")[-count:]]

    return nearest
