"""Measure one cell of a study: train, choose on validation, score on the held-out data."""

import time
from collections.abc import Sequence

import torch

from cli.errors import UserError
from compare.context import VALIDATION_BYTES, Cell, Study, text_bytes
from compare.method import Forgets, Learned, Setting, TaskModel, TextModel, Writer, is_base
from compare.methods import METHODS
from compare.methods.prompted import LanguageModel, PromptedModel
from compare.rows import read_rows

SAMPLES = 2  # held-out prompts that every method continues, for the report
PROMPT_CHARS = 60
EXPECTED_CHARS = 300  # of a document, with the prompt


def measure(study: Study, cell: Cell) -> dict:
    """The measurements of a cell, as a ledger row without its key and provenance.

    A search cell tries every setting and has no score on the test split; another cell uses the
    setting that its search cell chose. Raises UserError if that one's row is missing.
    """
    started = time.perf_counter()
    study.start_cell(cell)
    row = search_setting(study, cell) if cell.is_search else score_held_out(study, cell)
    return row | {"left_out": study.left_out, "wall_seconds": time.perf_counter() - started}


def search_setting(study: Study, cell: Cell) -> dict:
    """Try every setting of the method; validation chooses."""
    search: list[dict] = []
    best = -float("inf")
    for setting in METHODS[cell.method].settings(study.recipe, cell.axis, cell.factor):
        learned = learn(study, cell, setting)
        started = time.perf_counter()
        score, flops = validate(study, cell, learned)
        spent = {"seconds": time.perf_counter() - started, "flops": flops}
        for unit in spent:
            spent[unit] += learned.costs.get(f"training_{unit}", 0.0) - learned.reused_costs.get(unit, 0.0)
        search.append({"setting": setting, "validation": score, **spent})
        if score > best:
            best, row = score, {"setting": setting, **learned.costs}
            if learned.save and is_base(cell):
                learned.save()
    return row | {"search": search}


def chosen_setting(study: Study, cell: Cell) -> Setting:
    """The setting of a cell: the only one, or that of its search cell. Raises UserError if that is missing."""
    settings = METHODS[cell.method].settings(study.recipe, cell.axis, cell.factor)
    if len(settings) == 1:
        return settings[0]
    row = read_rows(study.folder).get(cell.search.name)
    if row is None:
        raise UserError(
            f"{study.folder}: {cell.search.name} is missing or damaged, but chooses the setting; run the study "
            "with --resume"
        )
    return row["setting"]


def score_held_out(study: Study, cell: Cell) -> dict:
    """Train with the chosen setting, then read the test split, once."""
    method, setting = METHODS[cell.method], chosen_setting(study, cell)
    learned = learn(study, cell, setting)
    model = learned.model
    if learned.save and is_base(cell):
        learned.save()
    row: dict = {"setting": setting, **learned.costs}
    if cell.axis == "text":
        assert isinstance(model, TextModel)
        row["document_bytes"] = [len(text.encode()) for text in study.test]
        row["document_bits"] = model.bits(study.test)
        if isinstance(model, LanguageModel):
            row["document_tokens"] = [len(ids) for ids in model.tokenizer.encode_batch(study.test)]
        row["groups"] = number_groups(study.test_groups)
    else:
        assert isinstance(model, TaskModel)
        row |= model.answers(study.task.test)
        row["items"] = [item.id for item in study.task.test]
        row["groups"] = number_groups([item.group or item.id for item in study.task.test])
        chooses = len(method.settings(study.recipe, cell.axis)) > 1 or method.is_trained
        task = study.labelled_task(cell, int(cell.size))
        row["labels"] = len(task.train) + chooses * len(task.validation)
    if isinstance(model, Forgets) and study.general_texts:
        row["general_bits"] = general_bits(study, cell, model)
        row["general_bytes"] = sum(len(text.encode()) for text in study.general_texts)
    if isinstance(model, LanguageModel | PromptedModel):
        row["inference_precision"] = str(next(model.model.parameters()).dtype).removeprefix("torch.")
    row["peak_bytes"] = study.memory.peak()
    row["overlap"] = study.held_out.overlap(learned.seen_texts)
    row["seen_bytes"] = text_bytes(learned.seen_texts)
    if isinstance(model, Writer) and cell.seed == study.recipe.seeds[0]:
        row["written"] = write_samples(study, cell, model)
    return row


def number_groups(names: Sequence[str]) -> list[int]:
    """The group of every held-out document or item, as a number."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def learn(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Train the cell's method."""
    torch.manual_seed(cell.seed)
    return METHODS[cell.method].learn(study, cell, setting)


def general_bits(study: Study, cell: Cell, model: Forgets) -> float:
    """Bits of all general texts; of an untuned foundation model they are measured once per process."""
    if METHODS[cell.method].family != "prompted":
        return sum(model.general_bits(study.general_texts))
    name = study.foundation_name(cell)
    if name not in study.untuned_general_bits:
        study.untuned_general_bits[name] = sum(model.general_bits(study.general_texts))
    return study.untuned_general_bits[name]


def validate(study: Study, cell: Cell, learned: Learned) -> tuple[float, float]:
    """The validation score (higher is better) and the FLOPs of measuring it.

    On "task" the share of items right, on "text" minus bits per byte, whose FLOPs are not counted.
    """
    if cell.axis == "task":
        assert isinstance(learned.model, TaskModel)
        answers = learned.model.answers(study.labelled_task(cell, int(cell.size)).validation)
        count = len(answers["correct"])
        return sum(answers["correct"]) / count, count * answers.get("flops_per_request", 0.0)
    assert isinstance(learned.model, TextModel)
    texts = study.validation_texts(VALIDATION_BYTES)
    return -sum(learned.model.bits(texts)) / sum(len(text.encode()) for text in texts), 0.0


def write_samples(study: Study, cell: Cell, model: Writer) -> list[dict]:
    """Samples of a method for the first held-out prompts: "prompt", "expected", "text"."""
    if cell.axis == "task":
        pairs = [(item.text, item.label) for item in study.task.test[:SAMPLES]]
    else:
        pairs = [(text[:PROMPT_CHARS], text[PROMPT_CHARS:EXPECTED_CHARS]) for text in study.test[:SAMPLES]]
    return [{"prompt": prompt, "expected": expected, "text": model.write(prompt)} for prompt, expected in pairs]
