"""Prompts of `Field: value` lines, which small foundation models follow best, and their shots (labelled items)."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from cli.errors import UserError, nearest
from data.items import Item, Task
from tokenizer.bpe import Tokenizer

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


def few_shot(task: Task, text: str, shots: Sequence[Item]) -> str:
    """The instruction, the labelled `shots` in order, and `text` without its label."""
    examples = (f"{task.prompt(s.text)}{task.completion(s.label)}\n" for s in shots)
    return task.opening + "".join(examples) + task.prompt(text)


def fit_prompt(task: Task, text: str, shots: Sequence[Item], tokenizer: Tokenizer, max_tokens: int) -> tuple[str, int]:
    """A prompt of at most `max_tokens` tokens with the separator, and the number of shots left out.

    The first shots are left out first, because the nearest ones come last. Raises UserError if the
    input does not fit without shots.
    """
    for start in range(len(shots) + 1):
        prompt = few_shot(task, text, shots[start:])
        if 1 + len(tokenizer.encode(prompt)) <= max_tokens:
            return prompt, start
    raise UserError(
        f"an input of {1 + len(tokenizer.encode(prompt))} tokens does not fit the {max_tokens} tokens "
        "of the context, even without shots; lower task.max_chars"
    )
