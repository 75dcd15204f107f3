"""Select the shots (labelled items) of a prompt: zero-shot, fixed, chosen, or nearest neighbours."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from cli.errors import UserError, nearest
from data.items import Item, Task

ShotSelector = Callable[[str], Sequence[Item]]  # input text -> shots in prompt order


def zero_shot(text: str) -> Sequence[Item]:
    """A selector of no shots."""
    return ()


def fixed_shots(task: Task, count: int, seed: int) -> ShotSelector:
    """Few-shot: the same `count` random training items for every input.

    The draw does not balance labels, which would hide their frequencies.
    """
    chosen = random.Random(seed).sample(task.train, min(count, len(task.train)))
    return lambda text: chosen


def chosen_shots(task: Task, ids: Sequence[str]) -> ShotSelector:
    """The training items with these ids for every input, in this order.

    Raises UserError for an unknown id.
    """
    known = {item.id: item for item in task.train}
    for name in ids:
        if name not in known:
            hint = nearest(name, list(known))
            raise UserError(f'chosen: no training item has the id "{name}"{hint}')
    items = [known[name] for name in ids]
    return lambda text: items


def neighbour_shots(task: Task, count: int) -> ShotSelector:
    """The `count` training items nearest to the input by tf-idf of character n-grams, nearest last.

    Only training items are retrieved. Raises UserError without scikit-learn.
    """
    if not count:
        return zero_shot
    vectorizer, stored = fit_tfidf(task.train)

    def neighbours(text: str) -> Sequence[Item]:
        similarity = (stored @ vectorizer.transform([text]).T).toarray()[:, 0]
        return [task.train[i] for i in similarity.argsort(kind="stable")[-count:]]

    return neighbours


def fit_tfidf(items: Sequence[Item]) -> tuple[Any, Any]:
    """A fitted `TfidfVectorizer` of character 1- to 4-grams, and the sparse (N, n-grams) matrix of the items.

    Raises UserError without scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise UserError("retrieval needs: pip install -e '.[compare]'") from None
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False)
    return vectorizer, vectorizer.fit_transform([item.text for item in items])
