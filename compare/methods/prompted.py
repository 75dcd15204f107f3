"""Arms that change only the input of the foundation: shown nothing, examples, or passages."""

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence

from compare.context import Cell, Study, inference
from compare.method import Learned, Setting
from configs.study_recipe import StudyRecipe
from data.items import Task
from model.likelihood import document_bits
from model.transformer import Transformer
from prompting.answers import answer_task, build_prompts
from prompting.likelihood import generate_answer
from prompting.shots import ShotSelector, fixed_shots, neighbour_shots, zero_shot
from tokenizer.bpe import Tokenizer

HOW: tuple[Setting, ...] = (
    {"calibrate": False, "per_token": False},
    {"calibrate": True, "per_token": False},
    {"calibrate": False, "per_token": True},
    {"calibrate": True, "per_token": True},
)
WRITTEN = 96  # tokens of what is shown side by side


def ways_to_rank(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """How labels are compared: what validation may choose from. Text leaves nothing to set."""
    return list(HOW[: recipe.tries]) if axis == "task" else [{}]


def asked(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: ShotSelector,
    setting: Setting,
    saw: Sequence[str],
    costs: dict[str, float] | None = None,
    context: Callable[[str], str] | None = None,
) -> Learned:
    """An method whose answers come from prompts to a model."""
    how = {key: setting.get(key, False) for key in ("calibrate", "per_token")}

    def prompts(texts: Sequence[str]) -> list[str]:
        return build_prompts(model, tokenizer, task, shots, texts, context)[0]

    return Learned(
        saw,
        answers=lambda split: answer_task(model, tokenizer, task, shots, split, context=context, **how),
        general=lambda texts: document_bits(model, tokenizer, texts),
        write=lambda prompt: generate_answer(model, tokenizer, prompt, task.stop, WRITTEN),
        prompts=prompts,
        costs=costs or {},
    )


def learn_zero_shot(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The foundation as it is."""
    return _few(study, cell, setting, 0)


def learn_few_shot(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The same items before every input, drawn once per seed; before a text, as many documents."""
    return _few(study, cell, setting, study.recipe.shots)


def learn_one_shot(study: Study, cell: Cell, setting: Setting) -> Learned:
    """One item before every input; one document before a text."""
    return _few(study, cell, setting, 1)


def learn_neighbours(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Each input's nearest of the labelled items, nearest last."""
    model, tokenizer = study.foundation()
    task = study.labelled(int(cell.size), cell.method)
    shots = neighbour_shots(task, study.recipe.shots)
    saw = [item.text for item in task.train]
    stored = {"stored_bytes": text_bytes(saw)}
    return asked(inference(model), tokenizer, task, shots, setting, saw, stored)


def learn_retrieval(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Passages of the training documents before every input, found by meaning and words."""
    from prompting.store import Store

    model, tokenizer = study.foundation()
    task = study.labelled(0, cell.method)
    texts = study.texts(1.0, cell.method)
    folder = study.folder / "store"

    def filled():
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        store = Store(folder, "wordllama", 300)
        store.update((str(number), text) for number, text in enumerate(texts))
        return store, time.perf_counter() - started

    (store, seconds), again = study.once(("store",), filled)
    costs = {
        "training_seconds": seconds,
        "stored_bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
    }

    def context(text: str) -> str:
        found = store.search(text, 2, "hybrid")
        return "".join(f"Passage: {passage.text}\n\n" for passage in reversed(found))

    learned = asked(inference(model), tokenizer, task, zero_shot, setting, texts, costs, context)
    learned.reused = {"seconds": seconds} if again else {}
    return learned


def text_bytes(texts: Iterable[str]) -> float:
    """What it takes to keep texts as they are."""
    return float(sum(len(text.encode()) for text in texts))


def lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, with the separator before it."""
    return [1 + len(ids) for ids in tokenizer.encode_batch(texts)]


def _few(study: Study, cell: Cell, setting: Setting, count: int) -> Learned:
    model, tokenizer = study.foundation()
    model = inference(model)
    if cell.axis == "task":
        task = study.labelled(count, cell.method)
        shots = fixed_shots(task, count, study.seed)
        saw = [item.text for item in task.train]
        stored = {"stored_bytes": text_bytes(saw)}
        return asked(model, tokenizer, task, shots, setting, saw, stored)
    texts = study.texts(1.0, cell.method) if count else []
    prefix = random.Random(study.seed).sample(texts, min(count, len(texts)))
    longest = max(lengths(tokenizer, [*study.test, *study.general]))
    while prefix and sum(lengths(tokenizer, prefix)) + longest > model.config.context:
        prefix.pop()  # as shots of a task that do not fit

    def bits(documents: Sequence[str]) -> list[float]:
        return document_bits(model, tokenizer, documents, prefix)

    costs = {"stored_bytes": text_bytes(prefix), "shots_left_out": count - len(prefix)}
    return Learned(
        prefix,
        bits=bits,
        costs=costs,
        general=lambda documents: document_bits(model, tokenizer, documents),
        write=lambda prompt: generate_answer(model, tokenizer, "\n\n".join([*prefix, prompt]), "\n\n", WRITTEN),
        prompts=list,
    )
