"""Methods that prompt the foundation model without training: zero-shot, shots, or retrieved passages."""

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence

from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting
from data.items import Task
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


def prompted_method(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: ShotSelector,
    setting: Setting,
    seen_texts: Sequence[str],
    costs: dict[str, float] | None = None,
    context: Callable[[str], str] | None = None,
) -> Learned:
    """A method that answers by prompting `model`; `context` gives the text before each prompt."""

    def write(text: str) -> str:
        (prompt,), _ = build_prompts(model, tokenizer, task, shots, [text], context)
        return generate_answer(model, tokenizer, prompt, task.stop, MAX_NEW_TOKENS)

    return Learned(
        seen_texts,
        answers=lambda split: answer_task(model, tokenizer, task, shots, split, context=context, **setting),
        general_bits=lambda texts: document_bits(model, tokenizer, texts),
        write=write,
        costs=costs or {},
    )


def text_method(
    model: Transformer,
    tokenizer: Tokenizer,
    seen_texts: Sequence[str],
    costs: dict[str, float],
    prefix: Sequence[str] = (),
) -> Learned:
    """A method that scores and continues texts with `model`, after the documents of `prefix`."""
    return Learned(
        seen_texts,
        bits=lambda texts: document_bits(model, tokenizer, texts, prefix),
        general_bits=lambda texts: document_bits(model, tokenizer, texts),
        write=lambda text: generate_answer(model, tokenizer, "\n\n".join([*prefix, text]), "\n\n", MAX_NEW_TOKENS),
        costs=costs,
    )


def learn_shots(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The foundation model after zero, one or a few examples, by the method's name.

    On the task they are labelled items: the same for every input, sampled by the seed, or for
    neighbour-shots the nearest ones to each input, nearest last. Before a text they are documents.
    """
    model, tokenizer = study.load_foundation()
    model = prepare_inference(model)
    if cell.axis == "task":
        task = study.labelled_task(int(cell.size), cell.method)
        shots = fixed_shots(task, len(task.train), study.seed)
        if cell.method == "neighbour-shots":
            shots = neighbour_shots(task, study.recipe.shots)
        seen_texts = [item.text for item in task.train]
        stored = {"stored_bytes": text_bytes(seen_texts)}
        return prompted_method(model, tokenizer, task, shots, setting, seen_texts, stored)
    count = {"zero-shot": 0, "one-shot": 1, "few-shot": study.recipe.shots}[cell.method]
    texts = study.training_texts(1.0, cell.method) if count else []
    prefix = random.Random(study.seed).sample(texts, min(count, len(texts)))

    def token_lengths(texts: Sequence[str]) -> list[int]:
        return [1 + len(ids) for ids in tokenizer.encode_batch(texts)]  # with the separator before each

    longest = max(token_lengths([*study.test, *study.general_texts]))
    while prefix and sum(token_lengths(prefix)) + longest > model.config.context:
        prefix.pop()  # leave out documents that do not fit, as for shots that do not fit
    costs = {"stored_bytes": text_bytes(prefix), "shots_left_out": count - len(prefix)}
    return text_method(model, tokenizer, prefix, costs, prefix)


def learn_retrieval(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Passages of the training documents before every input, by hybrid search (embeddings and words)."""
    from prompting.store import Store

    model, tokenizer = study.load_foundation()
    task = study.labelled_task(0, cell.method)
    texts = study.training_texts(1.0, cell.method)
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

    learned = prompted_method(prepare_inference(model), tokenizer, task, zero_shot, setting, texts, costs, context)
    learned.reused_costs = {"seconds": seconds} if was_cached else {}
    return learned


def text_bytes(texts: Iterable[str]) -> float:
    """Size of the texts in UTF-8, in bytes."""
    return float(sum(len(text.encode()) for text in texts))
