"""Training tokens per second against transformers and litgpt: one architecture, the same weights.

    python -m benchmarks.throughput [--rounds 5]

Each library's own Llama, with the same weights (the first losses must agree), trains on the same
tokens with torch's fused AdamW, in turn within every round, in float32 and bfloat16 autocast, with
one thread and with all. "small" has 6 layers of width 256, a vocabulary of 4,096 and 256 positions;
"smollm2" has 4 of the 30 layers of SmolLM2-135M, its vocabulary of 49,152 and 512 positions. The
ceiling is a large matrix product in the same precision with the same threads. Writes
benchmarks/results/DEVICE/throughput.json. litgpt is included if it is installed (`pip install
--no-deps litgpt lightning lightning-utilities torchmetrics jsonargparse`).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.peers import litgpt_llama, transformers_llama
from benchmarks.record import record, time_in_turn
from cli.console import say
from configs.schema import ModelConfig
from model.build import build_model
from model.flops import training_flops

SHAPES = {
    "small": ModelConfig(
        dim=256, n_layers=6, n_heads=4, n_kv_heads=4, head_dim=64, hidden_dim=704, max_seq_len=256, tie_embeddings=False
    ),
    "smollm2": ModelConfig(
        dim=576,
        n_layers=4,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        hidden_dim=1536,
        max_seq_len=512,
        tie_embeddings=False,
    ),
}
VOCABULARY = {"small": 4096, "smollm2": 49152}
BATCH, STEPS = {"small": 8, "smollm2": 2}, {"small": 4, "smollm2": 1}
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def train_step(loss: Loss, optimizer: torch.optim.Optimizer, x, y, bfloat16: bool) -> float:
    """One training step on one batch; returns the loss before the update."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        value = loss(x, y)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()
    return value.item()


def measure_ceiling(dtype: torch.dtype) -> float:
    """FLOP/s of a 2048 x 2048 x 2048 matrix product, the best of five."""
    a = torch.randn(2048, 2048, dtype=dtype)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def show(row: dict, peak: float) -> None:
    """Print one line of the table."""
    speed = f"{row['tokens_per_second']:8,.0f} tokens/s, {row['share_of_ceiling']:4.0%}"
    ratios = f"{row['time_over_ours']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})"
    print(
        f"{row['shape']:8}{row['threads']} threads {row['precision']:9}{row['way']:13}{speed} of "
        f"{peak / 1e9:.0f} GFLOP/s, time relative to ours {ratios}",
        flush=True,
    )


def measure_shape(name: str, rounds: int) -> list[dict]:
    """Measure one shape: every library in both precisions with one thread and with all."""
    shape, vocabulary, batch = SHAPES[name], VOCABULARY[name], BATCH[name]
    x, y = torch.randint(0, vocabulary, (2, batch, shape.max_seq_len))
    own = build_model(shape, vocabulary).init_weights(0)
    losses: dict[str, Loss] = {"ours": lambda x, y: own(x, targets=y) / y.numel()}
    state = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    theirs = transformers_llama(shape, state)
    losses["transformers"] = lambda x, y: theirs(x, labels=y, shift_labels=y).loss
    models = [own, theirs]
    try:
        from litgpt.utils import chunked_cross_entropy

        lit = litgpt_llama(shape, state)
        losses["litgpt"] = lambda x, y: chunked_cross_entropy(lit(x), y, chunk_size=0)
        models.append(lit)
    except ImportError as error:
        say(f"litgpt is skipped: {error}")
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in models]
    first = {library: loss(x, y).item() for library, loss in losses.items()}
    if max(first.values()) - min(first.values()) > 1e-4:
        raise SystemExit(f"the libraries do not compute the same model: first losses are {first}")
    tokens = y.numel()
    flops = training_flops(own, tokens, tokens, shape.max_seq_len)
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for bfloat16 in (False, True):
            peak = measure_ceiling(torch.bfloat16 if bfloat16 else torch.float32)
            steps = {
                library: partial(train_step, loss, optimizer, x, y, bfloat16)
                for (library, loss), optimizer in zip(losses.items(), optimizers, strict=True)
            }
            for step in steps.values():  # warm-up
                step()
            times = time_in_turn(steps, rounds, STEPS[name])
            for library, seconds in times.items():
                median = statistics.median(seconds)
                ratios = sorted(b / a for a, b in zip(times["ours"], seconds, strict=True))
                row = {
                    "shape": name,
                    "way": library,
                    "threads": threads,
                    "precision": "bfloat16" if bfloat16 else "float32",
                    "tokens_per_second": tokens / median,
                    "share_of_ceiling": flops / median / peak,
                    "time_over_ours": statistics.median(ratios),
                    "ratios": ratios,
                    "seconds": seconds,
                }
                rows.append(row)
                show(row, peak)
    return rows


def main() -> None:
    """Entry point of `python -m benchmarks.throughput`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = [row for name in SHAPES for row in measure_shape(name, rounds)]
    shapes = {name: shape.model_dump() for name, shape in SHAPES.items()}
    print(f"written: {record('throughput', {'shapes': shapes, 'rows': rows})}")


if __name__ == "__main__":
    main()
