"""Tokens per second of greedy generation: ours, transformers.generate and llama.cpp on the same weights.

    python -m benchmarks.generation [--model smollm2-135m] [--new 32] [--rounds 3] [--batch 1 8 --prompt 16 512]

Ours runs the weights as the .gguf file stores them (int4 and int8 for a run; compiled, with prompt
lookup and without), in float32 and bfloat16; transformers in both; llama.cpp reads the same file.
All are timed in turn within every round; prefill (up to the first token) and decode separately. llama.cpp comes
from npm, into cache/node (node-llama-cpp and its binary, without install scripts); without npm it
is left out, with a line. Also records the bandwidth of a large read, the bytes of the weights, and
whether each variant gives the tokens of transformers in float32. Writes benchmarks/results/DEVICE/generate-MODEL.json.
"""

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers import transformers_llama
from benchmarks.record import record
from cli.console import say
from configs.schema import DataConfig
from data.prepare import prepare
from data.splits import read_documents
from model import engine
from model.generate import generate
from model.inference import load_for_generation
from model.load import FOUNDATIONS, foundation_file, load_model
from model.transformer import Transformer

NODE = Path("cache/node")
PACKAGES = ("node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1")
DEFAULT_BATCHES = [1, 8]  # other batch sizes are recorded in a separate file
Times = tuple[torch.Tensor, float, float]
"""Greedy (B, new) continuations, seconds to the first token, seconds of the rest."""
Work = Callable[[torch.Tensor], Times]


def measure_bandwidth() -> float:
    """Bytes per second of reading 256 MiB, the best of ten."""
    a, best = torch.zeros(2**26), 0.0
    for _ in range(10):
        started = time.perf_counter()
        a.sum()
        best = max(best, a.nbytes / (time.perf_counter() - started))
    return best


def weight_bytes(model: Transformer) -> int:
    """Bytes of the matrices that every token is multiplied by."""
    tensors = [*model.layers.parameters(), *model.layers.buffers(), *model.output.parameters(), *model.output.buffers()]
    return sum(each.nbytes for each in tensors if each.dim() >= 2)


def time_ours(model: Transformer, prompts: torch.Tensor, new: int, drafts: bool) -> Times:
    """Generate with prompt lookup or without."""
    engine.MOST_DRAFTING = 2 if drafts else 0
    stamps, generated = [time.perf_counter()], []
    for ids in generate(model, prompts, max_new_tokens=new, temperature=0):
        generated.append(ids)
        stamps.append(time.perf_counter())
    return torch.stack(generated, 1), stamps[1] - stamps[0], stamps[-1] - stamps[1]


def time_transformers(model: torch.nn.Module, prompts: torch.Tensor, new: int) -> Times:
    """The same with `transformers.generate`."""
    stamps = [time.perf_counter()]

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
    return whole[:, prompts.shape[1] :], stamps[1] - stamps[0], stamps[-1] - stamps[1]


class LlamaCpp:
    """llama.cpp in a process of its own, which keeps the model loaded."""

    def __init__(self, file: Path, prompts: torch.Tensor, new: int):
        batch, length = prompts.shape
        script = NODE / "llama_cpp.mjs"
        shutil.copy(Path(__file__).parent / "llama_cpp.mjs", script)
        command = ["node", script.name, file, torch.get_num_threads(), length, new, batch]
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, prompts: torch.Tensor) -> Times:
        """Generate."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(prompts.tolist()) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return torch.tensor(found["tokens"]), found["prefill"], found["decode"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def install_llama_cpp() -> bool:
    """Install node-llama-cpp from npm into cache/node, once; False, with a line, if that is not possible."""
    if (NODE / "node_modules" / "node-llama-cpp").exists():
        return True
    if not shutil.which("npm"):
        say("llama.cpp is left out: npm is not installed")
        return False
    NODE.mkdir(parents=True, exist_ok=True)
    (NODE / "package.json").write_text('{"private": true}')
    done = subprocess.run(["npm", "install", "--ignore-scripts", *PACKAGES], cwd=NODE, capture_output=True, text=True)
    if done.returncode:
        say(f"llama.cpp is left out: {done.stderr.strip().splitlines()[-1]}")
    return not done.returncode


def compare(works: dict[str, Work], prompts: torch.Tensor, new: int, rounds: int) -> list[dict]:
    """A row per variant, timed in turn; ratios are to llama.cpp if it takes part, else to transformers."""
    found: dict[str, list[Times]] = {name: [] for name in works}
    batch, length = prompts.shape
    for number in range(rounds + 1):
        for name, work in works.items():
            times = work(prompts)
            if number:  # the first round warms up
                found[name].append(times)
    base = found.get("llama.cpp") or found["transformers float32"]
    rows = []
    for name, times in found.items():
        prefill, decode = (statistics.median(each[i] for each in times) for i in (1, 2))
        row = {
            "variant": name,
            "batch": batch,
            "prompt": length,
            "prefill_tokens_per_second": batch * length / prefill,
            "decode_tokens_per_second": batch * (new - 1) / decode,
            "same_tokens_as_float32": torch.equal(times[0][0], found["transformers float32"][0][0]),
        }
        for i, part in ((1, "prefill"), (2, "decode")):
            row[f"{part}_speed_ratios"] = sorted(b[i] / a[i] for a, b in zip(times, base, strict=True))
        rows.append(row)
    return rows


def show_row(row: dict) -> None:
    """Print a row."""
    ratios = [statistics.median(row[f"{part}_speed_ratios"]) for part in ("prefill", "decode")]
    print(
        f"batch {row['batch']:2} prompt {row['prompt']:4} {row['variant']:24}"
        f" prefill {row['prefill_tokens_per_second']:7.0f} tokens/s ({ratios[0]:5.2f})"
        f"  decode {row['decode_tokens_per_second']:7.1f} ({ratios[1]:5.2f})"
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
    file = foundation_file(args.model) if args.model in FOUNDATIONS else Path(args.model)
    theirs = {
        name: transformers_llama(own.config, own.state_dict()).eval().to(getattr(torch, name))
        for name in ("float32", "bfloat16")
    }
    texts = [document["text"] for document in read_documents(prepare(DataConfig()), "test")]
    stream = [i for text in texts for i in tokenizer.encode(text)]
    variants = {"4 bits": "auto"} if file.suffix == ".gguf" else {"int4": "int4", "int8": "int8"}
    models = {name: load_for_generation(args.model, each, "cpu", 1, True)[0] for name, each in variants.items()}
    rows, with_llama = [], file.suffix == ".gguf" and install_llama_cpp()
    for batch in args.batch:
        for length in args.prompt:
            if length + args.new > own.config.max_seq_len:
                continue
            prompts = torch.tensor(stream[: batch * length]).view(batch, length)
            works: dict[str, Work] = {}
            for name, model in models.items():
                works[name] = partial(time_ours, model, new=args.new, drafts=False)
                if batch <= 2:
                    works[f"{name}, prompt lookup"] = partial(time_ours, model, new=args.new, drafts=True)
            for precision, other in theirs.items():
                model = load_for_generation(args.model, precision, "cpu", batch).model
                works[precision] = partial(time_ours, model, new=args.new, drafts=False)
                works[f"transformers {precision}"] = partial(time_transformers, other, new=args.new)
            llama = LlamaCpp(file.resolve(), prompts, args.new) if with_llama else None
            if llama:
                works["llama.cpp"] = llama.time
            found = compare(works, prompts, args.new, args.rounds)
            for row in found:
                show_row(row)
            rows += found
            if llama:
                llama.close()
            gc.collect()
    result = {
        "model": args.model,
        "new_tokens": args.new,
        "rounds": args.rounds,
        "rows": rows,
        "read_bytes_per_second": measure_bandwidth(),
        "weight_bytes": {name: weight_bytes(model) for name, model in models.items()},
    }
    name = "generate-" + args.model.strip("/").replace("/", "-")
    if args.batch != DEFAULT_BATCHES:
        name += "-batch-" + "-".join(map(str, args.batch))
    print(f"written: {record(name, result)}")


if __name__ == "__main__":
    main()
