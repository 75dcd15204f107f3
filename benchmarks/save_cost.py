"""What saving in the background costs training.

    python -m benchmarks.save_cost

Trains the same model twice in turn, five times over: once without a checkpoint, once with one every
INTERVAL steps, and compares the medians of seconds per step over whole intervals, so that whatever
a checkpoint costs anywhere is in it. Saving in the foreground is timed beside it. Writes
benchmarks/results/save_cost.json.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from configs.schema import ModelConfig, TrainConfig
from data.loader import Loader
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.checkpoint import TrainState
from train.distributed import Ranks
from train.optim import optimizers
from train.saver import Saver

INTERVAL = 50
ROUNDS = 5
MODEL = ModelConfig(
    dim=256, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=64, hidden_dim=768, max_seq_len=256
)
VOCABULARY = 8192


def main() -> None:
    """Entry point of `python -m benchmarks.save_cost`."""
    config = TrainConfig()
    model = Transformer(MODEL, VOCABULARY).init_weights(0)
    parameters = dict(model.named_parameters())
    tokenizer = Tokenizer.load(next(Path("cache/tokenizers").glob("*.json")))
    tokens = torch.randint(0, VOCABULARY, (4, MODEL.max_seq_len))
    chosen = optimizers(parameters, config)
    with Ranks("cpu") as ranks, tempfile.TemporaryDirectory(dir="cache") as folder:
        state = TrainState(parameters, chosen, Loader(64, 8, 0), tokenizer, "", {})
        saver = Saver(Path(folder), 2, ranks)

        def step() -> None:
            model(tokens, targets=tokens).backward()
            for optimizer in chosen:
                optimizer.step()
                optimizer.zero_grad()
            state.progress.step += 1
            saver.settle(saver.writing, saver.error is not None)

        def interval(way: str) -> float:
            started = time.perf_counter()
            if way != "none":
                saver.save(state, None)
            if way == "foreground":
                saver.wait()
            for _ in range(INTERVAL):
                step()
            seconds = (time.perf_counter() - started) / INTERVAL
            saver.wait()
            return seconds

        interval("none")
        ways = ("none", "background", "foreground")
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way in ways:
                times[way].append(interval(way))
        size = sum(f.stat().st_size for f in Path(folder).glob("checkpoints/*/*"))
    medians = {way: statistics.median(found) for way, found in times.items()}
    result = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.save_cost",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "load_average": os.getloadavg()[0],
        "parameters": model.num_parameters(),
        "checkpoint_bytes": size // 2,
        "interval_steps": INTERVAL,
        "seconds_per_step": times,
        "cost_of_background": medians["background"] / medians["none"] - 1,
        "cost_of_foreground": medians["foreground"] / medians["none"] - 1,
    }
    path = Path(__file__).parent / "results" / "save_cost.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for way in ways:
        spread = ", ".join(f"{1e3 * t:.1f}" for t in sorted(times[way]))
        print(f"{way:12}{1e3 * medians[way]:8.1f} ms per step ({spread})")
    print(f"cost of a checkpoint of {size / 2e6:,.0f} MB every {INTERVAL} steps: "
          f"{result['cost_of_background']:+.1%} in the background, "
          f"{result['cost_of_foreground']:+.1%} in the foreground; written: {path}")  # fmt: skip


if __name__ == "__main__":
    main()
