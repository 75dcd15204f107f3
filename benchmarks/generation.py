"""Tokens per second of greedy generation, against `transformers.generate` with the same weights.

    python -m benchmarks.generation [--model smollm2-135m] [--new 32] [--rounds 3] [--batch 64]

Batches of 1 and 8 prompts (or --batch) of 16 and 512 tokens, in float32 and bfloat16, timed in turn
within every round. Records whether both give the same tokens in float32. Times
include the prefill. At batch 1 the bytes of all weights, read once per decoded token, are compared to
the copy bandwidth. Writes benchmarks/results/DEVICE/generate-MODEL.json.
"""

import argparse
import copy
import statistics
import time

import torch

from benchmarks.peers import transformers_llama
from benchmarks.record import record
from configs.schema import DataConfig
from data.prepare import prepare
from data.splits import read_documents
from model.generate import generate
from model.load import load_model
from model.packed import pack
from model.transformer import Transformer


def measure_bandwidth() -> float:
    """Bytes per second read and written by copying 256 MiB, the best of ten."""
    a = torch.zeros(2**26)
    b, best = torch.empty_like(a), 0.0
    for _ in range(10):
        started = time.perf_counter()
        b.copy_(a)
        best = max(best, 2 * a.nbytes / (time.perf_counter() - started))
    return best


DEFAULT_BATCHES = [1, 8]  # other batch sizes are recorded in a separate file
BYTES = {"float32": 4, "bfloat16": 2}


def count_weights_read(model: Transformer) -> int:
    """Number of weights in the matrices that every token is multiplied by."""
    blocks = sum(p.numel() for p in model.layers.parameters() if p.dim() == 2)
    return blocks + model.output.weight.numel()


def time_generation(model: torch.nn.Module, prompts: torch.Tensor, new: int) -> tuple[torch.Tensor, float, float]:
    """Greedy (B, new) continuations of (B, T) prompts, total seconds, and decode seconds.

    Decode seconds exclude the first token, whose time is the prefill.
    """
    stamps = [time.perf_counter()]
    if isinstance(model, Transformer):
        generated = []
        for ids in generate(model, prompts, max_new_tokens=new, temperature=0):
            generated.append(ids)
            stamps.append(time.perf_counter())
        tokens = torch.stack(generated, 1)
    else:

        def stamp_token(_, scores):
            stamps.append(time.perf_counter())
            return scores

        whole = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            pad_token_id=0,
            max_new_tokens=new,
            min_new_tokens=new,
            logits_processor=[stamp_token],
        )
        tokens = whole[:, prompts.shape[1] :]
    return tokens, time.perf_counter() - stamps[0], stamps[-1] - stamps[1]


Variant = tuple[str, str]  # ("ours" or "transformers", precision)


def load_variants(own: Transformer) -> dict[Variant, torch.nn.Module]:
    """The same weights in both libraries and every precision."""
    theirs = transformers_llama(own.config, own.state_dict()).eval()
    variants: dict[Variant, torch.nn.Module] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        variants["ours", name] = copy.deepcopy(own).to(dtype)
        variants["transformers", name] = copy.deepcopy(theirs).to(dtype)
    return variants


def compare(
    variants: dict[Variant, torch.nn.Module], prompts: torch.Tensor, new: int, rounds: int, weights_per_second: float
) -> list[dict]:
    """A row per variant: whole generations and decode steps, timed in turn.

    `weights_per_second` is the number of one-byte weights that the memory bandwidth delivers.
    """
    times: dict[Variant, list[float]] = {variant: [] for variant in variants}
    after: dict[Variant, list[float]] = {variant: [] for variant in variants}
    tokens = {}
    for _ in range(rounds):
        for variant, model in variants.items():
            tokens[variant], whole, rest = time_generation(model, prompts, new)
            times[variant].append(whole)
            after[variant].append(rest)
    (batch, length), rows = prompts.shape, []
    for variant, seconds in times.items():
        base = "transformers", variant[1]
        ratios = sorted(b / a for a, b in zip(seconds, times[base], strict=True))
        step = statistics.median(after[variant]) / (new - 1)
        row = {
            "way": variant[0],
            "precision": variant[1],
            "batch": batch,
            "prompt": length,
            "tokens_per_second": batch * new / statistics.median(seconds),
            "transformers_time_over_it": statistics.median(ratios),
            "ratios": ratios,
            "seconds_per_step_after_the_prompt": step,
            "transformers_time_over_it_after_the_prompt": statistics.median(
                b / a for a, b in zip(after[variant], after[base], strict=True)
            ),
            "same_tokens_in_float32": torch.equal(tokens["ours", "float32"], tokens["transformers", "float32"]),
        }
        if batch == 1 and variant[0] == "ours":
            row["share_of_bandwidth"] = BYTES[variant[1]] / step / weights_per_second
        rows.append(row)
    return rows


def show_row(row: dict) -> None:
    """Print a row."""
    share = f", {row['share_of_bandwidth']:.0%} of the bandwidth" if "share_of_bandwidth" in row else ""
    print(
        f"prompt {row['prompt']:4} batch {row['batch']:3} {row['precision']:9}{row['way']:13}"
        f"{row['tokens_per_second']:8.1f} tokens/s {row['transformers_time_over_it']:5.2f} times as fast, "
        f"decode only {row['transformers_time_over_it_after_the_prompt']:5.2f}{share}"
    )


def main() -> None:
    """Entry point of `python -m benchmarks.generation`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=DEFAULT_BATCHES)
    parser.add_argument("--prompt", type=int, nargs="+", default=[16, 512])
    args = parser.parse_args()
    own, tokenizer = load_model(args.model)
    variants, bandwidth = load_variants(own), measure_bandwidth()
    texts = [document["text"] for document in read_documents(prepare(DataConfig()), "test")]
    stream = [i for text in texts for i in tokenizer.encode(text)]
    rows = []
    for batch in args.batch:
        ready = dict(variants)
        for name in ("float32", "bfloat16"):
            ready["ours", name] = pack(copy.deepcopy(variants["ours", name]), batch)
        for length in args.prompt:
            if length + args.new > own.config.max_seq_len:
                continue
            prompts = torch.tensor(stream[: batch * length]).view(batch, length)
            found = compare(ready, prompts, args.new, args.rounds, bandwidth / count_weights_read(own))
            for row in found:
                show_row(row)
            print(f"    same tokens in float32: {found[0]['same_tokens_in_float32']}")
            rows += found
    result = {
        "model": args.model,
        "new_tokens": args.new,
        "rounds": args.rounds,
        "rows": rows,
        "copy_bytes_per_second": bandwidth,
    }
    name = "generate-" + args.model.strip("/").replace("/", "-")
    if args.batch != DEFAULT_BATCHES:
        name += "-batch-" + "-".join(map(str, args.batch))
    print(f"written: {record(name, result)}")


if __name__ == "__main__":
    main()
