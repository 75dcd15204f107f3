"""Tokens per second of `train.pretrain` itself on a GPU, with AdamW and with Muon.

    python -m benchmarks.gpu_training [--recipe configs/gpt2-124m.toml] [--corpus python-stdlib] [--steps 60]
        [--micro-batch 32] [--windows 64 512]

Runs the command as a user does, with the first number of windows a step for AdamW and the second for
Muon, and reads the speed of every step from metrics.jsonl; the first third warms up. The speed is set beside the
fastest step of benchmarks.mfu recorded for this device. Muon's X X^T is timed beside torch.bmm, in turn;
the kernels of norm, rope and mlp, which an eager step uses, by `kernels.bench`. On a CPU, with a small
recipe, it is a trial of the script. Writes benchmarks/results/DEVICE/gpu-training.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.record import record, results_folder, time_in_turn
from cli.console import say
from cli.recipes import load
from configs.schema import Recipe
from kernels.bench import synchronized_clock
from kernels.newton_schulz import symmetric_product

EAGER = ("norm", "rope", "swiglu", "relu2")  # cases of kernels.bench


def train(args: argparse.Namespace, optimizer: str, windows: int, folder: Path) -> dict:
    """Run `train.pretrain`; its median tokens/s and MFU after the first third of the steps."""
    run = folder / optimizer
    changes = {
        "data.corpus": args.corpus,
        "train.optimizer": optimizer,
        "train.steps": args.steps,
        "train.batch-size": windows,
        "train.micro-batch-size": min(windows, args.micro_batch),
        "train.eval-every": 10**6,
        "train.save-every": 10**6,
        "train.wandb": "off",
        "sample.num-samples": 1,  # after the last step, in float32 on the CPU
        "sample.max-new-tokens": 1,
    }
    options = [f"--{name}={value}" for name, value in changes.items()]
    subprocess.run([sys.executable, "-m", "train.pretrain", args.recipe, "--run-dir", str(run), *options], check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row][args.steps // 3 :]
    speeds = [row["tokens_per_second"] for row in steps]
    return {
        "optimizer": optimizer,
        "windows": windows,
        "micro_batch": min(windows, args.micro_batch),
        "tokens_per_second": statistics.median(speeds),
        "quartiles": statistics.quantiles(speeds),
        "mfu": statistics.median(row["mfu"] or 0.0 for row in steps),
        "last_loss": steps[-1]["loss"],
    }


def fastest_step() -> float | None:
    """Tokens/s of the fastest step of benchmarks.mfu on this device; None if none is recorded."""
    paths = results_folder().glob("mfu-*.json")
    rows = [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))["variants"]]
    return max((row["tokens_per_second"] for row in rows if "tokens_per_second" in row), default=None)


def time_products(recipe: Recipe, rounds: int = 20) -> dict[str, list[float]]:
    """Seconds of X X^T for the stacked matrices of an MLP, by the kernel and by torch, in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = recipe.model
    x = torch.randn(2 * model.n_layers, model.dim, model.hidden_dim, device=device, dtype=torch.bfloat16)
    works = {"symmetric_product": lambda: symmetric_product(x), "torch.bmm": lambda: torch.bmm(x, x.mT)}
    times = time_in_turn(works, rounds + 2, 1, partial(synchronized_clock, device))
    return {name: seconds[2:] for name, seconds in times.items()}  # the first two warm up


def main() -> None:
    """Entry point of `python -m benchmarks.gpu_training`."""
    parser = argparse.ArgumentParser(description="tokens per second of train.pretrain")
    parser.add_argument("--recipe", default="configs/gpt2-124m.toml")
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--windows", type=int, nargs=2, default=[64, 512], metavar=("ADAMW", "MUON"))
    args = parser.parse_args()
    best = fastest_step()
    found: dict = {"recipe": args.recipe, "steps": args.steps, "products": time_products(load(Recipe, args.recipe))}
    ratio = statistics.median(b / a for a, b in zip(*found["products"].values(), strict=True))
    say(f"X X^T: torch.bmm takes {ratio:.2f} times as long as symmetric_product")
    found["rows"] = []
    with tempfile.TemporaryDirectory() as folder:
        for optimizer, windows in zip(("adamw", "muon"), args.windows, strict=True):
            row = train(args, optimizer, windows, Path(folder))
            row["share_of_fastest_step"] = row["tokens_per_second"] / best if best else None
            beside = f", {row['share_of_fastest_step']:.0%} of the fastest step" if best else ""
            say(f"{optimizer}: {row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.1%}{beside}")
            found["rows"].append(row)
            path = record("gpu-training", found)
    print(f"written: {path}")
    # Not in kernels/results, whose record has all cases.
    folder = str(results_folder() / "eager-kernels")
    subprocess.run([sys.executable, "-m", "kernels.bench", "--case", *EAGER, "--out", folder], check=True)


if __name__ == "__main__":
    main()
