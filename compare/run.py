"""Run a study: every method on the same held-out text and items, with the same budget, per size, seed.

    python -m compare.run STUDY.toml [--run-dir DIR] [--resume | --overwrite] [--dry-run]
        [--methods scratch lora …] [--quick] [--ray]

Says first what will be measured and about how long it takes. Cells run one after another, each in a
process of its own (two at a time would spoil each other's seconds). What has finished with the same
settings and data is not run again by --resume, so that sizes, seeds, methods and prices may change; a
finished study run again only draws its report. Fills the run directory:

    ledger.jsonl     a row per cell: everything measured, per document and item
    cells/           the same rows, one file each
    report.html      curves, costs, verdict: one file, for any browser
    table.md         the same for a README; verdict.md, plots/

`--quick` keeps the largest sizes, the first seed and a fifth of the budget. `--ray` runs cells on a
Ray cluster, each with cores of its own (pip install -e '.[cluster]').
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
from compare.context import Cell, task_of
from compare.method import sizes_of
from compare.methods import METHODS
from compare.report import report
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
ASIDE = 25.0  # seconds that a cell takes beside training, before any has been measured
SPEED = 2e11  # FLOPs per second, where the budget is in FLOPs, before any has been measured
EVERY = ("task", "tries", "budget_seconds", "budget_flops", "shots", "test_documents", "seq_len")
About = dict[Cell, dict]


def plan(study: StudyRecipe, methods: list[str] | None = None) -> list[Cell]:
    """The cells in the order in which they run: what others need first, one seed after another.

    Raises UserError for an method that there is none of.
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
                seeds = study.seeds if method.seeded else study.seeds[:1]
                found += [Cell(name, axis, size, seed) for seed in seeds]
    needed = {(METHODS[c.method].needs, c.seed) for c in found if METHODS[c.method].needs}
    for name, seed in sorted(needed):
        first = Cell(name, "text", 1.0, study.seeds[0])
        for cell in {first, first._replace(seed=seed)} - set(found):
            found.insert(0, cell)
    order = {name: at for at, name in enumerate(METHODS)}
    return sorted(found, key=lambda c: (AXES.index(c.axis), study.seeds.index(c.seed), order[c.method], c.size))


def expected_seconds(study: StudyRecipe, cell: Cell, rows: Sequence[dict] = ()) -> float:
    """About how long a cell takes, by those of its method in `rows` if there are any."""
    settings = METHODS[cell.method].settings(study, cell.axis)
    tries = len(settings) if cell.seed == study.seeds[0] else 1
    known = [
        row["wall_seconds"] / max(1, len(row["search"]))
        for row in rows
        if (row["arm"], row["axis"]) == (cell.method, cell.axis)
    ]
    if known:
        return statistics.mean(known) * tries
    budget = study.budget_flops / SPEED or study.budget_seconds
    return (ASIDE + budget * ("rate" in settings[0])) * tries


def contents(study: StudyRecipe, cells: Sequence[Cell]) -> dict[Cell, str]:
    """A hash of all that each cell's numbers follow from: settings, documents, items, foundation.

    Not of prices, nor of what else is measured, so that these may change.
    """
    task = task_of(study)
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
        settings = study.model_dump(mode="json", include={*EVERY, *method.reads})
        for axis in set(AXES) - {cell.axis, "text" if method.needs else cell.axis}:
            for table in method.reads:  # how it is trained on the other axis does not matter
                settings[table].pop(axis, None)
                settings[table].pop(f"{axis}_rates", None)
        every = [cell, study.seeds[0], settings, data]
        return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()

    return {cell: digest(cell) for cell in cells}


def provenance(study: StudyRecipe, cells: Sequence[Cell]) -> About:
    """What the row of each cell carries besides its measurements."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True
    )
    every = {
        "corpus": study.data.corpus,
        "task": study.task.name,
        "commit": commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {_cpu()}",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy")}
        | {"python": platform.python_version(), "foundation": model_version(study.foundation)},
        "command": shlex.join(["python", "-m", "compare.run", *sys.argv[1:]]),
    }
    return {cell: every | {"config_hash": what} for cell, what in contents(study, cells).items()}


def measured(folder: Path, cell: Cell, about: About) -> dict | None:
    """The row of a cell that has been measured with the same settings and data."""
    row = read_json(folder / "cells" / f"{cell.name}.json")
    if not isinstance(row, dict) or row.get("id") != cell.name:  # none, or cut off
        return None
    return row if row.get("config_hash") == about[cell]["config_hash"] else None


def run_cell(folder: Path, cell: Cell, about: About) -> dict | None:
    """Run one cell in its own process, unless its row is there; `about` goes into a new row.

    None if the process fails: what does not need it goes on.
    """
    if row := measured(folder, cell, about):
        return row
    path = folder / "cells" / f"{cell.name}.json"
    say(f"=== {cell.name}")
    result = path.with_suffix(".measured")
    command = [sys.executable, "-m", "compare.cells", *map(str, (folder, *cell, result))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # which ends it with us
        status = process.wait()
    if status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if status:
        say(f"=== {cell.name} failed with status {status} (see above); the others go on")
        return None
    row = {"id": cell.name, **cell.as_row(), **about[cell], **json.loads(result.read_text())}
    write_atomically(path, to_json(row))
    result.unlink()
    say(f"=== {cell.name}: {row['wall_seconds']:.0f} s")
    return row


def in_turn(folder: Path, cells: list[Cell], about: About) -> Iterator[dict]:
    """Rows of the cells, one after another."""
    for number, cell in enumerate(cells, 1):
        if row := run_cell(folder, cell, about):
            yield row
        say(f"{number} of {len(cells)} cells are done")


def on_ray(folder: Path, cells: list[Cell], about: About) -> Iterator[dict]:
    """Rows of the cells, as many at a time as a Ray cluster has cores or devices for.

    All nodes must see `folder`. Raises UserError if Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs: pip install -e '.[cluster]'") from None
    ray.init(log_to_driver=False)
    devices = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    remote = ray.remote(_pinned).options(**devices)
    first = cells[0].seed if cells else 0
    # What others go on from, and the seed that chooses a setting, come first.
    stages = [
        [c for c in cells if c.axis == axis and (c.seed == first) == chooses]
        for axis in AXES
        for chooses in (True, False)
    ]
    for stage in stages:
        waiting = [remote.remote(folder.resolve(), cell, about) for cell in stage]
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            if row := ray.get(ready):
                yield row


def _pinned(folder: Path, cell: Cell, about: About) -> dict | None:
    # Ray counts cores without saying which: the first one of this machine that no cell has taken.
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.platform != "linux":
        return run_cell(folder, cell, about)
    cores = os.sched_getaffinity(0)
    for core in sorted(cores):
        # An abstract socket: freed when the process ends, and no file that a link could replace.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
            try:
                taken.bind(f"\0homegrown-core-{core}")
                os.sched_setaffinity(0, {core})
            except OSError:  # in use, or not ours
                continue
            try:
                return run_cell(folder, cell, about)
            finally:
                os.sched_setaffinity(0, cores)  # the worker serves other cells too
    return run_cell(folder, cell, about)


def write_ledger(folder: Path, rows: list[dict]) -> None:
    """One JSON object per line, replaced as a whole."""
    write_atomically(folder / "ledger.jsonl", "".join(to_json(row) + "\n" for row in rows))


def make_folder(folder: Path, study: StudyRecipe, about: About, resume: bool, overwrite: bool) -> None:
    """Make a study's folder, or check that `resume` may go on in it, before anything runs.

    Raises UserError if it may not, or if cells in it were measured with other settings or data.
    """
    if resume and (folder / "config.toml").exists():
        stale = [
            cell.name
            for cell in about
            if read_json(folder / "cells" / f"{cell.name}.json") and not measured(folder, cell, about)
        ]
        if stale:
            raise UserError(
                f"{folder}: {len(stale)} cells were measured with other settings or data "
                f"({', '.join(stale[:3])}…); delete their files in {folder}/cells to measure them "
                "again, or start anew with --overwrite"
            )
        return
    check_run(folder, study, resume, overwrite)
    with new_run_folder(folder, overwrite) as aside:
        (aside / "cells").mkdir()
        write_config(aside, study)


def quick(study: StudyRecipe) -> StudyRecipe:
    """A fifth of the budget, the largest sizes, the first seed."""
    return study.model_copy(
        update={
            "budget_seconds": study.budget_seconds / 5,
            "budget_flops": study.budget_flops / 5,
            "shares": [max(study.shares)],
            "labels": [max(study.labels)],
            "seeds": study.seeds[:1],
        }
    )


def say_plan(study: StudyRecipe, cells: list[Cell], folder: Path, about: About) -> None:
    """The grid and about how long it takes."""
    task = task_of(study)
    found = {cell: measured(folder, cell, about) for cell in cells}
    left, rows = [c for c in cells if not found[c]], [row for row in found.values() if row]
    minutes = sum(expected_seconds(study, cell, rows) for cell in left) / 60
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
    parser.add_argument("--dry-run", action="store_true", help="say what would run and stop")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--quick", action="store_true", help="a fifth of the budget, one seed")
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster")
    study, own = parse(StudyRecipe, parser)
    if own.quick:
        study = quick(study)
    folder = own.run_dir or Path("runs") / f"study-{Path(own.config).stem}"
    study = pin_recipe(study, load_saved_recipe(folder, StudyRecipe, not own.overwrite))
    cells, every = plan(study, own.methods), plan(study)
    about = provenance(study, [*cells, *every])
    say_plan(study, cells, folder, about)
    if own.dry_run:
        return 0
    done = not own.overwrite and all(measured(folder, cell, about) for cell in cells)
    if done:
        say(f"{folder}: all of it has been measured; the report is drawn again")
    make_folder(folder, study, about, own.resume or done, own.overwrite)
    with lock_run(folder):
        write_config(folder, study)
        rows = {cell.name: row for cell in every if (row := measured(folder, cell, about))}
        write_ledger(folder, [rows[c.name] for c in every if c.name in rows])
        measure = on_ray if own.ray and not done else in_turn
        try:
            for row in measure(folder, [] if done else cells, about):
                rows[row["id"]] = row
                write_ledger(folder, [rows[c.name] for c in every if c.name in rows])
        except KeyboardInterrupt:
            say(f"interrupted; {len(rows)} cells are kept, go on with --resume")
            return 130
    failed = [cell.name for cell in cells if cell.name not in rows]
    if rows:
        report(folder)
    if failed:
        raise UserError(f"{', '.join(failed)} failed (see above); --resume tries them again")
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
