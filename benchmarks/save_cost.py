"""Cost of saving checkpoints in the background during training.

    python -m benchmarks.save_cost

Trains the same model in intervals of INTERVAL steps, in turn without a checkpoint, with one saved in
the background and with one saved in the foreground at the start of the interval, for ROUNDS rounds.
The cost is the median over rounds of the relative slowdown against the interval without a checkpoint
of the same round, so it includes all side effects. Writes
benchmarks/results/DEVICE/save_cost.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.record import record
from configs.schema import ModelConfig, TrainConfig
from data.loader import Loader
from model.build import build_model
from tokenizer.bpe import Tokenizer
from train.checkpoint import TrainState
from train.distributed import Ranks
from train.optim import build_optimizers
from train.saver import Saver

INTERVAL = 25
ROUNDS = 10
MODEL = ModelConfig(dim=256, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=64, hidden_dim=768, max_seq_len=256)
VOCABULARY = 8192


def main() -> None:
    """Entry point of `python -m benchmarks.save_cost`."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    config = TrainConfig()
    model = build_model(MODEL, VOCABULARY).init_weights(0)
    parameters = dict(model.named_parameters())
    tokenizer = Tokenizer.load(next(Path("cache/tokenizers").glob("*.json")))
    tokens = torch.randint(0, VOCABULARY, (4, MODEL.max_seq_len))
    chosen = build_optimizers(parameters, config)
    with Ranks("cpu") as ranks, tempfile.TemporaryDirectory(dir="cache") as folder:
        state = TrainState(parameters, chosen, Loader(64, 8, 0), tokenizer, "", {})
        saver = Saver(Path(folder), 2, ranks)

        def step() -> None:
            model(tokens, targets=tokens).backward()
            for optimizer in chosen:
                optimizer.step()
                optimizer.zero_grad()
            state.progress.step += 1
            saver.commit_or_discard(saver.is_writing, saver.error is not None)

        def interval(mode: str) -> float:
            started = time.perf_counter()
            if mode != "none":
                saver.save(state, None)
            if mode == "foreground":
                saver.wait()
            for _ in range(INTERVAL):
                step()
            seconds = (time.perf_counter() - started) / INTERVAL
            saver.wait()
            return seconds

        interval("none")
        modes = ("none", "background", "foreground")
        times: dict[str, list[float]] = {mode: [] for mode in modes}
        for _ in range(ROUNDS):
            for mode in modes:
                times[mode].append(interval(mode))
        size = sum(f.stat().st_size for f in Path(folder).glob("checkpoints/*/*"))
    costs = {}
    for mode in modes[1:]:
        ratios = sorted(t / n - 1 for t, n in zip(times[mode], times["none"], strict=True))
        costs[mode] = {"median": statistics.median(ratios), "rounds": ratios}
        low, high = ratios[ROUNDS // 4], ratios[-ROUNDS // 4]
        print(f"{mode}: {costs[mode]['median']:+.1%} (middle half of rounds {low:+.1%} to {high:+.1%})")
    result = {
        "parameters": model.num_parameters(),
        "checkpoint_bytes": size // 2,
        "interval_steps": INTERVAL,
        "seconds_per_step": times,
        "cost": costs,
    }
    step_ms = 1e3 * statistics.median(times["none"])
    print(
        f"a checkpoint of {size / 2e6:,.0f} MB every {INTERVAL} steps of {step_ms:.0f} ms; "
        f"written: {record('save_cost', result)}"
    )


if __name__ == "__main__":
    main()
