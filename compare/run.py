"""Run a study: every method on the same held-out data, with the same budget, for each size and seed.

    python -m compare.run STUDY.toml [--run-dir DIR] [--resume | --overwrite] [--dry-run]
        [--methods scratch lora …] [--quick] [--ray]
    python -m compare.run --corpus FILE|FOLDER [--labels ITEMS.jsonl] [--minutes 20]
    python -m compare.run --corpus FILE|FOLDER --predict

The second form needs no recipe: it picks methods, sizes and budget that fit the minutes; below 5 it
measures the distance to the foundation and the baselines alone. --predict makes short runs and predicts the
best method from results on other domains; it needs a measured atlas (compare/atlas.py). A full
study of the same corpus then shows the prediction; with --atlas FOLDER it is added to an atlas of yours.

First prints the plan and an estimate of the time. A calibration then measures the speed of every
kind of training, on the idle machine, and turns the budget into steps; after that other work may
run beside the study. A cell is one method at one size with one seed. --resume keeps cells that were
measured with the same settings, data and code, so sizes, seeds, methods and prices may change; for a
finished study it only draws the report. Writes to the run directory:

    log.txt          what training and scoring print
    ledger.jsonl     the calibration, then one row per cell: all measurements, per document and item
    cells/           the rows of cells as they are measured, one file each
    answer.md        what to do, how sure that is, what it costs; a table to choose from
    report.html      curves, costs and verdict in one file, for any browser
    table.md         all methods and sizes; verdict.md, plots/

`--quick` uses the largest sizes, the first seed and a fifth of the budget. `--ray` runs cells on a Ray
cluster, each with one thread or on its own device (pip install -e '.[cluster]'). `--keep` trains the best
method at each size again and writes it to kept/, with the best prompt: files for model.sample,
prompting.evaluate and serve.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from cli.atomic import to_json, write_atomically
from cli.console import say, show
from cli.errors import UserError, run_command
from cli.recipes import Parser, parse
from compare.domains import ATLAS, add_domain, read_atlas
from compare.execute import calibrate, run_on_ray, run_sequentially, write_ledger
from compare.keep import keep_winners
from compare.own_corpus import describe, recipe_for, short_recipe
from compare.plan import collect_provenance, estimate_seconds, plan, print_plan, read_measured, shrink
from compare.prediction import describe_prediction
from compare.report import write_report
from configs.study_recipe import StudyRecipe
from train.run_directory import (
    check_run,
    load_saved_recipe,
    lock_run,
    new_run_folder,
    pin_recipe,
    run_directory_arguments,
    write_config,
)


def prepare_folder(folder: Path, study: StudyRecipe, stale: list[str], resume: bool, overwrite: bool) -> None:
    """Create a study's folder, or check before anything runs that `resume` may use it.

    Raises UserError if it may not, or for `stale` cells, which were measured with other settings, data or code.
    """
    if resume and (folder / "config.toml").exists():
        if stale:
            raise UserError(
                f"{folder}: {len(stale)} cells were measured with other settings, data or code "
                f"({', '.join(stale[:3])}…); delete their files in {folder}/cells and their lines in "
                "ledger.jsonl to measure them again, check out the commit that their rows name to continue, or start "
                "over with --overwrite"
            )
        return
    check_run(folder, study, resume, overwrite)
    with new_run_folder(folder, overwrite) as new_folder:
        (new_folder / "cells").mkdir()
        write_config(new_folder, study)


def parse_own_corpus(parser: Parser) -> tuple[StudyRecipe, argparse.Namespace]:
    """The recipe and the arguments of `--corpus`. Raises UserError as `recipe_for` does."""
    parser.add_argument("--corpus", required=True, metavar="FILE|FOLDER", help="your text; a study without a recipe")
    parser.add_argument("--labels", default="", metavar="ITEMS.jsonl", help='rows of {"text", "label"}')
    parser.add_argument("--minutes", type=float, default=20.0, help="how long it may take (default: 20)")
    parser.add_argument("--predict", action="store_true", help="say which method would win, after short runs")
    parser.add_argument(
        "--atlas", type=Path, metavar="FOLDER", help="the atlas to predict from, or to add the study to"
    )
    own = parser.parse_args()
    if own.minutes <= 0:
        raise UserError(f"--minutes {own.minutes:g} is not above 0")
    name = Path(own.corpus).stem or "corpus"
    if own.predict:
        read_atlas(own.atlas or ATLAS)  # before anything is measured
        if own.quick or own.methods:
            raise UserError("--predict makes the same short runs as the atlas: leave out --quick and --methods")
        own.config = f"{name}-predict.toml"
        return short_recipe(own.corpus), own
    own.config = f"{name}.toml"
    study = recipe_for(own.corpus, own.labels, own.minutes)
    say(describe(study, own.minutes))
    return study, own


def is_own_corpus(words: list[str]) -> bool:
    """Whether a command line has --corpus."""
    return any(word.partition("=")[0] == "--corpus" for word in words)


def show_prediction(folder: Path, own: argparse.Namespace) -> None:
    """Print the prediction of the short runs in `folder`, or beside a full study what was predicted before."""
    if own.predict:
        lines = describe_prediction(folder, own.corpus, own.atlas or ATLAS)
        write_atomically(folder / "prediction.md", "\n".join(lines) + "\n")
        show("\n".join(lines))
        return
    before = folder.with_name(f"{folder.name}-predict")
    if (before / "prediction.md").exists():
        show("Predicted before: " + (before / "prediction.md").read_text(encoding="utf-8").splitlines()[0])
        if own.atlas:
            show(f"Added to the atlas: {add_domain(own.atlas, Path(own.config).stem, before, folder)}")


def main() -> int:
    """Entry point of `python -m compare.run`."""
    parser = run_directory_arguments()
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--methods", nargs="+", help="only these methods")
    parser.add_argument("--quick", action="store_true", help="the largest sizes, one seed, a fifth of the budget")
    parser.add_argument("--ray", action="store_true", help="run cells on a Ray cluster")
    parser.add_argument("--keep", action="store_true", help="write the winners as files that other commands load")
    parser.set_defaults(predict=False)
    study, own = parse_own_corpus(parser) if is_own_corpus(sys.argv) else parse(StudyRecipe, parser)
    if own.quick:
        study = shrink(study)
    folder = own.run_dir or Path("runs") / f"study-{Path(own.config).stem}"
    study = pin_recipe(study, load_saved_recipe(folder, StudyRecipe, not own.overwrite))
    cells, all_cells = plan(study, own.methods), plan(study)
    provenance = collect_provenance(study, [*cells, *all_cells])
    rows, stale = read_measured(folder, provenance)
    print_plan(study, cells, folder, rows)
    if own.dry_run:
        return 0
    done = not own.overwrite and all(cell.name in rows for cell in cells)
    if done:
        say(f"{folder}: all cells have been measured; only the report is drawn again")
    prepare_folder(folder, study, stale, own.resume or done, own.overwrite)
    with lock_run(folder):
        write_config(folder, study)
        rows, _ = read_measured(folder, provenance)
        left = [cell for cell in cells if cell.name not in rows]
        measure = run_on_ray if own.ray and left else run_sequentially
        try:
            if own.predict and left:  # the steps of the atlas
                shared = [each / "calibration.json" for each in (own.atlas, ATLAS) if each]
                calibration = next((path for path in shared if path.exists()), None)
                if calibration is None:
                    raise UserError(f"{shared[0]}: not found; it has the steps of the short runs; run: compare.atlas")
                timed = json.loads(calibration.read_text(encoding="utf-8"))
                threads = {"timed_threads": timed["threads"], "threads": torch.get_num_threads()}
                write_atomically(folder / "calibration.json", to_json(timed | threads, 2) + "\n")
            calibrate(study, folder, left, int(own.ray))
            write_ledger(folder, all_cells, rows)
            seconds = {cell: estimate_seconds(study, cell, list(rows.values())) for cell in left}
            for row in measure(folder, seconds, provenance):
                rows[row["id"]] = row
                write_ledger(folder, all_cells, rows)
        except KeyboardInterrupt:
            say(f"interrupted; {len(rows)} cells are kept, continue with --resume")
            return 130
    failed = [cell.name for cell in cells if cell.name not in rows]
    if rows:
        write_report(folder)
    if failed:
        raise UserError(f"{', '.join(failed)} failed (see above); run them again with --resume")
    if own.keep:
        keep_winners(folder)
    if "corpus" in own:
        show_prediction(folder, own)
    show(f"The report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main)
