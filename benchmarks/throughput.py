"""Training tokens per second beside transformers and litgpt: one architecture, the same weights.

    python -m benchmarks.throughput [--rounds 7] [--compile]

Every library's own Llama, filled with the same weights (the first losses must agree), trains on the
same tokens with torch's fused AdamW, in turn within every round, in float32 and bfloat16 autocast,
on one thread and on all. The ceiling is a large matrix product in the same precision on the same
threads. Writes benchmarks/results/DEVICE/throughput.json. litgpt takes part where it is installed
(`pip install --no-deps litgpt lightning lightning-utilities torchmetrics jsonargparse`).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from benchmarks.peers import litgpt_llama, transformers_llama
from benchmarks.record import record
from configs.console import say
from configs.schema import ModelConfig
from model.transformer import Transformer

SHAPE = ModelConfig(
    dim=256, n_layers=6, n_heads=4, n_kv_heads=4, head_dim=64, hidden_dim=704, max_seq_len=256,
    tie_embeddings=False,
)  # fmt: skip
VOCABULARY, BATCH, STEPS = 4096, 8, 4
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def step(loss: Loss, optimizer: torch.optim.Optimizer, x, y, bfloat16: bool) -> float:
    """One training step on one batch; returns the loss before it."""
    with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
        value = loss(x, y)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()
    return value.item()


def ceiling(dtype: torch.dtype) -> float:
    """FLOP/s of a 2048 x 2048 x 2048 product, the best of five."""
    a = torch.randn(2048, 2048, dtype=dtype)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def show(row: dict, peak: float) -> None:
    """One line of the terminal's table."""
    speed = f"{row['tokens_per_second']:8,.0f} tokens/s, {row['share_of_ceiling']:4.0%}"
    ratios = f"{row['time_over_ours']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})"
    print(
        f"{row['threads']} threads {row['precision']:9}{row['way']:22}{speed} of "
        f"{peak / 1e9:.0f} GFLOP/s, time over ours {ratios}"
    )


def main() -> None:
    """Entry point of `python -m benchmarks.throughput`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    args = parser.parse_args()
    x, y = torch.randint(0, VOCABULARY, (2, BATCH, SHAPE.max_seq_len))
    own = Transformer(SHAPE, VOCABULARY).init_weights(0)
    made: dict[str, tuple[nn.Module, Loss]] = {
        "ours": (own, lambda x, y: own(x, targets=y) / y.numel())
    }
    state = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    theirs = transformers_llama(SHAPE, state)
    made["transformers"] = theirs, lambda x, y: theirs(x, labels=y, shift_labels=y).loss
    try:
        from litgpt.utils import chunked_cross_entropy

        lit = litgpt_llama(SHAPE, state)
        made["litgpt"] = lit, lambda x, y: chunked_cross_entropy(lit(x), y, chunk_size=0)
    except ImportError as error:
        say(f"without litgpt: {error}")
    ways = {}
    for name, (model, loss) in made.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ways[name] = (loss, optimizer)
        if args.compile:
            ways[f"{name} compiled"] = (torch.compile(loss, dynamic=False), optimizer)
    first = {name: loss(x, y).item() for name, (loss, _) in ways.items()}
    if max(first.values()) - min(first.values()) > 1e-4:
        raise SystemExit(f"not the same model: first losses are {first}")
    tokens = BATCH * SHAPE.max_seq_len
    flops = own.training_flops(tokens, tokens, SHAPE.max_seq_len)
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for bfloat16 in (False, True):
            peak = ceiling(torch.bfloat16 if bfloat16 else torch.float32)
            times: dict[str, list[float]] = {name: [] for name in ways}
            for loss, optimizer in ways.values():
                step(loss, optimizer, x, y, bfloat16)
            for _ in range(args.rounds):
                for name, (loss, optimizer) in ways.items():
                    started = time.perf_counter()
                    for _ in range(STEPS):
                        step(loss, optimizer, x, y, bfloat16)
                    times[name].append((time.perf_counter() - started) / STEPS)
            for name, seconds in times.items():
                median = statistics.median(seconds)
                ratios = sorted(b / a for a, b in zip(times["ours"], seconds, strict=True))
                row = {
                    "way": name,
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
    print(f"written: {record('throughput', {'model': SHAPE.model_dump(), 'rows': rows})}")


if __name__ == "__main__":
    main()
