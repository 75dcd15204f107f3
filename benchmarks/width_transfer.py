"""Transfer of the best learning rate across model widths, with and without muP.

    python -m benchmarks.width_transfer

Trains three widths with seven learning rates and three seeds on folk tunes with AdamW, with the
same rate for all widths and with the rate scaled by width (`model.base_dim`, muP: Yang et al. 2022,
arXiv:2203.03466). The score is the mean training loss of the last fifth of the steps. The best rate
of a width and seed is the vertex of the parabola through the lowest loss and its neighbours. Writes
benchmarks/results/DEVICE/width_transfer.json and .png. Takes 15 minutes on two cores.
"""

import argparse
import functools
import math
import multiprocessing
import os
import statistics
from itertools import product
from pathlib import Path

import torch

from benchmarks.record import record
from cli.console import say
from cli.recipes import load
from configs.schema import ModelConfig, Recipe
from data.loader import Loader
from model.build import build_model
from model.transformer import IGNORE
from train.optim import build_optimizers, learning_rate
from train.pretrain import load_data

WIDTHS = (64, 128, 256)
PARAMETRISATIONS = {"one rate for all widths": 0, "scaled by width (muP)": WIDTHS[-1]}
OCTAVES = (-10, -9, -8, -7, -6, -5, -4)  # log2 of the learning rate
STEPS, BATCH, LENGTH = 120, 4, 128
SEEDS = (0, 1, 2)


@functools.cache
def load_sets():
    """The recipe, its tokenizer and its windows; loaded once per process."""
    torch.set_num_threads(1)  # one process per core
    recipe = load(Recipe, "configs/tiny.toml", ["--model.max-seq-len", str(LENGTH)])
    return recipe, load_data(recipe)


def final_loss(case: tuple[int, int, int, int]) -> float:
    """Mean training loss (nats per token) of the last fifth of the steps; infinite if it diverged."""
    base, width, octave, seed = case
    recipe, (tokenizer, train_set, _) = load_sets()
    settings = {
        "learning_rate": 2.0**octave,
        "schedule": "linear",
        "warmup": 0.1,
        "min_lr_ratio": 0.0,
        "optimizer": "adamw",
    }
    config = recipe.train.model_copy(update=settings)
    heads = width // 32
    shape = ModelConfig(
        dim=width,
        n_layers=4,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=32,
        hidden_dim=4 * width,
        max_seq_len=LENGTH,
        activation="relu2",
        base_dim=base,
    )
    model = build_model(shape, tokenizer.vocab_size).init_weights(seed)
    parameters = dict(model.named_parameters())
    (optimizer,) = build_optimizers(parameters, config, shape.width_ratio)
    loader, losses = Loader(len(train_set), BATCH, seed), []
    for step in range(STEPS):
        inputs, targets = train_set.batch(loader.next())
        loss = model(inputs, targets=targets) / (targets != IGNORE).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate((step + 1) / STEPS, config) * group.get("scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    mean = statistics.fmean(losses[-STEPS // 5 :])
    return mean if math.isfinite(mean) else math.inf


def best_octave(losses: list[float]) -> float:
    """log2 of the rate at the vertex of the parabola through the lowest loss and its neighbours."""
    at = min(range(len(losses)), key=losses.__getitem__)
    if at in (0, len(losses) - 1):
        return OCTAVES[at]
    left, middle, right = losses[at - 1 : at + 2]
    return OCTAVES[at] + 0.5 * (left - right) / (left - 2 * middle + right)


def format_octaves(octaves: list[float]) -> str:
    """Mean and range over the seeds."""
    return f"{statistics.fmean(octaves):+.2f} ({min(octaves):+.2f} to {max(octaves):+.2f}) octaves"


def plot(losses: dict[str, dict[int, list[list[float]]]], path: Path) -> None:
    """Plot mean loss and range over seeds against the rate: one curve per width, one panel per rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, curves) in zip(panels, losses.items(), strict=True):
        for width, seeds in curves.items():
            columns = list(zip(*seeds, strict=True))
            means = [statistics.fmean(column) for column in columns]
            (line,) = axes.plot(OCTAVES, means, ".-", label=f"width {width}")
            lows, highs = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(OCTAVES, lows, highs, color=line.get_color(), alpha=0.15)
            best = statistics.fmean(map(best_octave, seeds))
            axes.axvline(best, color=line.get_color(), linestyle=":")
        axes.set_title(name)
        axes.set_xlabel("log2 of the learning rate (dotted: the best)")
        axes.legend()
    panels[0].set_ylabel("training loss at the end (nats per token)")
    every = [x for curves in losses.values() for seeds in curves.values() for s in seeds for x in s]
    panels[0].set_ylim(min(every) - 0.05, min(every) + 1.2)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point of `python -m benchmarks.width_transfer`."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    cases = list(product(PARAMETRISATIONS.values(), WIDTHS, OCTAVES, SEEDS))
    load_sets()  # prepare the data before the workers start
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        # The slowest cases (widest models) first, so that workers finish at about the same time.
        order = sorted(cases, key=lambda case: -case[1])
        found = dict(zip(order, pool.map(final_loss, order, chunksize=1), strict=True))
    losses: dict[str, dict[int, list[list[float]]]] = {}
    best: dict[str, dict[int, list[float]]] = {}
    for name, base in PARAMETRISATIONS.items():
        losses[name] = {
            width: [[found[base, width, octave, seed] for octave in OCTAVES] for seed in SEEDS] for width in WIDTHS
        }
        best[name] = {width: [*map(best_octave, seeds)] for width, seeds in losses[name].items()}
        for width, octaves in best[name].items():
            say(f"{name:24} width {width:4}  best log2 rate {format_octaves(octaves)}")
        narrow, wide = best[name][WIDTHS[0]], best[name][WIDTHS[-1]]
        moved = [there - here for here, there in zip(narrow, wide, strict=True)]
        say(f"{name:24} from width {WIDTHS[0]} to {WIDTHS[-1]} the best rate moves by {format_octaves(moved)}")
    about = {
        "steps": STEPS,
        "tokens_per_step": BATCH * LENGTH,
        "seeds": SEEDS,
        "log2_rates": OCTAVES,
        "losses": losses,
        "best_log2_rate": best,
    }
    path = record("width_transfer", about)
    plot(losses, path.with_suffix(".png"))
    print(f"written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
