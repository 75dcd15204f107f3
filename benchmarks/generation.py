"""Tokens per second of greedy generation beside `transformers.generate` with the same weights.

    python -m benchmarks.generation [--model smollm2-135m] [--new 32] [--rounds 3] [--batch 64]

Batches of 1 and 8 (or as asked for) prompts of 16 and 512 tokens, in float32, bfloat16 and (ours
only) int8, in turn within every round; in float32 both must give the same tokens. Time includes
reading the prompt. At batch 1 the bytes of all weights, read once per token, are set beside what
the machine copies per second. Also the bits per byte of each precision on held-out text. Writes
benchmarks/results/DEVICE/generate-MODEL.json.
"""

import argparse
import copy
import math
import statistics
import time
from functools import partial

import torch

from benchmarks.peers import transformers_llama
from benchmarks.record import profile, record
from configs.schema import DataConfig
from data.builtin import BUILTIN
from data.prepare import prepare, read_documents
from model.generate import generate
from model.int8 import quantize
from model.load import load_model
from model.packed import pack
from model.transformer import Transformer


def bandwidth() -> float:
    """Bytes per second read and written by copying 256 MiB, the best of ten."""
    a = torch.zeros(2**26)
    b, best = torch.empty_like(a), 0.0
    for _ in range(10):
        started = time.perf_counter()
        b.copy_(a)
        best = max(best, 2 * a.nbytes / (time.perf_counter() - started))
    return best


USUAL = [1, 8]  # sequences at a time; others are recorded in a file of their own
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def weights_read(model: Transformer) -> int:
    """Numbers in the matrices that every token is multiplied by."""
    blocks = sum(p.numel() for p in model.layers.parameters() if p.dim() == 2)
    return blocks + model.output.weight.numel()


@torch.no_grad()
def nats(model: Transformer, ids: torch.Tensor) -> float:
    """Summed loss of (B, T) tokens after the first, from logits."""
    logits = model(ids[:, :-1]).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()


def bits_per_byte(models: dict[str, Transformer], tokenizer) -> dict[str, dict[str, float]]:
    """Of each model on eight windows of each corpus's test split."""
    size = min(512, next(iter(models.values())).config.max_seq_len)
    lengths, found = tokenizer.token_bytes(), {}
    for corpus in BUILTIN:
        stream: list[int] = []
        for document in read_documents(prepare(DataConfig(corpus=corpus)), "test"):
            stream += tokenizer.encode(document["text"]) if len(stream) < 8 * size else []
        ids = torch.tensor(stream[: 8 * size]).view(8, size)
        size_bytes = int(lengths[ids[:, 1:].numpy()].sum()) * math.log(2)
        found[corpus] = {name: nats(model, ids) / size_bytes for name, model in models.items()}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found[corpus].items())
        print(f"{corpus}: bits per byte {shown}")
    return found


def complete(model: torch.nn.Module, prompts: torch.Tensor, new: int) -> tuple[torch.Tensor, float, float]:
    """The (B, new) likeliest continuations of (B, T) prompts; seconds in all and after the first

    token, which includes reading the prompt.
    """
    stamps = [time.perf_counter()]
    if isinstance(model, Transformer):
        drawn = []
        for ids in generate(model, prompts, max_new_tokens=new, temperature=0):
            drawn.append(ids)
            stamps.append(time.perf_counter())
        tokens = torch.stack(drawn, 1)
    else:

        def note(_, scores):
            stamps.append(time.perf_counter())
            return scores

        whole = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            pad_token_id=0,
            max_new_tokens=new,
            min_new_tokens=new,
            logits_processor=[note],
        )
        tokens = whole[:, prompts.shape[1] :]
    return tokens, time.perf_counter() - stamps[0], stamps[-1] - stamps[1]


def main() -> None:
    """Entry point of `python -m benchmarks.generate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=USUAL)
    parser.add_argument("--prompt", type=int, nargs="+", default=[16, 512])
    args = parser.parse_args()
    own, tokenizer = load_model(args.model)
    theirs = transformers_llama(own.config, own.state_dict()).eval()
    ways: dict[tuple[str, str], torch.nn.Module] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        ways["ours", name] = copy.deepcopy(own).to(dtype)
        ways["transformers", name] = copy.deepcopy(theirs).to(dtype)
    ways["ours", "int8"] = quantize(copy.deepcopy(own).to(torch.bfloat16))
    copied = bandwidth()
    texts = [document["text"] for document in read_documents(prepare(DataConfig()), "test")]
    stream = [i for text in texts for i in tokenizer.encode(text)]
    rows = []
    for batch in args.batch:
        ready = dict(ways)
        for name in ("float32", "bfloat16"):
            ready["ours", name] = pack(copy.deepcopy(ways["ours", name]), batch)
        for length in args.prompt:
            if length + args.new > own.config.max_seq_len:
                continue
            prompts = torch.tensor(stream[: batch * length]).view(batch, length)
            times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
            after: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
            tokens = {}
            for _ in range(args.rounds):
                for way in ways:
                    tokens[way], whole, rest = complete(ready[way], prompts, args.new)
                    times[way].append(whole)
                    after[way].append(rest)
            same = torch.equal(tokens["ours", "float32"], tokens["transformers", "float32"])
            for way, seconds in times.items():
                base = "transformers", "bfloat16" if way[1] == "int8" else way[1]
                ratios = sorted(b / a for a, b in zip(seconds, times[base], strict=True))
                later = [b / a for a, b in zip(after[way], after[base], strict=True)]
                speed = batch * args.new / statistics.median(seconds)
                step = statistics.median(after[way]) / (args.new - 1)
                row = {
                    "way": way[0],
                    "precision": way[1],
                    "batch": batch,
                    "prompt": length,
                    "tokens_per_second": speed,
                    "transformers_time_over_it": statistics.median(ratios),
                    "ratios": ratios,
                    "seconds_per_step_after_the_prompt": step,
                    "transformers_time_over_it_after_the_prompt": statistics.median(later),
                    "same_tokens_in_float32": same,
                }
                share = ""
                if batch == 1:
                    row["profile"] = profile(partial(complete, ready[way], prompts, args.new))
                if batch == 1 and way[0] == "ours":
                    row["share_of_bandwidth"] = weights_read(own) / step * BYTES[way[1]] / copied
                    share = f", {row['share_of_bandwidth']:.0%} of the bandwidth"
                rows.append(row)
                print(
                    f"prompt {length:4} batch {batch:3} {way[1]:9}{way[0]:13}{speed:8.1f} tokens/s "
                    f"{row['transformers_time_over_it']:5.2f} times as fast, after the prompt "
                    f"{statistics.median(later):5.2f}{share}"
                )
            print(f"    same tokens in float32: {same}")
    bits = bits_per_byte({n: ways["ours", n] for n in BYTES}, tokenizer)
    result = {
        "model": args.model,
        "new_tokens": args.new,
        "rounds": args.rounds,
        "rows": rows,
        "copy_bytes_per_second": copied,
        "bits_per_byte": bits,
    }
    name = "generate-" + args.model.strip("/").replace("/", "-")
    if args.batch != USUAL:
        name += "-batch-" + "-".join(map(str, args.batch))
    print(f"written: {record(name, result)}")


if __name__ == "__main__":
    main()
