"""Time of a training step of the same model, with one thing changed at a time.

    python -m benchmarks.mfu [--group anatomy] [--recipe configs/gpt2-124m.toml] [--rows 32] [--rounds 5]

Every variant takes the same steps (forward, backward, gradient clipping, fused AdamW) on the same
batch in bfloat16 autocast, in turn within every round. The baseline is our step: our attention and
loss, the whole model compiled. A variant differs from it in what its name says; "torch" is the same
model with SDPA and torch's loss. `--group` selects variants (see mfu_variants.py). nanoGPT's model is added
with `--nanogpt FOLDER`, litgpt's if it is installed. First losses must agree, except of those two. A variant that
fails is recorded with its error, and the others go on.

Per variant: tokens per second, MFU (of the vendor's peak, if known), the time over the baseline's
(median and range over rounds), and on a GPU, from torch's profiler: the share of the time in which
the GPU works, launches and host syncs per step, and the time until the host has enqueued a step.
Writes benchmarks/results/DEVICE/mfu-GROUP.json, after every round.
"""

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.mfu_variants import GROUPS, VARIANTS, Variant, applied, prepare_mask
from benchmarks.peers import LitGPT, NanoGPT
from benchmarks.record import record, time_in_turn
from cli.recipes import load
from configs.schema import Recipe
from kernels.bench import synchronized_clock
from model.build import build_model
from model.flops import training_flops
from model.transformer import Transformer
from train.forward import set_forward
from train.metrics import peak_memory
from train.optim import build_adamw, clip_gradients, skip_update_unless
from train.profiler import peak_flops

STEPS = 4  # per turn
LOSS_TOLERANCE = 2e-2  # nats between first losses (about 10 nats) in bfloat16


class Implementation:
    """A copy of a model with its optimiser, stepped as one variant says."""

    def __init__(self, net: torch.nn.Module, variant: Variant, recipe: Recipe):
        self.net, self.variant = copy.deepcopy(net), variant
        # torch.compile guards the class of a model but not the methods that a variant patches: with a class
        # of its own, a variant does not run the code that was compiled for another.
        self.net.__class__ = type(type(net).__name__, (type(net),), {})
        self.parameters = dict(self.net.named_parameters())
        self.optimizer = build_adamw(self.parameters, recipe.train)
        if variant.attention == "flex":
            prepare_mask(recipe.model.max_seq_len, next(iter(self.parameters.values())).device)
        if isinstance(net, Transformer) and not variant.graph:
            set_forward(self.net, compiled=variant.extent)
        elif variant.extent:
            self.net.forward = torch.compile(
                self.net.forward,
                dynamic=False,
                fullgraph=isinstance(net, Transformer),
                mode="reduce-overhead" if variant.graph else None,
            )

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One training step on (B, T) ids; the mean loss before it, on the device."""
        with applied(self.variant):
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = self.net(x, targets=y) / y.numel()
            loss.backward()
        if self.variant.clip_in_update:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
            self.optimizer.grad_scale = norm.clamp(min=1.0)  # type: ignore[attr-defined]
        else:
            norm = clip_gradients(self.parameters, 1.0)
        skip_update_unless(norm.isfinite(), self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def anatomy(step: Callable[[], object], device: torch.device) -> dict:
    """What a step consists of on a GPU, from one profile of STEPS steps; empty on a CPU."""
    if device.type != "cuda":
        return {}
    started = synchronized_clock(device)
    for _ in range(STEPS):
        step()
    enqueued = time.perf_counter() - started
    wall = synchronized_clock(device) - started
    with torch.profiler.profile(acc_events=True) as profile:
        for _ in range(STEPS):
            step()
    events = [event for event in profile.events() if not event.is_user_annotation]  # spans of the optimiser
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end) for event in on_gpu)
    busy, end = 0.0, float("-inf")
    for begin, finish in spans:
        busy += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    names = [event.name for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    by_kernel: dict[str, float] = defaultdict(float)
    for event in on_gpu:
        by_kernel[event.name[:80]] += (event.time_range.end - event.time_range.start) / STEPS / 1e6
    return {
        "wall_seconds": wall / STEPS,
        "enqueue_seconds": enqueued / STEPS,
        "gpu_busy_seconds": busy / STEPS / 1e6,
        "gpu_busy_share": busy / 1e6 / wall,
        "launches": sum("LaunchKernel" in name or "GraphLaunch" in name for name in names) / STEPS,
        "syncs": max(0, sum("Synchronize" in name for name in names) - 1) / STEPS,  # one is the profiler's
        "kernels": dict(sorted(by_kernel.items(), key=lambda item: -item[1])[:25]),
    }


def build(recipe: Recipe, vocab_size: int, names: list[str], nanogpt: Path | None) -> dict[str, Implementation]:
    """The chosen variants of one model, and the models of others that are installed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build_model(recipe.model, vocab_size).init_weights(0).to(device)
    found = {name: Implementation(net, VARIANTS[name], recipe) for name in names}
    whole = Variant(extent="model")
    if nanogpt:
        found["nanoGPT"] = Implementation(NanoGPT(nanogpt, recipe, vocab_size).to(device), whole, recipe)
    with suppress(ImportError):
        found["litgpt"] = Implementation(LitGPT(net).to(device), whole, recipe)
    return found


def measure(
    recipe: Recipe, vocab_size: int, rows: int, rounds: int, implementations: dict[str, Implementation]
) -> Iterator[list[dict]]:
    """One result per variant: all of them after every round, and at last with their anatomy."""
    device = next(iter(next(iter(implementations.values())).parameters.values())).device
    most = round(rows * max(each.variant.rows_factor for each in implementations.values()))
    x, y = torch.randint(0, vocab_size, (2, most, recipe.model.max_seq_len), device=device)
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    results: dict[str, dict] = {}
    for name, each in implementations.items():
        count = round(rows * each.variant.rows_factor)
        step = partial(each.step, x[:count], y[:count])
        resident = 0
        if device.type == "cuda":  # what other variants hold is not this one's
            torch.cuda.reset_peak_memory_stats()
            weights = sum(p.numel() * p.element_size() for p in each.parameters.values())
            resident = torch.cuda.memory_allocated() - weights
        try:
            first = step().item()
            step()
        except Exception as error:
            results[name] = {"variant": name, "error": f"{type(error).__name__}: {error}"[:500]}
            continue
        results[name] = {"variant": name, "first_loss": first, "seconds": []}
        results[name]["peak_bytes"] = peak_memory(device) - resident
        steps[name] = step
    for _ in range(rounds):
        for name, seconds in time_in_turn(steps, 1, STEPS, partial(synchronized_clock, device)).items():
            results[name]["seconds"] += seconds
        for name in steps:
            results[name] |= compare(recipe, rows, implementations, results, name)
        yield list(results.values())
    for name, step in steps.items():
        results[name] |= anatomy(step, device)
    yield list(results.values())


def compare(
    recipe: Recipe, rows: int, implementations: dict[str, Implementation], results: dict[str, dict], name: str
) -> dict:
    """The speed of a variant, and its time per token over that of the first one that ran."""
    factor, length = implementations[name].variant.rows_factor, recipe.model.max_seq_len
    tokens = round(rows * factor) * length
    net = next(each.net for each in implementations.values() if isinstance(each.net, Transformer))
    seconds, peak = results[name]["seconds"], peak_flops(net.tok_embeddings.weight.device, True)
    baseline = next(row["seconds"] for row in results.values() if "seconds" in row)
    median = statistics.median(seconds)
    ratios = sorted(b / a / factor for a, b in zip(baseline, seconds, strict=True))
    return {
        "tokens_per_second": tokens / median,
        "mfu": peak and training_flops(net, tokens, tokens, length) / median / peak,
        "time_over_baseline": statistics.median(ratios),
        "ratios": ratios,
    }


def find_faults(results: list[dict]) -> list[str]:
    """What is wrong with a measurement: variants that failed, and first losses that differ too much."""
    faults = [f"{row['variant']}: {row['error']}" for row in results if "error" in row]
    first = {
        row["variant"]: row["first_loss"]
        for row in results
        if "first_loss" in row and row["variant"] in VARIANTS and VARIANTS[row["variant"]].rows_factor == 1
    }
    if first and not max(first.values()) - min(first.values()) <= LOSS_TOLERANCE:
        faults.append(f"the variants are not the same model: first losses are {first}")
    return faults


def main() -> None:
    """Entry point of `python -m benchmarks.mfu`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=GROUPS, default="anatomy")
    parser.add_argument("--recipe", default="configs/gpt2-124m.toml")
    parser.add_argument("--rows", type=int, default=32, help="windows in a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    args = parser.parse_args()
    recipe = load(Recipe, args.recipe)
    names = [
        name for name in GROUPS[args.group] if torch.cuda.is_available() or ("Flex" not in name and "cuDNN" not in name)
    ]
    torch._dynamo.config.recompile_limit = 64  # variants share the code of Transformer.forward
    implementations = build(recipe, recipe.tokenizer.vocab_size, names, args.nanogpt)
    about = {"group": args.group, "recipe": args.recipe, "rows_per_pass": args.rows, "triton": version("triton")}
    results: list[dict] = []
    for results in measure(recipe, recipe.tokenizer.vocab_size, args.rows, args.rounds, implementations):
        faults = find_faults(results)
        path = record(f"mfu-{args.group}", about | {"faults": faults, "variants": results})
    for row in results:
        if "error" not in row:
            print(describe(row))
    print(f"written: {path}")
    if faults:
        raise SystemExit("\n".join(faults))


def describe(row: dict) -> str:
    """The line of a variant on the terminal."""
    mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%} MFU, "
    busy = (
        f", GPU busy {row['gpu_busy_share']:.0%}, {row['launches']:.0f} launches, {row['syncs']:.1f} syncs"
        if "syncs" in row
        else ""
    )
    low, high = row["ratios"][0], row["ratios"][-1]
    return (
        f"{row['variant']:32}{row['tokens_per_second']:10,.0f} tokens/s, {mfu}time per token over the first "
        f"{row['time_over_baseline']:.3f} ({low:.3f} to {high:.3f}){busy}"
    )


if __name__ == "__main__":
    main()
