"""Compare pre-tokenisation rules: bytes per token, and bits per byte at equal compute.

    python -m benchmarks.pretokenization [--recipe configs/tiny.toml] [--steps 300] [--seeds 3]

Trains the recipe once per variant and seed, with the same number of steps and tokens. The score is
computed on the whole validation split; the test split is not used.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.record import record
from cli.recipes import load
from compare.tokenizers import bytes_per_token
from configs.schema import Recipe
from data.prepare import prepare, read_documents
from data.shards import cached_tokenizer
from model.build import build_model
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.loop import train
from train.pretrain import load_data
from train.run_directory import start_run

VARIANTS = {
    "gpt2": {"digits": "any", "newlines": "attach", "whitespace": "word"},
    "digits": {"digits": "single", "newlines": "attach", "whitespace": "word"},
    "digits+newlines": {"digits": "single", "newlines": "own", "whitespace": "word"},
    "spaces-own": {"digits": "single", "newlines": "own", "whitespace": "own"},
    "lines": {"digits": "any", "newlines": "own", "whitespace": "merge"},
}


def main() -> None:
    """Measure, record and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="configs/tiny.toml")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    recipe = load(Recipe, args.recipe)
    scores: dict[str, list[float]] = {name: [] for name in VARIANTS}
    lengths = {}
    for seed in range(args.seeds):
        for name, cuts in VARIANTS.items():
            tokens = recipe.tokenizer.model_copy(update=cuts)
            changes = {"steps": args.steps, "seed": seed, "eval_every": 10**9, "save_every": 10**9}
            settings = recipe.train.model_copy(update=changes)
            variant = recipe.model_copy(update={"tokenizer": tokens, "train": settings})
            tokenizer, train_set, validation_set = load_data(variant)
            model = build_model(variant.model, tokenizer.vocab_size).init_weights(seed)
            with tempfile.TemporaryDirectory() as folder, Ranks("cpu") as ranks:
                run = Path(folder) / name
                start_run(run, variant, tokenizer)
                result = train(model, train_set, validation_set, tokenizer, settings, run, ranks)
            scores[name].append(result.bits_per_byte)
            folder = prepare(variant.data)
            path = cached_tokenizer(folder, tokens)
            texts = [row["text"] for row in read_documents(folder, "validation")]
            lengths[name] = bytes_per_token(Tokenizer.load(path), texts)
    rows = {
        name: {
            **VARIANTS[name],
            "bytes_per_token": lengths[name],
            "bits_per_byte": scores[name],
            "median": statistics.median(scores[name]),
        }
        for name in VARIANTS
    }
    for name, row in rows.items():
        spread = f"{min(scores[name]):.4f} to {max(scores[name]):.4f}"
        print(f"{name:16} {row['bytes_per_token']:.3f} bytes/token  {row['median']:.4f} bits/byte ({spread})")
    result = {"recipe": args.recipe, "steps": args.steps, "variants": rows}
    print(record("pretokenization", result))


if __name__ == "__main__":
    main()
