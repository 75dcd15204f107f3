"""Training tokens per second beside transformers and litgpt: one architecture, the same weights.

    python -m benchmarks.throughput [--rounds 5] [--shapes small smollm2] [--compile]

Every library's own Llama, filled with the same weights (the first losses must agree), trains on the
same tokens with torch's fused AdamW, in turn within every round, in float32 and bfloat16 autocast,
on one thread and on all. "small" is 6 layers of width 256 with 4,096 tokens of vocabulary at 256
positions, "smollm2" 4 of SmolLM2-135M's 30 layers with its 49,152 tokens at 512. The ceiling is a
large matrix product in the same precision on the same threads; a step of each is profiled. Writes
benchmarks/results/DEVICE/throughput.json, with --compile throughput-compiled.json. litgpt takes
part where it is installed (`pip install --no-deps litgpt lightning lightning-utilities torchmetrics
jsonargparse`).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from benchmarks.peers import litgpt_llama, transformers_llama
from benchmarks.record import profile, record
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
        f"{row['shape']:8}{row['threads']} threads {row['precision']:9}{row['way']:13}{speed} of "
        f"{peak / 1e9:.0f} GFLOP/s, time over ours {ratios}",
        flush=True,
    )


def rows_of(name: str, rounds: int, compiled: bool) -> list[dict]:
    """Measure one shape: every way in both precisions on one thread and on all."""
    shape, vocabulary, batch = SHAPES[name], VOCABULARY[name], BATCH[name]
    x, y = torch.randint(0, vocabulary, (2, batch, shape.max_seq_len))
    own = build_model(shape, vocabulary).init_weights(0)
    made: dict[str, tuple[nn.Module, Loss]] = {"ours": (own, lambda x, y: own(x, targets=y) / y.numel())}
    state = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    theirs = transformers_llama(shape, state)
    made["transformers"] = theirs, lambda x, y: theirs(x, labels=y, shift_labels=y).loss
    try:
        from litgpt.utils import chunked_cross_entropy

        lit = litgpt_llama(shape, state)
        made["litgpt"] = lit, lambda x, y: chunked_cross_entropy(lit(x), y, chunk_size=0)
    except ImportError as error:
        say(f"without litgpt: {error}")
    ways = {}
    for way, (model, loss) in made.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ways[way] = (torch.compile(loss, dynamic=False) if compiled else loss, optimizer)
    first = {way: loss(x, y).item() for way, (loss, _) in ways.items()}
    if max(first.values()) - min(first.values()) > 1e-4:
        raise SystemExit(f"not the same model: first losses are {first}")
    tokens = y.numel()
    flops = training_flops(own, tokens, tokens, shape.max_seq_len)
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for bfloat16 in (False, True):
            peak = ceiling(torch.bfloat16 if bfloat16 else torch.float32)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for loss, optimizer in ways.values():
                step(loss, optimizer, x, y, bfloat16)
            for _ in range(rounds):
                for way, (loss, optimizer) in ways.items():
                    started = time.perf_counter()
                    for _ in range(STEPS[name]):
                        step(loss, optimizer, x, y, bfloat16)
                    times[way].append((time.perf_counter() - started) / STEPS[name])
            for way, seconds in times.items():
                median = statistics.median(seconds)
                ratios = sorted(b / a for a, b in zip(times["ours"], seconds, strict=True))
                row = {
                    "shape": name,
                    "way": way,
                    "compiled": compiled,
                    "threads": threads,
                    "precision": "bfloat16" if bfloat16 else "float32",
                    "tokens_per_second": tokens / median,
                    "share_of_ceiling": flops / median / peak,
                    "time_over_ours": statistics.median(ratios),
                    "ratios": ratios,
                    "seconds": seconds,
                    "profile": profile(partial(step, *ways[way], x, y, bfloat16)),
                }
                rows.append(row)
                show(row, peak)
    return rows


def main() -> None:
    """Entry point of `python -m benchmarks.throughput`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--compile", action="store_true", help="every way with torch.compile")
    args = parser.parse_args()
    rows = [row for name in args.shapes for row in rows_of(name, args.rounds, args.compile)]
    shapes = {name: SHAPES[name].model_dump() for name in args.shapes}
    name = "throughput-compiled" if args.compile else "throughput"
    print(f"written: {record(name, {'shapes': shapes, 'rows': rows})}")


if __name__ == "__main__":
    main()
