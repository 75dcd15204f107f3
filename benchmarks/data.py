"""Speed of the data pipeline: tokenisation in MB/s, the loader in tokens/s and its share of a step.

    python -m benchmarks.data [--corpus python-stdlib] [--rounds 5]

End to end: from documents on disk to token shards on disk, with a prepared corpus and a trained
tokenizer. Raw: `encode_batch` of the `tokenizers` library on the same texts in memory. Both are timed
in turn. The loader's share is measured in a short run of configs/speedrun-1m.toml. Writes
benchmarks/results/DEVICE/data.json.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import tokenizers

from benchmarks.record import record
from benchmarks.scaling import run_steps
from cli.recipes import load
from configs.schema import Recipe
from data.loader import Loader
from data.prepare import prepare, read_documents
from data.shards import Windows, cached_tokenizer, write_shards
from tokenizer.bpe import Tokenizer

RECIPE = "configs/speedrun-1m.toml"


def main() -> None:
    """Entry point of `python -m benchmarks.data`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    recipe = load(Recipe, RECIPE, ["--data.corpus", args.corpus])
    folder = prepare(recipe.data)
    path = cached_tokenizer(folder, recipe.tokenizer)
    tokenizer, raw = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    texts = [row["text"] for split in ("train", "validation", "test") for row in read_documents(folder, split)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours, theirs = [], []
    for _ in range(args.rounds):
        started = time.perf_counter()
        for start in range(0, len(texts), 256):
            raw.encode_batch(texts[start : start + 256], add_special_tokens=False)
        theirs.append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / "documents" / folder.name
            shutil.copytree(folder, copy)
            started = time.perf_counter()
            write_shards(copy, tokenizer)
            ours.append(time.perf_counter() - started)
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"tokenisation: {megabytes / statistics.median(ours):.2f} MB/s from disk to disk, "
        f"{megabytes / statistics.median(theirs):.2f} MB/s raw; {statistics.median(ratios):.2f} of "
        f"raw ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    windows = Windows(write_shards(folder, tokenizer), "train", recipe.model.max_seq_len, tokenizer)
    loader, count = Loader(len(windows), recipe.train.batch_size, 0), 2000
    started = time.perf_counter()
    for _ in range(count):
        windows.batch(loader.next())
    tokens = recipe.train.batch_size * windows.seq_len * count / (time.perf_counter() - started)
    rows = run_steps(RECIPE, 40, f"--data.corpus={args.corpus}")[10:]
    share = sum(r["loader_seconds"] for r in rows) / sum(r["step_seconds"] for r in rows)
    print(f"loader: {tokens:,.0f} tokens/s; {share:.2%} of a step")
    result = {
        "corpus": args.corpus,
        "megabytes": megabytes,
        "shards_megabytes_per_second": megabytes / statistics.median(ours),
        "raw_megabytes_per_second": megabytes / statistics.median(theirs),
        "ratios": ratios,
        "loader_tokens_per_second": tokens,
        "loader_share_of_step": share,
    }
    print(f"written: {record('data', result)}")


if __name__ == "__main__":
    main()
