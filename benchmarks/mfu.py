"""Training tokens per second and model FLOPs utilisation (MFU), against the same model in plain torch.

    python -m benchmarks.mfu [--recipe configs/gpt2-124m.toml] [--batch 16] [--rounds 5]

"ours" is the model with our kernels, "sdpa" the same weights with torch's operators and
scaled_dot_product_attention, "plain" the same with the full score matrix in memory. Each is timed in
eager mode and compiled (ours block by block as in the training loop, the others as a whole). All
take the same steps on the same batch in bfloat16 autocast with torch's fused AdamW, in turn within
every round; their first losses must agree. The reference peaks are the vendor's, if known, and a
large matrix product measured on this device. Writes benchmarks/results/DEVICE/mfu.json.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from unittest.mock import patch

import torch
import torch.nn.functional as F

import model.norm
import model.scratch
import model.transformer
from benchmarks.record import record, time_in_turn
from cli.recipes import load
from configs.schema import Recipe
from kernels.bench import measure_ceilings, synchronized_clock
from kernels.mlp.reference import relu2_reference, swiglu_reference
from kernels.norm.reference import rms_norm_reference
from kernels.rope.reference import rope_reference
from model.build import build_model
from model.flops import training_flops
from model.transformer import Transformer
from train.forward import set_block_forward
from train.metrics import peak_memory
from train.optim import build_adamw
from train.profiler import peak_flops

STEPS = 4  # per turn
LOSS_TOLERANCE = 2e-2  # nats between first losses (about 10 nats) in bfloat16


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_) -> torch.Tensor:
    """`model.fused.attend` without a cache, with torch's SDPA, which selects the backend."""
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).transpose(1, 2)


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_) -> torch.Tensor:
    """Same as `sdpa`, with all scores in memory, like nanoGPT's "slow attention"."""
    group, T = q.shape[2] // k.shape[2], q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, *(x.repeat_interleave(group, 2) for x in (k, v))))
    hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def project(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`model.fused.project_and_score` with all logits in memory."""
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum")


@contextmanager
def use_torch_operators(attend: Callable) -> Iterator[None]:
    """Replace our kernels by torch's operators and this attention in every model in this context."""
    others = {"rope": rope_reference, "swiglu": swiglu_reference, "project_and_score": project}
    with (
        patch.multiple(model.transformer, attend=attend, **others),
        patch.multiple(model.scratch, relu2=relu2_reference),
        patch.multiple(model.norm, rms_norm=rms_norm_reference),
    ):
        yield


class Implementation:
    """A copy of the model with its optimiser and one implementation of the training step."""

    def __init__(self, net: Transformer, attend: Callable | None, compiled: bool, recipe: Recipe):
        self.net = copy.deepcopy(net)
        self.attend = attend
        self.optimizer = build_adamw(dict(self.net.named_parameters()), recipe.train)
        self.loss: Callable = self.net
        if compiled and attend is None:
            set_block_forward(self.net, compiled=True, checkpointing=False)
        elif compiled:
            self.loss = torch.compile(self.net)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One training step on (B, T) ids; the mean loss before it."""
        with use_torch_operators(self.attend) if self.attend else nullcontext():
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = self.loss(x, targets=y) / y.numel()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def measure(recipe: Recipe, vocabulary: int, batch: int, rounds: int) -> list[dict]:
    """One row per implementation. Raises SystemExit if their first losses differ."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build_model(recipe.model, vocabulary).init_weights(0).to(device)
    x, y = torch.randint(0, vocabulary, (2, batch, recipe.model.max_seq_len), device=device)
    flops = training_flops(net, y.numel(), y.numel(), recipe.model.max_seq_len)
    attentions: dict[str, Callable | None] = {"ours": None, "sdpa": sdpa, "plain": plain}
    implementations, first, peaks = {}, {}, {}
    for compiled in (False, True):
        for name, attend in attentions.items():
            label = f"{name}, compiled" if compiled else name
            held = 0  # memory of the other implementations' copies
            if device.type == "cuda":
                held = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            implementations[label] = Implementation(net, attend, compiled, recipe)
            first[label] = implementations[label].step(x, y).item()
            implementations[label].step(x, y)
            peaks[label] = peak_memory(device) - held
    if max(first.values()) - min(first.values()) > LOSS_TOLERANCE:
        raise SystemExit(f"the implementations are not the same model: first losses are {first}")
    steps = {label: partial(implementation.step, x, y) for label, implementation in implementations.items()}
    times = time_in_turn(steps, rounds, STEPS, partial(synchronized_clock, device))
    best, makers, rows = measure_ceilings(device, torch.bfloat16)[0], peak_flops(device, True), []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        ratios = [b / a for a, b in zip(times["ours, compiled"], seconds, strict=True)]
        rows.append(
            {
                "way": name,
                "tokens_per_second": y.numel() / median,
                "mfu": makers and flops / median / makers,
                "share_of_product": flops / median / best,
                "time_over_ours_compiled": statistics.median(ratios),
                "ratios": sorted(ratios),
                "seconds": seconds,
                # On a CPU the peak is that of the process, which holds all implementations.
                "peak_bytes": peaks[name] if device.type == "cuda" else None,
                "first_loss": first[name],
            }
        )
    return rows


def main() -> None:
    """Entry point of `python -m benchmarks.mfu`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="configs/gpt2-124m.toml")
    parser.add_argument("--batch", type=int, default=16, help="windows in a step")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    recipe = load(Recipe, args.recipe)
    rows = measure(recipe, recipe.tokenizer.vocab_size, args.batch, args.rounds)
    for row in rows:
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%} MFU, "
        low, high = row["ratios"][0], row["ratios"][-1]
        print(
            f"{row['way']:16}{row['tokens_per_second']:10,.0f} tokens/s, {mfu}"
            f"{row['share_of_product']:.1%} of a large product, time relative to ours compiled "
            f"{row['time_over_ours_compiled']:.2f} ({low:.2f} to {high:.2f})"
        )
    result = {
        "recipe": args.recipe,
        "batch": args.batch,
        "rows": rows,
        "triton": version("triton") if torch.cuda.is_available() else None,
    }
    print(f"written: {record('mfu', result)}")


if __name__ == "__main__":
    main()
