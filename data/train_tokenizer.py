"""Train the tokenizer of a recipe on the train split, and tokenise all splits; both go to the cache.

python -m data.train_tokenizer RECIPE [--tokenizer.vocab-size 8192 …] [--workers 8 | --ray]

Training does the same when it starts; on a large corpus this command does it on all cores, once.
"""

from cli.console import show
from cli.errors import run_command
from cli.recipes import Parser, parse
from cli.workers import add_worker_options
from configs.schema import Recipe
from data.prepare import prepare
from data.shards import cached_tokenizer, write_shards
from data.splits import load_manifest
from tokenizer.bpe import Tokenizer


def main() -> None:
    """Entry point of `python -m data.train_tokenizer`."""
    parser = Parser(__doc__, add_help=False)
    add_worker_options(parser)
    recipe, args = parse(Recipe, parser)
    folder = prepare(recipe.data, args.workers, args.ray)
    path = cached_tokenizer(folder, recipe.tokenizer)
    tokenizer = Tokenizer.load(path)
    shards = write_shards(folder, tokenizer, args.workers, args.ray)
    for split, counts in load_manifest(shards)["splits"].items():
        show(f"{split:10}  " + "  ".join(f"{name} {counts[name]:,}" for name in ("documents", "bytes", "tokens")))
    show(str(shards))
    show(f"{path} ({tokenizer.vocab_size:,} tokens)")


if __name__ == "__main__":
    run_command(main)
