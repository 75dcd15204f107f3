"""Run a study: every method on the same held-out data, with the same budget, for each size and seed.

    python -m compare.run STUDY.toml [--run-dir DIR] [--resume | --overwrite] [--dry-run]
        [--methods scratch lora …] [--quick] [--ray]

First prints the plan and an estimate of the time. A cell is one method at one size with one seed.
Cells run one after another, each in its own process, since parallel cells would distort the measured
seconds. --resume keeps cells that were measured with the same settings and data, so sizes, seeds,
methods and prices may change; for a finished study it only draws the report. Writes to the run
directory:

    ledger.jsonl     one row per cell: all measurements, per document and item
    cells/           the same rows, one file each
    report.html      curves, costs and verdict in one file, for any browser
    table.md         the table for a README; verdict.md, plots/

`--quick` uses the largest sizes, the first seed and a fifth of the budget. `--ray` runs cells on a Ray
cluster, each on its own core or device (pip install -e '.[cluster]').
"""

import hashlib
import json
import os
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from cli.atomic import read_json, to_json, write_atomically
from cli.console import say, show
from cli.errors import UserError, nearest, run_command
from cli.recipes import Parser, parse
from compare.context import Cell, load_study_task
from compare.method import sizes_of
from compare.methods import METHODS
from compare.report import write_report
from configs.study_recipe import StudyRecipe
from data.prepare import load_manifest, prepare
from model.load import model_version
from train.run_directory import (
    check_run,
    load_saved_recipe,
    lock_run,
    new_run_folder,
    pin_recipe,
    run_directory_arguments,
    write_config,
)

AXES = ("text", "task")
OVERHEAD_SECONDS = 25.0  # estimate for a cell beside training, before any is measured
FLOPS_PER_SECOND = 2e11  # estimate for a budget in FLOPs, before any cell is measured
SHARED_SETTINGS = ("task", "tries", "budget_seconds", "budget_flops", "shots", "test_documents", "seq_len")
Provenance = dict[Cell, dict]
"""The keys that a row has besides its measurements."""


def plan(study: StudyRecipe, methods: list[str] | None = None) -> list[Cell]:
    """The cells in their running order: by axis, seed and method; base methods run first.

    `methods` restricts the study to some methods and their base methods. Raises UserError for an
    unknown method.
    """
    for name in (*(methods or ()), *study.text_methods, *study.task_methods):
        if name not in METHODS:
            raise UserError(f'no method "{name}"{nearest(name, list(METHODS))}')
    found: list[Cell] = []
    for axis in AXES if study.task.name else AXES[:1]:
        listed = (study.text_methods if axis == "text" else study.task_methods) or list(METHODS)
        for name, method in METHODS.items():
            if name not in listed or (methods and name not in methods):
                continue
            for size in sizes_of(method, axis, study):
                seeds = study.seeds if method.is_seeded else study.seeds[:1]
                found += [Cell(name, axis, size, seed) for seed in seeds]
    needed = {(METHODS[c.method].base_method, c.seed) for c in found if METHODS[c.method].base_method}
    for name, seed in sorted(needed):
        base = Cell(name, "text", 1.0, study.seeds[0])
        for cell in {base, base._replace(seed=seed)} - set(found):
            found.insert(0, cell)
    order = {name: at for at, name in enumerate(METHODS)}
    return sorted(found, key=lambda c: (AXES.index(c.axis), study.seeds.index(c.seed), order[c.method], c.size))


def estimate_seconds(study: StudyRecipe, cell: Cell, rows: Sequence[dict] = ()) -> float:
    """Estimated seconds of a cell: from the rows of its method on the axis, or from the budget."""
    settings = METHODS[cell.method].settings(study, cell.axis)
    tries = len(settings) if cell.seed == study.seeds[0] else 1
    known = [
        row["wall_seconds"] / max(1, len(row["search"]))
        for row in rows
        if (row["arm"], row["axis"]) == (cell.method, cell.axis)
    ]
    if known:
        return statistics.mean(known) * tries
    budget = study.budget_flops / FLOPS_PER_SECOND or study.budget_seconds
    return (OVERHEAD_SECONDS + budget * ("rate" in settings[0])) * tries


def hash_cells(study: StudyRecipe, cells: Sequence[Cell]) -> dict[Cell, str]:
    """A hash of everything that determines a cell's numbers: settings, documents, items, foundation.

    Prices and the other cells of the study are not included, so that they may change.
    """
    task = load_study_task(study)
    items = [(part, [(i.text, i.label) for i in getattr(task, part)]) for part in ("train", "validation", "test")]
    general = study.data.model_copy(update={"corpus": study.general, "group_field": ""})
    model = Path(study.foundation)
    files = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted((model, *model.rglob("*")))
        if path.is_file()
    ]
    texts = [load_manifest(prepare(data))["fingerprint"] for data in (study.data, general)]
    data = [texts, items, model_version(study.foundation), files]

    def digest(cell: Cell) -> str:
        method = METHODS[cell.method]
        settings = study.model_dump(mode="json", include={*SHARED_SETTINGS, *method.recipe_tables})
        for axis in set(AXES) - {cell.axis, "text" if method.base_method else cell.axis}:
            for table in method.recipe_tables:  # training settings of the other axis do not matter
                settings[table].pop(axis, None)
                settings[table].pop(f"{axis}_rates", None)
        hashed = [cell, study.seeds[0], settings, data]
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()

    return {cell: digest(cell) for cell in cells}


def collect_provenance(study: StudyRecipe, cells: Sequence[Cell]) -> Provenance:
    """The provenance of each cell: corpus, task, commit, device, versions, command, config_hash."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True
    )
    shared = {
        "corpus": study.data.corpus,
        "task": study.task.name,
        "commit": commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {_cpu()}",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy")}
        | {"python": platform.python_version(), "foundation": model_version(study.foundation)},
        "command": shlex.join(["python", "-m", "compare.run", *sys.argv[1:]]),
    }
    return {cell: shared | {"config_hash": digest} for cell, digest in hash_cells(study, cells).items()}


def read_measured(folder: Path, cell: Cell, provenance: Provenance) -> dict | None:
    """The row of a cell if it was measured with the same settings and data, else None."""
    row = read_json(folder / "cells" / f"{cell.name}.json")
    if not isinstance(row, dict) or row.get("id") != cell.name:  # missing or damaged
        return None
    return row if row.get("config_hash") == provenance[cell]["config_hash"] else None


def run_cell(folder: Path, cell: Cell, provenance: Provenance) -> dict | None:
    """The row of a cell; runs it in its own process and adds its provenance if there is no valid row.

    None if the process fails; the study continues. Raises KeyboardInterrupt if it was interrupted.
    """
    if row := read_measured(folder, cell, provenance):
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


def prepare_folder(folder: Path, study: StudyRecipe, provenance: Provenance, resume: bool, overwrite: bool) -> None:
    """Create a study's folder, or check before anything runs that `resume` may use it.

    Raises UserError if it may not, or if cells in it were measured with other settings or data.
    """
    if resume and (folder / "config.toml").exists():
        stale = [
            cell.name
            for cell in provenance
            if read_json(folder / "cells" / f"{cell.name}.json") and not read_measured(folder, cell, provenance)
        ]
        if stale:
            raise UserError(
                f"{folder}: {len(stale)} cells were measured with other settings or data "
                f"({', '.join(stale[:3])}…); delete their files in {folder}/cells to measure them "
                "again, or start over with --overwrite"
            )
        return
    check_run(folder, study, resume, overwrite)
    with new_run_folder(folder, overwrite) as new_folder:
        (new_folder / "cells").mkdir()
        write_config(new_folder, study)


def shrink(study: StudyRecipe) -> StudyRecipe:
    """The study of `--quick`: a fifth of the budget, the largest sizes, the first seed."""
    return study.model_copy(
        update={
            "budget_seconds": study.budget_seconds / 5,
            "budget_flops": study.budget_flops / 5,
            "shares": [max(study.shares)],
            "labels": [max(study.labels)],
            "seeds": study.seeds[:1],
        }
    )


def print_plan(study: StudyRecipe, cells: list[Cell], folder: Path, provenance: Provenance) -> None:
    """Print the sizes and seeds of every method, and the estimated time."""
    task = load_study_task(study)
    found = {cell: read_measured(folder, cell, provenance) for cell in cells}
    left, rows = [c for c in cells if not found[c]], [row for row in found.values() if row]
    minutes = sum(estimate_seconds(study, cell, rows) for cell in left) / 60
    show(
        f"{len(cells)} cells, {len(left)} to run in {folder}, {len(task.test)} test items; about {minutes:.0f} minutes"
    )
    for axis in AXES:
        for name in METHODS:
            sizes = sorted({c.size for c in cells if (c.method, c.axis) == (name, axis)})
            seeds = len({c.seed for c in cells if (c.method, c.axis) == (name, axis)})
            if sizes:
                shown = " ".join(f"{size:g}" for size in sizes)
                tried = len(METHODS[name].settings(study, axis))
                show(f"  {axis} {name:20} sizes {shown:18} {seeds} seeds, {tried} settings tried")


def main() -> int:
    """Entry point of `python -m compare.run`."""
    parser: Parser = run_directory_arguments()
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--methods", nargs="+", help="only these methods")
    parser.add_argument("--quick", action="store_true", help="the largest sizes, one seed, a fifth of the budget")
    parser.add_argument("--ray", action="store_true", help="run cells on a Ray cluster")
    study, own = parse(StudyRecipe, parser)
    if own.quick:
        study = shrink(study)
    folder = own.run_dir or Path("runs") / f"study-{Path(own.config).stem}"
    study = pin_recipe(study, load_saved_recipe(folder, StudyRecipe, not own.overwrite))
    cells, all_cells = plan(study, own.methods), plan(study)
    provenance = collect_provenance(study, [*cells, *all_cells])
    print_plan(study, cells, folder, provenance)
    if own.dry_run:
        return 0
    done = not own.overwrite and all(read_measured(folder, cell, provenance) for cell in cells)
    if done:
        say(f"{folder}: all cells have been measured; only the report is drawn again")
    prepare_folder(folder, study, provenance, own.resume or done, own.overwrite)
    with lock_run(folder):
        write_config(folder, study)
        rows = {cell.name: row for cell in all_cells if (row := read_measured(folder, cell, provenance))}
        write_ledger(folder, [rows[c.name] for c in all_cells if c.name in rows])
        measure = run_on_ray if own.ray and not done else run_sequentially
        try:
            for row in measure(folder, [] if done else cells, provenance):
                rows[row["id"]] = row
                write_ledger(folder, [rows[c.name] for c in all_cells if c.name in rows])
        except KeyboardInterrupt:
            say(f"interrupted; {len(rows)} cells are kept, continue with --resume")
            return 130
    failed = [cell.name for cell in cells if cell.name not in rows]
    if rows:
        write_report(folder)
    if failed:
        raise UserError(f"{', '.join(failed)} failed (see above); run them again with --resume")
    show(f"Written to {folder}/:")
    for path in sorted(p for p in folder.iterdir()):
        show(f"  {path}{'/' if path.is_dir() else ''}")
    return 0


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    run_command(main)
