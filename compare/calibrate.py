"""Calibration of a study: the speed of every kind of training, measured once on the idle machine.

It turns a budget of seconds into a number of steps. A cell then trains for that many, so its result
does not depend on what else the machine does. What could also depend on the machine stands in the
calibration too: threads, precision, and the size of a micro-batch.
"""

import json
import statistics
from itertools import pairwise

from adapt.methods import prepare_model
from cli.console import say
from compare.context import Cell, Study
from compare.methods.scratch import build_fresh_model
from compare.methods.train import Speed, item_training, recipe_table, run_training, text_training
from train.memory import BestWeights
from train.preflight import uses_bfloat16

WARM_UP, MIN_TIMED = 2, 4  # steps that are not counted; least number of steps that are
SECONDS = 5.0  # of fast training that is timed
CHECKED_ITEMS, CHECKED_BYTES = 1, 64  # for the validation of a run that is only timed
BUSY = 25.0  # percent of all cores above which the machine is not idle


def measure_speed(study: Study, cell: Cell) -> dict:
    """The `Speed` of the cell's training at its largest size, as a dict."""
    study.start_cell(cell)
    table = recipe_table(cell.method)
    if table == "scratch":
        model, tokenizer, _ = build_fresh_model(study, cell, study.training_texts(cell, 1.0))
    else:
        model, tokenizer = study.load_foundation(cell)
        prepare_model(model, tokenizer, table, study.recipe, cell.seed)
    if cell.axis == "text":
        context = model.config.context
        length = context if table == "scratch" else min(study.recipe.seq_len, context)
        sets = text_training(study, cell, model, tokenizer, length, CHECKED_BYTES)
    else:
        sets = item_training(study.labelled_task(cell, int(cell.size)), model, tokenizer, CHECKED_ITEMS)
    for length_of_run in ({"steps": WARM_UP + MIN_TIMED + 1}, {"max_seconds": SECONDS}):
        timed = {**length_of_run, "eval_every": 10**9}
        trainer, _ = run_training(study, cell, model, tokenizer, sets, timed, BestWeights())
        metrics = (study.folder / "training" / cell.name / "metrics.jsonl").read_text(encoding="utf-8")
        ends = [row["seconds"] for row in map(json.loads, metrics.splitlines()) if "loss" in row]
        step_seconds = statistics.median([after - before for before, after in pairwise(ends)][WARM_UP:])
        if ends[-1] >= SECONDS:
            break
    precision = "bfloat16" if uses_bfloat16(trainer.config.precision, model, study.device) else "float32"
    return Speed(step_seconds, trainer.config.micro_batch_size, precision)._asdict()


def warn_if_busy() -> None:
    """Print a warning if other work would slow the calibration down."""
    import psutil

    busy = psutil.cpu_percent(interval=1)  # now: the load average remembers the set-up
    if busy > BUSY:
        say(
            f"WARNING: other programs use {busy:.0f} % of the processors: the speeds that are measured now, and with "
            "them the steps of every budget, will be too low; wait until the machine is idle"
        )
