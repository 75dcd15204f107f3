"""Run the calibration and the cells of a study: one after another, or on a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch

from cli.atomic import read_json, to_json, write_atomically
from cli.console import Steps, say, track
from cli.errors import UserError
from cli.workers import start_ray
from compare.calibrate import warn_if_busy
from compare.context import SEARCH_SEED, Cell
from compare.methods import METHODS
from compare.methods.train import MIN_STEPS, speed_key
from compare.plan import Provenance
from compare.rows import CALIBRATION, EDITION, read_rows
from configs.study_recipe import StudyRecipe

LEAST_STRETCH = 1.25  # of the smallest budget, by the least number of steps: above, a warning


class Worker:
    """A process that measures cells, and logs to log.txt; another one replaces it if it dies."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log.txt"
        self.process: subprocess.Popen | None = None

    def request(self, cell: Cell, result: Path, threads: int = 0) -> str:
        """Measure a cell, or with `threads` its speed, and write the row to `result`; returns why that failed, or "".

        Raises KeyboardInterrupt if it was interrupted.
        """
        if self.process is None:
            command = [sys.executable, "-m", "compare.worker", str(self.folder)]
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
        assert self.process.stdin
        assert self.process.stdout
        request = {"cell": cell, "result": str(result.resolve()), "threads": threads}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return answer.rstrip("\n")
        status = self.process.wait()
        self.process = None
        if status in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        return f"its process ended with status {status}"

    def close(self) -> None:
        """End the process."""
        if self.process:
            assert self.process.stdin
            self.process.stdin.close()
            self.process.wait()
            self.process = None


def calibrate(study: StudyRecipe, folder: Path, cells: list[Cell], threads: int = 0) -> None:
    """Measure the speed of every kind of training in `cells` that is not measured yet: calibration.json.

    What the ledger holds is used. `threads` is the number of threads of a cell; 0: torch's default.
    Raises UserError if a measurement fails.
    """
    path = folder / "calibration.json"
    found = read_json(path) or read_rows(folder).get(CALIBRATION)
    found = found if isinstance(found, dict) else {"threads": threads or torch.get_num_threads(), "speeds": {}}
    kinds: dict[str, Cell] = {}
    for cell in sorted((c for c in cells if METHODS[c.method].is_trained), key=lambda c: c.size):
        kinds[speed_key(study, cell)] = cell._replace(seed=study.seeds[0], factor=1.0)
    missing = {key: cell for key, cell in kinds.items() if key not in found["speeds"]}
    if missing:
        warn_if_busy()
    worker, result = Worker(folder), folder / "speed.json"
    try:
        for key, cell in track(missing.items(), "calibration", len(missing)) if missing else ():
            if failure := worker.request(cell, result, found["threads"]):
                raise UserError(f"the calibration of {key} failed: {failure} (more in {worker.log})")
            found["speeds"][key] = speed = json.loads(result.read_text(encoding="utf-8"))
            least = MIN_STEPS * speed["step_seconds"]
            if least > LEAST_STRETCH * study.budget_seconds * min([1.0, *study.budget_factors]):
                say(
                    f"WARNING: {key} needs {least:.0f} s for the {MIN_STEPS} steps that every training has, more than "
                    "the smallest budget: raise budget_seconds, or lower the batch size"
                )
            write_atomically(path, to_json(found, 2) + "\n")  # an interrupted calibration continues
    finally:
        worker.close()
        result.unlink(missing_ok=True)
    write_atomically(path, to_json(found, 2) + "\n")


def run_cell(worker: Worker, cell: Cell, provenance: Provenance) -> dict | str:
    """Measure a cell; returns its row with its provenance, which is saved in cells/ too, or why it failed."""
    path = worker.folder / "cells" / f"{cell.name}.json"
    result = path.with_suffix(".measured")
    if failure := worker.request(cell, result):
        return f"{cell.name} failed: {failure} (more in {worker.log}); the other cells continue"
    row = {"id": cell.name, **cell._asdict(), **provenance[cell], **json.loads(result.read_text())}
    write_atomically(path, to_json(row))
    result.unlink()
    return row


def run_sequentially(folder: Path, cells: dict[Cell, float], provenance: Provenance) -> Iterator[dict]:
    """Run the cells one after another in one process; yields their rows. `cells`: their estimated seconds."""
    worker = Worker(folder)
    try:
        with Steps(sum(cells.values())) as steps:
            for cell, seconds in cells.items():
                steps.start(cell.name)
                row = run_cell(worker, cell, provenance)
                yield from report_cell(steps, row, seconds)
    finally:
        worker.close()


def report_cell(steps: Steps, row: dict | str, seconds: float) -> Iterator[dict]:
    """Show that a cell, estimated to take `seconds`, has ended; yields its row, if it did not fail."""
    if isinstance(row, str):
        say(row)
    else:
        steps.finish(row["id"], row["wall_seconds"], seconds)
        yield row


def run_on_ray(folder: Path, cells: dict[Cell, float], provenance: Provenance) -> Iterator[dict]:
    """Run the cells on a Ray cluster, one per core or device at a time; yields their rows.

    All nodes need access to `folder`. Raises UserError if Ray is not installed.
    """
    ray = start_ray()
    devices = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    remote = ray.remote(_run_cell_on_one_core).options(**devices)
    with Steps(sum(cells.values())) as steps:
        # Base methods and the cells that choose settings run before the cells that depend on them.
        for _, stage in groupby(cells, lambda cell: (cell.axis, cell.seed == SEARCH_SEED)):
            waiting = {remote.remote(folder.resolve(), cell, provenance): cell for cell in stage}
            while waiting:
                (ready,), _ = ray.wait(list(waiting))
                yield from report_cell(steps, ray.get(ready), cells[waiting.pop(ready)])


def _run_cell_on_one_core(folder: Path, cell: Cell, provenance: Provenance) -> dict | str:
    # Ray counts cores but does not assign them; the process of the cell inherits these settings.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    worker = Worker(folder)
    try:
        return run_cell(worker, cell, provenance)
    finally:
        worker.close()


def write_ledger(folder: Path, cells: list[Cell], rows: dict[str, dict]) -> None:
    """Write ledger.jsonl atomically, one JSON object per line: the calibration, then the rows in order of the cells."""
    calibration = read_json(folder / "calibration.json")
    lines = [to_json({"id": CALIBRATION, "edition": EDITION, **calibration}) + "\n"]
    lines += [to_json(rows[cell.name]) + "\n" for cell in cells if cell.name in rows]
    write_atomically(folder / "ledger.jsonl", "".join(lines))
