"""The plan of a study: its cells, how long they take, and a hash of what determines their numbers."""

import hashlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from cli.console import show
from cli.errors import UserError, nearest
from compare.analysis.significance import POWER, detectable_difference
from compare.context import SEARCH_SEED, Cell, load_study_task
from compare.methods import COMPUTE_METHODS, METHODS, SHORT_METHODS
from compare.rows import EDITION, read_rows
from compare.sources import source_hash
from configs.study_recipe import StudyRecipe
from data.prepare import prepare
from data.splits import load_manifest
from model.load import model_version

AXES = ("text", "task")
# Estimates for a cell, or for a tried setting, beside training, in two threads.
PROMPTED_SECONDS = 20.0  # score the foundation model
TUNED_SECONDS = 45.0  # and evaluate it thirteen times
OTHER_SECONDS = 2.0
SHARED_SETTINGS = ("task", "tries", "budget_seconds", "shots", "test_documents", "seq_len")
Provenance = dict[Cell, dict]
"""The keys that a row has besides its measurements."""


def plan(study: StudyRecipe, methods: list[str] | None = None) -> list[Cell]:
    """The cells in their running order: by axis, seed and method; search cells and base methods run first.

    `methods` restricts the study to some methods and their base methods. Raises UserError for an
    unknown method.
    """
    for name in (*(methods or ()), *study.text_methods, *study.task_methods):
        if name not in METHODS:
            raise UserError(f'no method "{name}"{nearest(name, list(METHODS))}')
    cells: set[Cell] = set()
    for axis in AXES if study.task.name else AXES[:1]:
        listed = (study.text_methods if axis == "text" else study.task_methods) or list(METHODS)
        for name, method in METHODS.items():
            if name in listed and (not methods or name in methods):
                sizes = method.sizes_on(axis, study)
                for size in sizes:
                    more = study.largest_seeds if size == sizes[-1] else []
                    cells |= cells_of(study, name, axis, size, more_seeds=more)
                    if method.base_method:
                        cells |= cells_of(study, method.base_method, "text", 1.0, more_seeds=more)
                if axis == "text" and name in COMPUTE_METHODS:
                    for factor in study.budget_factors:
                        if factor > 1 or name in SHORT_METHODS:
                            cells |= cells_of(study, name, axis, sizes[-1], factor)
    order = {name: at for at, name in enumerate(METHODS)}
    seeds = [SEARCH_SEED, *study.seeds, *study.largest_seeds]
    return sorted(
        cells, key=lambda c: (AXES.index(c.axis), seeds.index(c.seed), c.foundation, order[c.method], c.size, c.factor)
    )


def cells_of(
    study: StudyRecipe, name: str, axis: str, size: float, factor: float = 1.0, more_seeds: Sequence[int] = ()
) -> set[Cell]:
    """The cells of a method at one size: of all seeds and foundations, and the search if there is one."""
    method = METHODS[name]
    seeds = [*study.seeds, *more_seeds] if method.is_seeded else study.seeds[:1]
    search = [SEARCH_SEED] if len(method.settings(study, axis)) > 1 else []
    foundations = study.foundations if method.uses_foundation and len(study.foundations) > 1 else [""]
    return {Cell(name, axis, size, seed, factor, each) for seed in (*search, *seeds) for each in foundations}


def estimate_seconds(study: StudyRecipe, cell: Cell, rows: Sequence[dict] = (), threads: int = 0) -> float:
    """Estimated seconds of a cell: from the rows of its method on the axis, or from the budget.

    `threads`: those of a cell; 0: of this process.
    """
    method = METHODS[cell.method]
    tries = len(method.settings(study, cell.axis)) if cell.is_search else 1
    budget = study.budget_seconds * cell.factor * method.is_trained
    known = [
        row["wall_seconds"] / max(1, len(row.get("search", ())))
        - study.budget_seconds * row["factor"] * method.is_trained
        for row in rows
        if (row["method"], row["axis"]) == (cell.method, cell.axis)
    ]
    beside = OTHER_SECONDS
    if known:
        beside = statistics.mean(known)
    elif method.uses_foundation:
        beside = TUNED_SECONDS if method.is_trained else PROMPTED_SECONDS
        beside *= 2 / min(4, threads or torch.get_num_threads())
    return tries * (budget + beside)


def hash_cells(study: StudyRecipe, cells: Sequence[Cell]) -> dict[Cell, str]:
    """A hash of everything that determines a cell's numbers: settings, code, documents, items, foundation.

    Prices and the other cells of the study are not included, so that they may change; nor are
    settings at their default, so that new ones may come.
    """
    task = load_study_task(study)
    items = [(part, [(i.text, i.label) for i in getattr(task, part)]) for part in ("train", "validation", "test")]
    read = [study.data]
    if study.general:
        read.append(study.data.model_copy(update={"corpus": study.general, "group_field": ""}))
    texts = [load_manifest(prepare(data))["fingerprint"] for data in read]
    models = {name: [model_version(name), _files(Path(name))] for name in study.foundations}

    def digest(cell: Cell) -> str:
        method = METHODS[cell.method]
        kept = {*SHARED_SETTINGS, method.recipe_table}
        settings = study.model_dump(mode="json", include=kept, exclude_defaults=True)
        table = settings.get(method.recipe_table, {})
        for axis in set(AXES) - {cell.axis, "text" if method.base_method else cell.axis}:
            table.pop(axis, None)  # training settings of the other axis do not matter
            table.pop(f"{axis}_rate", None)
        model = models[cell.foundation or study.foundations[0]] if method.uses_foundation else None
        hashed = [cell, settings, source_hash(), texts, items, model]
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()

    return {cell: digest(cell) for cell in cells}


def _files(model: Path) -> list:
    paths = [path for path in sorted((model, *model.rglob("*"))) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def collect_provenance(study: StudyRecipe, cells: Sequence[Cell]) -> Provenance:
    """The provenance of each cell: corpus, task, commit, device, versions, command, config_hash."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True
    )
    shared = {
        "edition": EDITION,
        "corpus": study.data.corpus,
        "task": study.task.name,
        "commit": commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {_cpu()}",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy")}
        | {"python": platform.python_version(), "foundations": [model_version(name) for name in study.foundations]},
        "command": shlex.join(["python", "-m", "compare.run", *sys.argv[1:]]),
    }
    return {cell: shared | {"config_hash": digest} for cell, digest in hash_cells(study, cells).items()}


def read_measured(folder: Path, provenance: Provenance) -> tuple[dict[str, dict], list[str]]:
    """The rows by id that were measured with the settings and data of `provenance`, and the ids of the other rows."""
    rows = read_rows(folder)
    names = {cell.name: about["config_hash"] for cell, about in provenance.items() if cell.name in rows}
    valid = {name: rows[name] for name, digest in names.items() if rows[name].get("config_hash") == digest}
    return valid, [name for name in names if name not in valid]


def shrink(study: StudyRecipe) -> StudyRecipe:
    """The study of `--quick`: a fifth of the budget, the largest sizes, the first seed."""
    return study.model_copy(
        update={
            "budget_seconds": study.budget_seconds / 5,
            "budget_factors": [],
            "shares": [max(study.shares)],
            "labels": [max(study.labels)],
            "seeds": study.seeds[:1],
            "largest_seeds": [],
        }
    )


def print_plan(study: StudyRecipe, cells: list[Cell], folder: Path, measured: dict[str, dict]) -> None:
    """Print the sizes and seeds of every method, and the estimated time; `measured` are the valid rows by id."""
    left = [cell for cell in cells if cell.name not in measured]
    rows = [measured[cell.name] for cell in cells if cell.name in measured]
    minutes = sum(estimate_seconds(study, cell, rows) for cell in left) / 60
    items = len(load_study_task(study).test)
    show(f"{len(cells)} cells, {len(left)} to run in {folder}, {items} test items; about {minutes:.0f} minutes")
    for axis in AXES:
        for name, method in METHODS.items():
            planned = [cell for cell in cells if (cell.method, cell.axis) == (name, axis)]
            if planned:
                sizes = " ".join(f"{size:g}" for size in sorted({cell.size for cell in planned}))
                seeds, tried = len({cell.seed for cell in planned} - {SEARCH_SEED}), len(method.settings(study, axis))
                factors = sorted({cell.factor for cell in planned} - {1.0})
                budgets = f", budgets x {' '.join(f'{f:g}' for f in factors)}" if factors else ""
                show(f"  {axis} {name:20} sizes {sizes:18} {seeds} seeds, {tried} settings tried{budgets}")
    if any(cell.axis == "task" and METHODS[cell.method].family != "baseline" for cell in cells):
        show(describe_power(cells, items))


def describe_power(cells: Sequence[Cell], items: int) -> str:
    """How large a difference on the task the study finds, in a sentence."""
    families = {cell.method: METHODS[cell.method].family for cell in cells if cell.axis == "task"}
    baselines = sum(family == "baseline" for family in families.values())
    sizes = len(
        {cell.size for cell in cells if cell.axis == "task" and "labels" in METHODS[cell.method].sizes.values()}
    )
    least = detectable_difference(items, len(families) - baselines, baselines, max(1, sizes))
    if least >= 1:
        return f"  {items} test items are too few to find any difference between methods on the task"
    return (
        f"  a method that answers {least:.0%} of the {items} test items better than the baselines is found with "
        f"{POWER:.0%} power, after the correction for all claims on the task"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name.*?:(.*)", info.read_text(encoding="utf-8"), re.M) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
