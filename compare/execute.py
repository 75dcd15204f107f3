"""Run the cells of a study: one after another, or on a Ray cluster."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cli.atomic import to_json, write_atomically
from cli.console import say
from cli.errors import UserError
from compare.context import Cell
from compare.plan import AXES, Provenance, read_measured, read_rows


def run_cell(folder: Path, cell: Cell, provenance: Provenance) -> dict | None:
    """The row of a cell; runs it in its own process and adds its provenance if there is no valid row.

    None if the process fails; the study continues. Raises KeyboardInterrupt if it was interrupted.
    """
    if row := read_measured(read_rows(folder), cell, provenance):
        return row
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
    row = {"id": cell.name, **cell.as_row(), **provenance[cell], **json.loads(result.read_text())}
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
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs: pip install -e '.[cluster]'") from None
    ray.init(log_to_driver=False)
    devices = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    remote = ray.remote(_pinned).options(**devices)
    first = cells[0].seed if cells else 0
    # Base methods and the seed that chooses the setting run before the cells that depend on them.
    stages = [
        [c for c in cells if c.axis == axis and (c.seed == first) == chooses]
        for axis in AXES
        for chooses in (True, False)
    ]
    for stage in stages:
        waiting = [remote.remote(folder.resolve(), cell, provenance) for cell in stage]
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            if row := ray.get(ready):
                yield row


def _pinned(folder: Path, cell: Cell, provenance: Provenance) -> dict | None:
    # Ray counts cores but does not assign them: take the first core that no other cell uses.
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.platform != "linux":
        return run_cell(folder, cell, provenance)
    cores = os.sched_getaffinity(0)
    for core in sorted(cores):
        # An abstract socket as a lock: the kernel frees it on exit, and no symlink can replace it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
            try:
                taken.bind(f"\0homegrown-core-{core}")
                os.sched_setaffinity(0, {core})
            except OSError:  # in use, or not permitted
                continue
            try:
                return run_cell(folder, cell, provenance)
            finally:
                os.sched_setaffinity(0, cores)  # Ray reuses the worker
    return run_cell(folder, cell, provenance)


def write_ledger(folder: Path, rows: list[dict]) -> None:
    """Write ledger.jsonl atomically, one JSON object per line."""
    write_atomically(folder / "ledger.jsonl", "".join(to_json(row) + "\n" for row in rows))
