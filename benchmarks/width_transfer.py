"""Does the best learning rate stay where it is when a model grows wider?

    python -m benchmarks.width_transfer

Trains three widths at six learning rates on folk tunes, with the rate as it is and scaled by width
(`model.base_dim`, muP), and records the mean training loss of the last fifth of the steps. Writes
benchmarks/results/width_transfer.json and .png. About half an hour on two cores.
"""

import json
import platform
import statistics
from datetime import date
from pathlib import Path

import torch

from configs.cli import load
from configs.console import say
from configs.schema import ModelConfig, Recipe
from data.loader import Loader
from model.transformer import Transformer
from train.optim import learning_rate, optimizers
from train.pretrain import prepared

WIDTHS = (64, 128, 256)
RATES = tuple(2.0**-k for k in (10, 9, 8, 7, 6, 5))
STEPS, BATCH, LENGTH = 120, 4, 128
SEEDS = (0,)


def final_loss(recipe: Recipe, sets, width: int, rate: float, base: int, seed: int) -> float:
    """Mean training loss of the last fifth of a short run; infinite where it is lost."""
    tokenizer, train_set, _ = sets
    config = recipe.train.model_copy(
        update={"learning_rate": rate, "schedule": "linear", "warmup": 0.1, "min_lr_ratio": 0.0}
    )
    shape = ModelConfig(
        dim=width, n_layers=4, n_heads=width // 32, n_kv_heads=width // 32, head_dim=32,
        hidden_dim=4 * width, max_seq_len=LENGTH, activation="relu2", base_dim=base,
    )  # fmt: skip
    model = Transformer(shape, tokenizer.vocab_size).init_weights(seed)
    parameters = dict(model.named_parameters())
    (optimizer,) = optimizers(parameters, config, shape.width_ratio)
    loader, losses = Loader(len(train_set), BATCH, seed), []
    for step in range(STEPS):
        inputs, targets = train_set.batch(loader.next())
        loss = model(inputs, targets=targets) / (targets >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate((step + 1) / STEPS, config) * group.get("scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    mean = statistics.fmean(losses[-STEPS // 5 :])
    return mean if mean == mean else float("inf")


def plot(results: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Loss against learning rate, a curve per width, a panel per way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (way, curves) in zip(
        figure.subplots(1, 2, sharey=True), results.items(), strict=True
    ):
        for width, losses in curves.items():
            (line,) = axes.plot(RATES, losses, ".-", label=f"width {width}")
            best = min(range(len(RATES)), key=losses.__getitem__)
            axes.plot(RATES[best], losses[best], "o", color=line.get_color(), markersize=10)
        axes.set_xscale("log", base=2)
        axes.set_title(way)
        axes.set_xlabel("learning rate")
        axes.legend()
    figure.axes[0].set_ylabel("training loss at the end (nats per token)")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point of `python -m benchmarks.width_transfer`."""
    recipe = load(Recipe, "configs/tiny.toml", ["--model.max-seq-len", str(LENGTH)])
    sets = prepared(recipe)
    results: dict[str, dict[int, list[float]]] = {}
    for way, base in (("one rate", 0), ("scaled by width (muP)", WIDTHS[0])):
        results[way] = {}
        for width in WIDTHS:
            losses = [
                statistics.fmean(final_loss(recipe, sets, width, r, base, s) for s in SEEDS)
                for r in RATES
            ]
            results[way][width] = losses
            best = RATES[losses.index(min(losses))]
            shown = " ".join(f"{loss:.3f}" for loss in losses)
            say(f"{way:22} width {width:4}  {shown}  best rate {best:.4f}")
    path = Path(__file__).parent / "results" / "width_transfer.json"
    about = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.width_transfer",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "steps": STEPS,
        "tokens_per_step": BATCH * LENGTH,
        "seeds": SEEDS,
        "rates": RATES,
        "losses": results,
    }
    path.write_text(json.dumps(about, indent=2) + "\n")
    plot(results, path.with_suffix(".png"))
    print(f"written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
