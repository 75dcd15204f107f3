"""Every adaptation method of the foundation model, on one built-in task, within five CPU minutes.

    python -m benchmarks.ways [--minutes 60] [--ways lora full …]

Each method uses its recipe configs/finetune/service-METHOD.toml with three seeds, in a separate
process. Records accuracy on the test items against two baselines (the unadapted model zero-shot and
the majority class), CPU seconds of training, peak memory of the process (including loading the
weights), and the number of trained parameters. Runs in the ledger, results/DEVICE/ways.jsonl, are
not run again. Writes results/DEVICE/ways.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from adapt.datasets import task_sets
from adapt.features import extract_features, fit_classifier
from adapt.methods import merge_model, prepare_model
from benchmarks.record import record, results_folder
from cli.console import say
from cli.recipes import load
from compare.analysis.bootstrap import Resampled, resample
from configs.finetune_recipe import FinetuneRecipe
from data.tasks import load_task
from model.load import load_model
from prompting.answers import answer_task
from prompting.shots import zero_shot
from train.distributed import Ranks
from train.loop import train
from train.metrics import peak_memory
from train.preflight import uses_bfloat16
from train.run_directory import start_run

SEEDS = (0, 1, 2)
CPU_LIMIT = 300.0  # CPU seconds of training; slower methods are marked
METHODS = ("zero-shot", "full", "top-layers", "lora", "soft-prompt", "features")


def cpu_seconds() -> float:
    """CPU seconds that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(method: str, seed: int) -> dict:
    """Train one method with one seed; returns its score per test item and the training costs."""
    name = "lora" if method == "zero-shot" else method
    recipe = load(FinetuneRecipe, f"configs/finetune/service-{name}.toml", ["--train.seed", str(seed)])
    assert recipe.task is not None
    task = load_task(recipe.task, recipe.data)
    model, tokenizer = load_model(recipe.base)
    row: dict = {"way": method, "seed": seed, "trained_parameters": 0, "training_flops": 0.0}
    if method != "zero-shot":  # the seed also sets the data order
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
        task = task._replace(train=[task.train[i] for i in order])
    started = cpu_seconds()
    if method == "features":
        if uses_bfloat16("auto", model, model.device):
            model.bfloat16()
        pooling = recipe.features.pooling
        half = task._replace(train=task.train[: len(task.train) // 2])  # each seed uses another half
        features = [
            extract_features(model, tokenizer, [item.text for item in items], pooling)
            for items in (half.train, half.validation)
        ]
        head, _ = fit_classifier(half, *features, recipe.features)
        row |= {
            "training_cpu_seconds": cpu_seconds() - started,
            "trained_parameters": head.weight.size + head.bias.size,
        }
        predictions = head.predict(extract_features(model, tokenizer, [i.text for i in task.test], pooling))
        correct = [float(a == item.label) for a, item in zip(predictions, task.test, strict=True)]
        return row | {"correct": correct, "peak_bytes": peak_memory(model.device)}
    if method != "zero-shot":
        prepare_model(model, tokenizer, recipe.method, recipe, seed)
        sets = task_sets(task, model, tokenizer)
        run = Path("runs/ways") / f"{method}-{seed}"
        with start_run(run, recipe, tokenizer, overwrite=True), Ranks("cpu") as ranks:
            result = train(model, *sets, tokenizer, recipe.train, run, ranks)
        row |= {
            "training_cpu_seconds": cpu_seconds() - started,
            "training_flops": result.progress.flops,
            "trained_parameters": model.num_parameters(trainable=True),
            "peak_bytes": result.peak_bytes,
        }
        merge_model(model)
    model.eval()
    if uses_bfloat16("auto", model, model.device):
        model.bfloat16()
    row["correct"] = answer_task(model, tokenizer, task, zero_shot)["correct"]
    majority_class, _ = Counter(item.label for item in task.train).most_common(1)[0]
    return row | {"majority": [float(item.label == majority_class) for item in task.test]}


def compare_methods(rows: list[dict]) -> list[dict]:
    """Accuracy of every method over its seeds, its gain over both baselines, and its training costs."""
    groups = {method: [row for row in rows if row["way"] == method] for method in METHODS}
    if not groups["zero-shot"]:
        raise SystemExit("no zero-shot result in the ledger: add zero-shot to --ways")

    def score(matrix: list[list[float]]) -> Resampled:
        values = np.array(matrix)
        return resample(values, np.ones(values.shape[1]))

    before = score([groups["zero-shot"][0]["correct"]])
    majority = score([groups["zero-shot"][0]["majority"]])
    full = max((row["peak_bytes"] for row in groups["full"]), default=0)
    found = []
    for method, group in groups.items():
        if not group:
            continue
        mine = score([row["correct"] for row in group])
        above = {"zero_shot": mine.minus(before).estimate, "majority": mine.minus(majority).estimate}
        last, seconds = group[-1], [row.get("training_cpu_seconds", 0.0) for row in group]
        peak = max(row.get("peak_bytes", 0) for row in group)
        found.append(
            {
                "way": method,
                "seeds": len(group),
                "accuracy": mine.estimate._asdict(),
                "over_zero_shot": above["zero_shot"]._asdict(),
                "over_majority": above["majority"]._asdict(),
                "beats_both": min(each.low for each in above.values()) > 0,
                "training_cpu_seconds": seconds,
                "peak_bytes": peak,
                "peak_over_full": peak / full if full and peak else None,
                "trained_parameters": last["trained_parameters"],
                "training_flops": last["training_flops"],
            }
        )
    return found


def main() -> None:
    """Entry point of `python -m benchmarks.ways`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e4, help="start no run after this time")
    parser.add_argument("--ways", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    path, until = results_folder() / "ways.jsonl", time.monotonic() + 60 * args.minutes
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    for seed in SEEDS:
        for method in args.ways:
            if method == "zero-shot" and seed:
                continue  # zero-shot does not depend on the seed
            done = any((row["way"], row["seed"]) == (method, seed) for row in rows)
            if done or time.monotonic() > until:
                continue
            say(f"{method}, seed {seed}")
            command = [sys.executable, "-m", "benchmarks.ways", "--one", method, str(seed)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    results = compare_methods(rows)
    for row in results:
        value, seconds = row["accuracy"], max(row["training_cpu_seconds"])
        note = "" if row["way"] == "zero-shot" else ", not significantly better than both baselines"
        if row["beats_both"]:
            note = ", better than zero-shot and majority class"
        print(
            f"{row['way']:12}{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}), "
            f"{row['seeds']} seeds{note}; {seconds:.0f} CPU s"
            f"{' (over five minutes)' if seconds > CPU_LIMIT else ''}, {row['peak_bytes'] / 2**30:.2f} "
            f"GiB, {row['trained_parameters']:,} trained"
        )
    print(f"written: {record('ways', {'results': results})}")


if __name__ == "__main__":
    main()
