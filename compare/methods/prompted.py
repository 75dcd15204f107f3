"""Methods that prompt the foundation model without training: zero-shot, shots, or retrieved passages."""

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence

from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting
from configs.study_recipe import StudyRecipe
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


def ranking_settings(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """How to rank labels by likelihood: the settings to try on the task; text has none."""
    return list(RANKINGS[: recipe.tries]) if axis == "task" else [{}]


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
    ranking = {key: setting.get(key, False) for key in ("calibrate", "per_token")}

    def prompts(texts: Sequence[str]) -> list[str]:
        return build_prompts(model, tokenizer, task, shots, texts, context)[0]

    return Learned(
        seen_texts,
        answers=lambda split: answer_task(model, tokenizer, task, shots, split, context=context, **ranking),
        general_bits=lambda texts: document_bits(model, tokenizer, texts),
        write=lambda prompt: generate_answer(model, tokenizer, prompt, task.stop, MAX_NEW_TOKENS),
        prompts=prompts,
        costs=costs or {},
    )


def learn_zero_shot(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The foundation model without shots."""
    return _learn_shots(study, cell, setting, 0)


def learn_few_shot(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The same few items before every input, sampled by the seed; before a text, as many documents."""
    return _learn_shots(study, cell, setting, study.recipe.shots)


def learn_one_shot(study: Study, cell: Cell, setting: Setting) -> Learned:
    """One item before every input; one document before a text."""
    return _learn_shots(study, cell, setting, 1)


def learn_neighbours(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The labelled items nearest to each input as shots, nearest last."""
    model, tokenizer = study.load_foundation()
    task = study.labelled_task(int(cell.size), cell.method)
    shots = neighbour_shots(task, study.recipe.shots)
    seen_texts = [item.text for item in task.train]
    stored = {"stored_bytes": text_bytes(seen_texts)}
    return prompted_method(prepare_inference(model), tokenizer, task, shots, setting, seen_texts, stored)


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
        store = Store(folder, "wordllama", 300)
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


def token_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text, including the separator before it."""
    return [1 + len(ids) for ids in tokenizer.encode_batch(texts)]


def _learn_shots(study: Study, cell: Cell, setting: Setting, count: int) -> Learned:
    model, tokenizer = study.load_foundation()
    model = prepare_inference(model)
    if cell.axis == "task":
        task = study.labelled_task(count, cell.method)
        shots = fixed_shots(task, count, study.seed)
        seen_texts = [item.text for item in task.train]
        stored = {"stored_bytes": text_bytes(seen_texts)}
        return prompted_method(model, tokenizer, task, shots, setting, seen_texts, stored)
    texts = study.training_texts(1.0, cell.method) if count else []
    prefix = random.Random(study.seed).sample(texts, min(count, len(texts)))
    longest = max(token_lengths(tokenizer, [*study.test, *study.general_texts]))
    while prefix and sum(token_lengths(tokenizer, prefix)) + longest > model.config.context:
        prefix.pop()  # leave out documents that do not fit, as for shots that do not fit

    def bits(documents: Sequence[str]) -> list[float]:
        return document_bits(model, tokenizer, documents, prefix)

    costs = {"stored_bytes": text_bytes(prefix), "shots_left_out": count - len(prefix)}
    return Learned(
        prefix,
        bits=bits,
        costs=costs,
        general_bits=lambda documents: document_bits(model, tokenizer, documents),
        write=lambda prompt: generate_answer(model, tokenizer, "\n\n".join([*prefix, prompt]), "\n\n", MAX_NEW_TOKENS),
        prompts=list,
    )
