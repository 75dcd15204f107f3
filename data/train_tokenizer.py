"""Train the tokenizer of a recipe on the train split and write it to the cache.

python -m data.train_tokenizer RECIPE [--tokenizer.vocab-size 8192 …]
"""

from cli.console import show
from cli.errors import run_command
from cli.recipes import Parser, parse
from configs.schema import Recipe
from data.prepare import prepare
from data.shards import cached_tokenizer
from tokenizer.bpe import Tokenizer


def main() -> None:
    """Entry point of `python -m data.train_tokenizer`."""
    recipe, _ = parse(Recipe, Parser(__doc__, add_help=False))
    path = cached_tokenizer(prepare(recipe.data), recipe.tokenizer)
    show(f"{path} ({Tokenizer.load(path).vocab_size:,} tokens)")


if __name__ == "__main__":
    run_command(main)
