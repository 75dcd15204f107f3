"""How few tokens, FLOPs and seconds reach the loss that a nanoGPT-style baseline ends with.

    python -m benchmarks.speedrun [--jobs 2] [--ways baseline recipe adamw] [--sizes 1m 4m]

The baseline is GPT-2's architecture (transformers) with AdamW and a cosine; "recipe" is
configs/speedrun-SIZE.toml on a share of the baseline's steps; "adamw" is that recipe with AdamW for
every weight. All run in the same loop on the same windows, with as many parameters in the blocks.
Learning rates are chosen for each way from equally many tries, by the loss on the validation split
of python-stdlib; what is reported is the loss on the test splits. A cell is one training run on one
thread: those that the result file holds are not run again, and one that was cut off goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers import Gpt2
from benchmarks.record import folder
from configs.cli import load
from configs.console import say
from configs.schema import Recipe, TrainConfig
from data.prepare import SPLITS, prepare
from data.shards import Windows, cached_tokenizer, write_shards
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.evaluate import evaluate
from train.metrics import read_metrics
from train.pretrain import train

CORPORA = ("python-stdlib", "aws-api")
SEEDS = (0, 1, 2)
EVALUATED = 256  # windows of each held-out split
STEPS = {"1m": 2930, "4m": 3906}  # of the baseline: 6 and 8 million tokens
SHARE = {"baseline": 1.0, "recipe": 0.2, "adamw": 0.2}
RATES = {
    ("baseline", "1m"): (1e-3, 2e-3, 4e-3),
    ("baseline", "4m"): (1e-3, 2e-3, 4e-3),
}
BASELINE = TrainConfig(
    optimizer="adamw", schedule="cosine", warmup=0.02, min_lr_ratio=0.1, weight_decay=0.1,
    precision="bfloat16", batch_size=8, micro_batch_size=8,
)  # fmt: skip
Cell = dict[str, str | int | float]


class First:
    """The first windows of a split."""

    def __init__(self, windows: Windows, count: int = EVALUATED):
        self.windows, self.count = windows, min(count, len(windows))
        self.token_bytes = windows.token_bytes

    def __len__(self) -> int:
        """Number of windows."""
        return self.count

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Windows.batch`."""
        return self.windows.batch(indices)


def run_cell(cell: Cell) -> Cell:
    """Train one cell to its end, from where it was cut off; its row of the result file."""
    recipe = load(Recipe, f"configs/speedrun-{cell['size']}.toml")
    data = prepare(recipe.data.model_copy(update={"corpus": cell["corpus"]}))
    tokenizer = Tokenizer.load(cached_tokenizer(data, recipe.tokenizer))
    shards = write_shards(data, tokenizer)
    length = recipe.model.max_seq_len
    train_set, validation, test = (Windows(shards, split, length, tokenizer) for split in SPLITS)
    seed, steps = cell["seed"], round(STEPS[cell["size"]] * SHARE[cell["way"]])
    config = recipe.train
    if cell["way"] == "baseline":
        torch.manual_seed(seed)
        model, config = Gpt2(recipe.model, tokenizer.vocab_size), BASELINE
    else:
        model = Transformer(recipe.model, tokenizer.vocab_size).init_weights(seed)
        if cell["way"] == "adamw":
            config = config.model_copy(update={"optimizer": "adamw"})
    changes = {"steps": steps, "seed": seed, "learning_rate": cell["learning_rate"]}
    saving = {"eval_every": max(1, steps // 10), "save_every": 200, "keep_last": 1}
    config = config.model_copy(update=changes | saving)
    run = Path("cache/speedrun") / "-".join(map(str, cell.values()))
    run.mkdir(parents=True, exist_ok=True)
    with Ranks("cpu") as ranks:
        seen = First(validation)
        result = train(model, train_set, seen, tokenizer, config, run, ranks, resume=True)
        if result.signal:
            raise SystemExit(128 + result.signal)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16")
        tested = evaluate(model, model, First(test), config, ranks, autocast)
    rows = [row for row in read_metrics(run) if "validation_loss" in row]
    return cell | {
        "steps": steps,
        "tokens": result.progress.tokens,
        "flops": result.progress.flops,
        "seconds": result.progress.seconds,
        "parameters": model.num_parameters(),
        "validation_loss": rows[-1]["validation_loss"],
        "test_loss": tested["validation_loss"],
        "test_bits_per_byte": tested["bits_per_byte"],
        "curve": [(row["step"], round(row["validation_loss"], 4)) for row in rows],
    }


def cells(ways: list[str], sizes: list[str], done: list[Cell]) -> list[Cell]:
    """What is to be run as far as it is known: the tries, and the best one's rate once they end."""
    found: list[Cell] = []
    for way, size in [(way, size) for size in sizes for way in ways]:
        about = {"way": way, "size": size, "corpus": CORPORA[0], "seed": SEEDS[0]}
        tries = [about | {"learning_rate": rate} for rate in RATES[way, size]]
        scores = [
            row["validation_loss"] for cell in tries for row in done if cell.items() <= row.items()
        ]
        found += tries
        if len(scores) == len(tries):
            best = tries[int(np.argmin(scores))]
            found += [best | {"corpus": c, "seed": seed} for c in CORPORA for seed in SEEDS]
    return [cell for cell in found if not any(cell.items() <= row.items() for row in done)]


def main() -> None:
    """Entry point of `python -m benchmarks.speedrun`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
    parser.add_argument("--ways", nargs="+", default=list(SHARE), choices=SHARE)
    parser.add_argument("--sizes", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.cell)))
        return
    path = folder() / "speedrun.jsonl"

    def run(cell: Cell) -> None:
        say(f"training {cell}")
        command = [sys.executable, "-m", "benchmarks.speedrun", "--cell", json.dumps(cell)]
        threads = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=threads, check=True)
        row = ended.stdout.splitlines()[-1]
        with open(path, "a") as file:
            file.write(row + "\n")

    while True:
        done = [json.loads(line) for line in path.open()] if path.exists() else []
        todo = cells(args.ways, args.sizes, done)
        if not todo:
            break
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run, todo))


if __name__ == "__main__":
    main()
