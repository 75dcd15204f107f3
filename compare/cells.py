"""Measures one cell of a study, in a process of its own, so that its peak memory is its own.

    python -m compare.cells STUDY-DIR ARM AXIS SIZE SEED RESULT

reads STUDY-DIR/config.toml and writes what it measured to the file RESULT; `compare.run` calls it.
On the first seed every setting of the method is tried and validation chooses; other seeds take what
was chosen. The test split is read once, with the choice made.
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch

from cli.atomic import read_json, to_json, write_atomically
from cli.errors import UserError, run_command
from compare.context import Cell, Study
from compare.method import Learned, Setting
from compare.methods import BASELINES, METHODS
from data.prepare import read_shuffled
from train.metrics import peak_memory, reset_peak_memory

SHOWN = 2  # held-out prompts that every method continues, side by side in the report
SHOWN_CHARS = 60
VALIDATED = 30  # documents that choose between settings


def measure(study: Study, cell: Cell) -> dict:
    """The row of a cell, without what tells where it comes from."""
    method = METHODS[cell.method]
    settings, search = method.settings(study.recipe, cell.axis), []
    if cell.seed != study.recipe.seeds[0]:
        first = study.folder / "cells" / f"{cell._replace(seed=study.recipe.seeds[0]).name}.json"
        if not first.exists():
            raise UserError(f"{first.name} is missing: its first seed chooses an method's setting")
        chosen = read_json(first)
        if chosen is None:
            raise UserError(f"{first}: is damaged; delete it and run the study with --resume")
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
            score, flops = validation(study, cell, learned)
            seconds = time.perf_counter() - started
            took = {
                unit: learned.costs.get(f"training_{unit}", 0.0) - learned.reused.get(unit, 0.0) + asking
                for unit, asking in (("seconds", seconds), ("flops", flops))
            }
            search.append({"setting": setting, "validation": score, **took})
        if best is None or score > best[0]:
            best = score, setting, learned
            if learned.keep:
                learned.keep()
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
        given = study.labelled(int(cell.size), cell.method)
        row["labels"] = len(given.train) + chooses * len(given.validation)
    if learned.general:
        row["general_bits"] = sum(learned.general(study.general))
        row["general_bytes"] = sum(len(text.encode()) for text in study.general)
    row["peak_bytes"] = max(row["peak_bytes"], peak_memory(device))
    row["overlap"] = study.held_out.overlap(learned.saw)
    if learned.write and learned.prompts and cell.seed == study.recipe.seeds[0]:
        row["written"] = written(study, cell, learned)
    return row


def validation(study: Study, cell: Cell, learned: Learned) -> tuple[float, float]:
    """What chooses between settings, more is better: items right, or minus bits per byte; FLOPs.

    Those of bits are not counted.
    """
    if cell.axis == "task":
        assert learned.answers is not None
        found = learned.answers("validation")
        count = len(found["correct"])
        return sum(found["correct"]) / count, count * found.get("flops_per_request", 0.0)
    texts = [row["text"] for row in read_shuffled(study.documents, "validation")][:VALIDATED]
    assert learned.bits is not None
    return -sum(learned.bits(texts)) / sum(len(text.encode()) for text in texts), 0.0


def written(study: Study, cell: Cell, learned: Learned) -> list[dict]:
    """What an method writes after the first held-out prompts."""
    assert learned.write is not None
    assert learned.prompts is not None
    if cell.axis == "task":
        items = study.task.test[:SHOWN]
        prompts = learned.prompts([item.text for item in items])
        return [
            {"prompt": item.text, "expected": item.label, "text": learned.write(prompt)}
            for item, prompt in zip(items, prompts, strict=True)
        ]
    return [
        {
            "prompt": text[:SHOWN_CHARS],
            "expected": text[SHOWN_CHARS:300],
            "text": learned.write(learned.prompts([text[:SHOWN_CHARS]])[0]),
        }
        for text in study.test[:SHOWN]
    ]


def end_with_parent() -> None:
    """End this process when the one that holds its standard input ends, however that happened.

    A cell that outlives a killed study would still train in the folder that --resume goes on in.
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
        end_with_parent()
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
