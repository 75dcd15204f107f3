"""Tokens per second of greedy decode on a GPU, by batch, beside what its memory bandwidth allows.

    python -m benchmarks.gpu_generation [--recipe configs/gpt2-124m.toml] [--batch 1 8 64] [--prompt 256] [--new 256]

Ours with a captured graph per batch, the same step launched kernel by kernel, and transformers.generate
with the same weights, in turn within every round; bfloat16 weights drawn at random, as speed does not
depend on them. The bound reads all weights and the keys and values of every row once per step, at the
bandwidth of a large copy. On a CPU nothing is captured: a trial of the script, not a measurement.
Writes benchmarks/results/DEVICE/gpu-generation.json.
"""

import argparse
import statistics
from functools import partial

import torch

from benchmarks.peers import transformers_llama
from benchmarks.record import record, time_in_turn
from cli.recipes import load
from configs.schema import ModelConfig, Recipe
from kernels.bench import measure_ceilings, synchronized_clock
from model.build import build_model
from model.engine import Engine
from model.graphs import DecodeGraphs
from model.sampling import Sampling
from model.transformer import Transformer


def start(model: Transformer, prompts: torch.Tensor, new: int, captures: bool) -> Engine:
    """An engine whose rows have read their prompts."""
    batch, length = prompts.shape
    engine = Engine(model, batch, length + new)
    engine.graphs = DecodeGraphs(model, engine.cache, batch, None)
    engine.graphs.captures &= captures
    engine.join(prompts.tolist(), [Sampling(0)] * batch, list(range(batch)), new)
    return engine


def restart(engine: Engine, prompts: torch.Tensor) -> None:
    """Drop what the rows have written."""
    for row in engine.rows:
        assert row
        row.ids, row.length = row.ids[: prompts.shape[1] + 1], prompts.shape[1]


def decode(engine: Engine, prompts: torch.Tensor) -> None:
    """Decode all rows to their ends."""
    restart(engine, prompts)
    while engine.step():
        pass


def decode_bytes(config: ModelConfig, model: Transformer, batch: int, positions: float) -> float:
    """Bytes that a step reads: the weights, and keys and values of `positions` of every row, in bfloat16."""
    weights = sum(p.numel() for p in (*model.layers.parameters(), model.output.weight))
    return 2 * (weights + 2 * config.n_layers * batch * positions * config.n_kv_heads * config.head_dim)


@torch.no_grad()
def main() -> None:
    """Entry point of `python -m benchmarks.gpu_generation`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="configs/gpt2-124m.toml")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    recipe = load(Recipe, args.recipe)
    vocab_size = recipe.tokenizer.vocab_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = recipe.model.model_copy(update={"qk_norm": False, "max_seq_len": args.prompt + args.new})
    model = build_model(config, vocab_size).init_weights(0).to(device, torch.bfloat16).eval()
    theirs = transformers_llama(config, model.state_dict()).eval().to(device, torch.bfloat16)
    bandwidth = measure_ceilings(device, torch.bfloat16)[1]
    about = {"recipe": args.recipe, "prompt": args.prompt, "new": args.new, "bytes_per_second": bandwidth}
    rows = []
    for batch in args.batch:
        prompts = torch.randint(1, vocab_size, (batch, args.prompt), device=device)  # 0 is padding
        engines = {
            name: start(model, prompts, args.new, captures)
            for name, captures in (("captured graph", True), ("kernel by kernel", False))
        }
        works = {name: partial(decode, engine, prompts) for name, engine in engines.items()}
        options = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False, "pad_token_id": 0}
        works["transformers"] = partial(theirs.generate, prompts, **options)
        for work in works.values():
            work()
        texts = [[row.ids for row in engine.rows if row] for engine in engines.values()]
        times = time_in_turn(works, args.rounds, 1, partial(synchronized_clock, device))
        least = decode_bytes(config, model, batch, args.prompt + args.new / 2) / bandwidth
        for name, seconds in times.items():
            step = statistics.median(seconds) / (args.new - (name != "transformers"))
            row = {
                "variant": name,
                "batch": batch,
                "tokens_per_second": batch / step,
                "step_seconds": step,
                "share_of_bandwidth_bound": least / step,
                "ratios_to_transformers": sorted(b / a for a, b in zip(seconds, times["transformers"], strict=True)),
                "same_tokens_as_uncaptured": texts[0] == texts[1],
            }
            print(
                f"batch {batch:3} {name:18}{row['tokens_per_second']:10,.0f} tokens/s, {1000 * step:7.3f} ms a step, "
                f"{row['share_of_bandwidth_bound']:.0%} of the bound"
            )
            rows.append(row)
        path = record("gpu-generation", about | {"rows": rows})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
