"""Measure one cell of a study, in a process of its own, so that its peak memory is measured alone.

    python -m compare.cells STUDY-DIR METHOD AXIS SIZE SEED RESULT

Reads STUDY-DIR/config.toml and writes a row to the file RESULT; `compare.run` calls it. The first
seed tries every setting of the method and the validation split chooses (hyperparameter search);
other seeds use the chosen setting. The test split is read once, after this choice.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from cli.atomic import to_json, write_atomically
from cli.errors import UserError, run_command
from compare.context import Cell, Study
from compare.method import Learned, Setting
from compare.methods import BASELINES, METHODS
from compare.plan import read_rows
from data.splits import read_shuffled
from train.metrics import peak_memory, reset_peak_memory

SAMPLES = 2  # held-out prompts that every method continues, for the report
PROMPT_CHARS = 60
EXPECTED_CHARS = 300  # of a document, with the prompt
VALIDATION_DOCUMENTS = 30


def measure(study: Study, cell: Cell) -> dict:
    """The measurements of a cell, as a ledger row without its key and provenance."""
    method = METHODS[cell.method]
    settings, search = method.settings(study.recipe, cell.axis), []
    if cell.seed != study.recipe.seeds[0]:
        first = cell._replace(seed=study.recipe.seeds[0])
        chosen = read_rows(study.folder).get(first.name)
        if chosen is None:
            raise UserError(
                f"{study.folder}: {first.name} is missing or damaged, but chooses the setting; run the "
                "study with --resume"
            )
        settings = [chosen["setting"]]
    device = torch.device("cpu") if cell.method in BASELINES else study.device
    best: tuple[float, Setting, Learned] | None = None
    for setting in settings:
        torch.manual_seed(study.seed)
        reset_peak_memory(device)
        learned = method.learn(study, cell, setting)
        learned.costs["peak_bytes"] = peak_memory(device)
        score = 0.0
        if len(settings) > 1:
            started = time.perf_counter()
            score, flops = validate(study, cell, learned)
            seconds = time.perf_counter() - started
            costs = {
                unit: learned.costs.get(f"training_{unit}", 0.0) - learned.reused_costs.get(unit, 0.0) + validating
                for unit, validating in (("seconds", seconds), ("flops", flops))
            }
            search.append({"setting": setting, "validation": score, **costs})
        if best is None or score > best[0]:
            best = score, setting, learned
            if learned.tried:
                kept = learned.tried.with_suffix("")
                shutil.rmtree(kept, ignore_errors=True)
                learned.tried.rename(kept)
    assert best is not None
    _, setting, learned = best
    row: dict = {"setting": setting, "search": search, **learned.costs}
    reset_peak_memory(device)
    if cell.axis == "text":
        row["document_bytes"] = [len(text.encode()) for text in study.test]
        assert learned.bits is not None
        row["document_bits"] = learned.bits(study.test)
    else:
        assert learned.answers is not None
        row |= learned.answers("test")
        row["items"] = [item.id for item in study.task.test]
        chooses = len(method.settings(study.recipe, cell.axis)) > 1 or "training_steps" in row
        task = study.labelled_task(int(cell.size), cell.method)
        row["labels"] = len(task.train) + chooses * len(task.validation)
    if learned.general_bits:
        row["general_bits"] = sum(learned.general_bits(study.general_texts))
        row["general_bytes"] = sum(len(text.encode()) for text in study.general_texts)
    row["peak_bytes"] = max(row["peak_bytes"], peak_memory(device))
    row["overlap"] = study.held_out.overlap(learned.seen_texts)
    if learned.write and cell.seed == study.recipe.seeds[0]:
        row["written"] = write_samples(study, cell, learned.write)
    return row


def validate(study: Study, cell: Cell, learned: Learned) -> tuple[float, float]:
    """The validation score (higher is better) and the FLOPs of measuring it.

    On "task" the share of items right, on "text" minus bits per byte, whose FLOPs are not counted.
    """
    if cell.axis == "task":
        assert learned.answers is not None
        answers = learned.answers("validation")
        count = len(answers["correct"])
        return sum(answers["correct"]) / count, count * answers.get("flops_per_request", 0.0)
    texts = [row["text"] for row in islice(read_shuffled(study.documents, "validation"), VALIDATION_DOCUMENTS)]
    assert learned.bits is not None
    return -sum(learned.bits(texts)) / sum(len(text.encode()) for text in texts), 0.0


def write_samples(study: Study, cell: Cell, write: Callable[[str], str]) -> list[dict]:
    """Samples of a method for the first held-out prompts: "prompt", "expected", "text"."""
    if cell.axis == "task":
        pairs = [(item.text, item.label) for item in study.task.test[:SAMPLES]]
    else:
        pairs = [(text[:PROMPT_CHARS], text[PROMPT_CHARS:EXPECTED_CHARS]) for text in study.test[:SAMPLES]]
    return [{"prompt": prompt, "expected": expected, "text": write(prompt)} for prompt, expected in pairs]


def exit_with_parent() -> None:
    """Exit this process when the parent exits, even by SIGKILL: then standard input is closed.

    Otherwise the cell of a killed study would still write to the folder that --resume uses.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Entry point of `python -m compare.cells`."""
    if len(sys.argv) != 7 or sys.argv[2] not in METHODS:
        raise UserError(f"usage: python -m compare.cells STUDY-DIR {{{','.join(METHODS)}}} AXIS SIZE SEED RESULT")
    folder, method, axis, size, seed, result = sys.argv[1:]
    cell = Cell(method, axis, float(size), int(seed))
    started = time.perf_counter()
    if not sys.stdin.isatty():
        exit_with_parent()
    study = Study(Path(folder), cell.seed)
    row = measure(study, cell)
    load = None
    if sys.platform != "win32":
        load = os.getloadavg()[0]
    row |= {
        "left_out": study.left_out,
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "load_average": load,
    }
    write_atomically(Path(result), to_json(row))


if __name__ == "__main__":
    run_command(main)
