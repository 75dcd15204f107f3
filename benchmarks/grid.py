"""Training runs as cells of a ledger: one single-threaded process each, run once, resumed if stopped.

    python -m benchmarks.grid '{"way": "recipe", "size": "1m", …}'

A cell defines a run: `way` is the method ("baseline", or any name for the recipe with `overrides`),
then `size` (configs/speedrun-SIZE.toml), `corpus`, `seed`, `learning_rate`, `share`, the number of steps
relative to the baseline, and `data`, the version of data.prepare: a row of another version is of other windows.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import Gpt2
from benchmarks.record import time_in_turn
from cli.console import say
from cli.recipes import load
from configs.schema import Recipe
from data.prepare import VERSION as DATA_VERSION
from data.prepare import prepare
from data.shards import Windows, cached_tokenizer, write_shards
from data.splits import SPLITS
from model.build import build_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.evaluate import evaluate
from train.forward import Batch, set_forward, summed_loss
from train.loop import Trainer, clip_gradients
from train.metrics import read_metrics
from train.optim import build_optimizers
from train.preflight import uses_bfloat16

STEPS = {"1m": 2930, "4m": 3906}  # steps of the baseline: 6 and 8 million tokens
STEPS_PER_TURN = 4  # when timing steps
TIMED_DOCUMENT = 100  # tokens of a document, when timing steps
EVALUATION_WINDOWS = 256  # per held-out split
RUNS = Path("cache/cells")
BASELINE = [
    "--train.optimizer=adamw",
    "--train.schedule=cosine",
    "--train.warmup=0.02",
    "--train.min-lr-ratio=0.1",
    "--train.weight-decay=0.1",
    "--train.embedding-lr=1",
]
Cell = dict[str, Any]


def build_recipe(cell: Cell) -> Recipe:
    """The recipe of a cell with all its overrides."""
    steps = max(1, round(STEPS[cell["size"]] * cell["share"]))
    changes = BASELINE if cell["way"] == "baseline" else cell.get("overrides", [])
    own = [
        f"--data.corpus={cell['corpus']}",
        f"--train.seed={cell['seed']}",
        f"--train.learning-rate={cell['learning_rate']}",
        f"--train.steps={steps}",
        f"--train.eval-every={max(1, steps // 10)}",
        "--train.save-every=200",
        "--train.keep-last=1",
        "--train.compile=never",
        "--train.hang-seconds=1e9",
    ]
    return load(Recipe, f"configs/speedrun-{cell['size']}.toml", [*changes, *own])


def build_cell_model(cell: Cell, recipe: Recipe, vocab_size: int) -> Transformer | Gpt2:
    """The cell's model with initial weights drawn from its seed."""
    if cell["way"] == "baseline":
        torch.manual_seed(cell["seed"])
        return Gpt2(recipe.model, vocab_size)
    return build_model(recipe.model, vocab_size).init_weights(cell["seed"])


def train_cell(cell: Cell) -> Cell:
    """Train one cell to its end, resuming if possible; returns the cell with its results.

    Raises SystemExit if a signal stops the training.
    """
    recipe = build_recipe(cell)
    data = prepare(recipe.data)
    tokenizer = Tokenizer.load(cached_tokenizer(data, recipe.tokenizer))
    shards, length = write_shards(data, tokenizer), recipe.model.max_seq_len
    limits = (0, EVALUATION_WINDOWS, EVALUATION_WINDOWS)
    train_set, validation, test = (
        Windows(shards, split, length, tokenizer, limit) for split, limit in zip(SPLITS, limits, strict=True)
    )
    if recipe.train.document_mask:  # the trainer sets it for the others
        test.separator = tokenizer.separator_id
    model = build_cell_model(cell, recipe, tokenizer.vocab_size)
    if cell["way"] == "baseline" and cell["size"] != "1m":
        model.compile()  # the longest runs; this takes a quarter off their time
    parts = (str(value) for key, value in cell.items() if key != "overrides")
    run = RUNS / "-".join(parts).replace(" ", "-")
    run.mkdir(parents=True, exist_ok=True)
    with Ranks("cpu") as ranks:
        result = Trainer(model, train_set, validation, tokenizer, recipe.train, run, ranks, resume=True).train()
        if result.signal:
            raise SystemExit(128 + result.signal)
        bfloat16 = uses_bfloat16(recipe.train.precision, model, ranks.device)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
        tested = evaluate(model, model, test, recipe.train, ranks, autocast)
    rows = read_metrics(run)
    curve = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    return cell | {
        "steps": result.progress.step,
        "tokens": result.progress.tokens,
        "flops": result.progress.flops,
        "seconds": result.progress.seconds,
        "parameters": model.num_parameters(),
        "validation_loss": rows[-1].get("whole_validation_loss", curve[-1][1]),
        "test_loss": tested["validation_loss"],
        "test_bits_per_byte": tested["bits_per_byte"],
        "curve": [(step, round(loss, 4)) for step, loss in curve],
    }


COMPILED = ", compiled"


def measure_step_seconds(cells: dict[str, Cell], rounds: int = 6, compiled: bool = False) -> dict[str, list[float]]:
    """Seconds per step of each cell, one value per round; each round times all cells in turn.

    With `compiled`, each cell is also timed with torch.compile, under its name plus COMPILED.
    """
    x, y = torch.randint(1, 4096, (2, 8, 256))
    x[:, ::TIMED_DOCUMENT] = 0
    steps = {}
    for name, cell in cells.items():
        recipe = build_recipe({"learning_rate": 1e-3} | cell)
        for suffix in ("", COMPILED) if compiled else ("",):
            model = build_cell_model(cell, recipe, 4096)
            if suffix and isinstance(model, Transformer):
                set_forward(model, compiled="blocks")
            elif suffix:
                model.compile()
            parameters = dict(model.named_parameters())
            optimizers = build_optimizers(parameters, recipe.train, 1.0, torch.bfloat16)
            separator = 0 if recipe.train.document_mask else -1
            steps[name + suffix] = partial(train_step, model, parameters, optimizers, (x, y), separator)
    times = time_in_turn(steps, rounds + 1, STEPS_PER_TURN)
    return {name: seconds[1:] for name, seconds in times.items()}  # the first round is a warm-up


def train_step(model: nn.Module, parameters: dict, optimizers: list, batch: Batch, separator: int) -> None:
    """One training step in bfloat16 autocast, with a document mask if `separator` is 0 or more."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_loss(model, batch, separator, torch.device("cpu"))
    (loss / batch[1].numel()).backward()
    clip_gradients(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def read_ledger(path: Path) -> list[Cell]:
    """The rows of a ledger that trained on the data of this version; an empty list if the file does not exist."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []
    return [row for row in rows if row.get("data") == DATA_VERSION]


def has_all(rows: list[Cell], cells: list[Cell]) -> bool:
    """Whether the rows of a ledger hold every cell."""
    return all(any(cell.items() <= row.items() for row in rows) for cell in cells)


def run_cells(path: Path, plan: Callable[[list[Cell]], list[Cell]], jobs: int, minutes: float) -> None:
    """Run the cells of `plan(rows)` that the ledger at `path` lacks, until none is left.

    After `minutes`, unfinished cells save a checkpoint and stop; the next call resumes them. Raises
    CalledProcessError if a cell fails.
    """
    until = time.monotonic() + 60 * minutes

    def work(cell: Cell) -> bool:
        if time.monotonic() > until:
            return False
        say(f"training {json.dumps(cell)}")
        command = [sys.executable, "-m", "benchmarks.grid", json.dumps(cell)]
        threads = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=threads) as process:
            try:
                output, _ = process.communicate(timeout=until - time.monotonic())
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                return False
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        with open(path, "a", encoding="utf-8") as file:
            file.write(output.splitlines()[-1] + "\n")
        return True

    while True:
        rows = read_ledger(path)
        todo = [c for c in plan(rows) if not any(c.items() <= row.items() for row in rows)]
        with ThreadPoolExecutor(jobs) as pool:
            if not todo or not all(pool.map(work, todo)):
                say(f"{len(todo)} cells left" if todo else "all cells have finished")
                return


if __name__ == "__main__":
    print(json.dumps(train_cell(json.loads(sys.argv[1]))))
