"""Which labelled items to show in a prompt: the same few for all, or each input's neighbours."""

import random
from collections.abc import Callable, Sequence

from cli.errors import UserError, nearest
from data.items import Item, Task

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


def chosen_shots(task: Task, ids: Sequence[str]) -> Choose:
    """The training items of these ids for every input, in this order.

    Raises UserError for an id that no training item has.
    """
    known = {item.id: item for item in task.train}
    for name in ids:
        if name not in known:
            hint = nearest(name, list(known))
            raise UserError(f'chosen: no training item has the id "{name}"{hint}')
    items = [known[name] for name in ids]
    return lambda text: items


def neighbour_shots(task: Task, count: int) -> Choose:
    """The `count` training items most like the input by tf-idf of character n-grams, nearest last.

    Only training items can be retrieved. Raises UserError without scikit-learn.
    """
    if not count:
        return no_shots
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise UserError("retrieval needs: pip install -e '.[compare]'") from None
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, lowercase=False)
    stored = vectorizer.fit_transform([item.text for item in task.train])

    def neighbours(text: str) -> Sequence[Item]:
        similarity = (stored @ vectorizer.transform([text]).T).toarray()[:, 0]
        return [task.train[i] for i in similarity.argsort(kind="stable")[-count:]]

    return neighbours
