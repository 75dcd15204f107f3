"""Methods that prompt the foundation model without training: zero-shot, shots, or retrieved passages."""

import random
import shutil
import time
from collections.abc import Callable, Sequence

from compare.context import Cell, Study, prepare_inference, text_bytes
from compare.method import Learned, Setting
from data.items import Item, Task
from model.likelihood import document_bits
from model.transformer import Transformer
from prompting.answers import answer_task, build_prompts
from prompting.likelihood import generate_answer
from prompting.shots import ShotSelector, fixed_shots, neighbour_shots, zero_shot
from tokenizer.bpe import Tokenizer

RANKINGS: tuple[Setting, ...] = (
    {"calibrate": False, "per_token": False},
    {"calibrate": True, "per_token": False},
    {"calibrate": False, "per_token": True},
    {"calibrate": True, "per_token": True},
)
MAX_NEW_TOKENS = 96  # of a sample in the report


class LanguageModel:
    """A model that predicts and continues text, after the documents of `prefix`."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, prefix: Sequence[str] = ()):
        self.model, self.tokenizer, self.prefix = model, tokenizer, prefix

    def bits(self, texts: Sequence[str]) -> list[float]:
        """See `TextModel`."""
        return document_bits(self.model, self.tokenizer, texts, self.prefix)

    def write(self, text: str) -> str:
        """See `Writer`."""
        prompt = "\n\n".join([*self.prefix, text])
        return generate_answer(self.model, self.tokenizer, prompt, "\n\n", MAX_NEW_TOKENS)


class FoundationText(LanguageModel):
    """The same of a foundation model, tuned or not."""

    def general_bits(self, texts: Sequence[str]) -> list[float]:
        """See `Forgets`; without the prefix."""
        return document_bits(self.model, self.tokenizer, texts)


class PromptedModel:
    """A model that answers items after a prompt; `context` gives the text before each one."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        task: Task,
        shots: ShotSelector,
        setting: Setting,
        context: Callable[[str], str] | None = None,
    ):
        self.model, self.tokenizer, self.task, self.shots = model, tokenizer, task, shots
        self.setting, self.context = setting, context

    def answers(self, items: Sequence[Item]) -> dict:
        """See `TaskModel`."""
        return answer_task(
            self.model, self.tokenizer, self.task, self.shots, items, context=self.context, **self.setting
        )

    def write(self, text: str) -> str:
        """See `Writer`."""
        (prompt,), _ = build_prompts(self.model, self.tokenizer, self.task, self.shots, [text], self.context)
        return generate_answer(self.model, self.tokenizer, prompt, self.task.stop, MAX_NEW_TOKENS)


class PromptedFoundation(PromptedModel):
    """The same of a foundation model, tuned or not."""

    def general_bits(self, texts: Sequence[str]) -> list[float]:
        """See `Forgets`."""
        return document_bits(self.model, self.tokenizer, texts)


def learn_shots(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The foundation model after zero, one or a few examples, by the method's name.

    On the task they are labelled items: the same for every input, sampled by the seed, or for
    neighbour-shots the nearest ones to each input, nearest last. Before a text they are documents.
    """
    model, tokenizer = study.load_foundation(cell)
    model = prepare_inference(model)
    if cell.axis == "task":
        task = study.labelled_task(cell, int(cell.size))
        shots = fixed_shots(task, len(task.train), cell.seed)
        if cell.method == "neighbour-shots":
            shots = neighbour_shots(task, study.recipe.shots)
        seen_texts = [item.text for item in task.train]
        prompted = PromptedFoundation(model, tokenizer, task, shots, setting)
        return Learned(prompted, seen_texts, {"stored_bytes": text_bytes(seen_texts)})
    count = {"zero-shot": 0, "one-shot": 1, "few-shot": study.recipe.shots}[cell.method]
    texts = study.training_texts(cell, 1.0) if count else []
    prefix = random.Random(cell.seed).sample(texts, min(count, len(texts)))
    context = model.config.context
    longest = max(token_lengths(tokenizer, [*study.test, *study.general_texts]))
    prefix = fit_documents(tokenizer, prefix, max(context - longest, context // 2))
    costs = {"stored_bytes": text_bytes(prefix), "shots_left_out": count - len(prefix)}
    return Learned(FoundationText(model, tokenizer, prefix), prefix, costs)


def token_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, with the separator before it."""
    return [1 + len(ids) for ids in tokenizer.encode_batch(texts)]


def fit_documents(tokenizer: Tokenizer, documents: list[str], room: int) -> list[str]:
    """The first of the documents that fit into `room` tokens; if not even one does, its start."""
    while len(documents) > 1 and sum(token_lengths(tokenizer, documents)) > room:
        documents = documents[:-1]
    while documents and sum(token_lengths(tokenizer, documents)) > room:
        documents = [documents[0][: len(documents[0]) * 9 // 10]]
    return documents


def learn_retrieval(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Passages of the training documents before every input, by hybrid search (embeddings and words)."""
    from prompting.store import Store

    model, tokenizer = study.load_foundation(cell)
    task = study.labelled_task(cell, 0)
    texts = study.training_texts(cell, 1.0)
    folder = study.folder / "store"

    def fill_store() -> tuple[Store, float]:
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        store = Store(folder, 300)
        store.update((str(number), text) for number, text in enumerate(texts))
        return store, time.perf_counter() - started

    (store, seconds), was_cached = study.make_once(("store",), fill_store)
    costs = {
        "training_seconds": seconds,
        "stored_bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
    }

    def context(text: str) -> str:
        found = store.search(text, 2, "hybrid")
        return "".join(f"Passage: {passage.text}\n\n" for passage in reversed(found))

    prompted = PromptedFoundation(prepare_inference(model), tokenizer, task, zero_shot, setting, context)
    return Learned(prompted, texts, costs, {"seconds": seconds} if was_cached else {})
