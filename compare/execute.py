"""Run the cells of a study: one after another, or on a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from cli.atomic import to_json, write_atomically
from cli.console import say
from cli.workers import start_ray
from compare.context import Cell
from compare.plan import Provenance


def run_cell(folder: Path, cell: Cell, provenance: Provenance) -> dict | None:
    """Run a cell in its own process; returns its row with its provenance, which is saved in cells/ too.

    None if the process fails; the study continues. Raises KeyboardInterrupt if it was interrupted.
    """
    path = folder / "cells" / f"{cell.name}.json"
    say(f"=== {cell.name}")
    result = path.with_suffix(".measured")
    command = [sys.executable, "-m", "compare.cells", *map(str, (folder, *cell, result))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # see exit_with_parent
        status = process.wait()
    if status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if status:
        say(f"=== {cell.name} failed with status {status} (see above); the other cells continue")
        return None
    key = {"id": cell.name, "arm": cell.method, "axis": cell.axis, "size": cell.size, "seed": cell.seed}
    row = {**key, **provenance[cell], **json.loads(result.read_text())}
    write_atomically(path, to_json(row))
    result.unlink()
    say(f"=== {cell.name}: {row['wall_seconds']:.0f} s")
    return row


def run_sequentially(folder: Path, cells: list[Cell], provenance: Provenance) -> Iterator[dict]:
    """Run the cells one after another; yields their rows."""
    for number, cell in enumerate(cells, 1):
        if row := run_cell(folder, cell, provenance):
            yield row
        say(f"{number} of {len(cells)} cells done")


def run_on_ray(folder: Path, cells: list[Cell], provenance: Provenance) -> Iterator[dict]:
    """Run the cells on a Ray cluster, one per core or device at a time; yields their rows.

    All nodes need access to `folder`. Raises UserError if Ray is not installed.
    """
    ray = start_ray()
    devices = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    remote = ray.remote(_run_cell_on_one_core).options(**devices)
    first = next(iter(provenance)).seed
    # Base methods and the seed that chooses the setting run before the cells that depend on them.
    for _, stage in groupby(cells, lambda cell: (cell.axis, cell.seed == first)):
        waiting = [remote.remote(folder.resolve(), cell, provenance) for cell in stage]
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            if row := ray.get(ready):
                yield row


def _run_cell_on_one_core(folder: Path, cell: Cell, provenance: Provenance) -> dict | None:
    # Ray counts cores but does not assign them; the process of the cell inherits these settings.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    return run_cell(folder, cell, provenance)


def write_ledger(folder: Path, cells: list[Cell], rows: dict[str, dict]) -> None:
    """Write ledger.jsonl atomically, one JSON object per line: the rows by id, in the order of the cells."""
    lines = [to_json(rows[cell.name]) + "\n" for cell in cells if cell.name in rows]
    write_atomically(folder / "ledger.jsonl", "".join(lines))
