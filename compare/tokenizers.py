"""Compare tokenizers on a corpus: bytes per token of every split, and a text with coloured tokens.

    python -m compare.tokenizers RUN|RECIPE [--text TEXT]

Compares with the tokenizer of SmolLM2; without its weights only the first is shown.
"""

from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.console import printable, say
from cli.errors import UserError, run_command
from cli.recipes import Parser, load
from configs.schema import Recipe
from data.prepare import prepare
from data.shards import cached_tokenizer
from data.splits import SPLITS, read_documents
from model.formats.gguf import gguf_tokenizer
from model.load import foundation_file
from tokenizer.bpe import Tokenizer

FOUNDATION = "smollm2-135m"
COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green")


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """UTF-8 bytes of `texts` divided by their number of tokens."""
    size = sum(len(text.encode()) for text in texts)
    return size / max(1, sum(len(ids) for ids in tokenizer.encode_batch(texts)))


def colour_tokens(tokenizer: Tokenizer, text: str) -> Text:
    """`text` with a background colour per token, different from its neighbours; shows line breaks."""
    line = Text()
    for number, i in enumerate(tokenizer.encode(text)):
        piece = printable(tokenizer.decode([i]))
        line.append(piece.replace("\n", "⏎"), COLOURS[number % len(COLOURS)])
        line.append("\n" * piece.count("\n"))
    return line


def main() -> None:
    """Entry point of `python -m compare.tokenizers`."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="RUN|RECIPE")
    parser.add_argument("--text", help="the text to colour; default: the start of a held-out document")
    args = parser.parse_args()
    run = args.source.is_dir()
    recipe = load(Recipe, args.source / "config.toml" if run else args.source)
    folder = prepare(recipe.data)
    path = args.source / "tokenizer.json" if run else cached_tokenizer(folder, recipe.tokenizer)
    tokenizers = {"this tokenizer": Tokenizer.load(path)}
    try:
        tokenizers[FOUNDATION] = gguf_tokenizer(foundation_file(FOUNDATION))
    except UserError as error:
        say(f"{FOUNDATION} is not shown: {error}")

    table = Table(title=f"bytes per token, {escape(printable(recipe.data.corpus))}")
    table.add_column("split")
    for name, tokenizer in tokenizers.items():
        table.add_column(f"{name} ({tokenizer.vocab_size:,} tokens)", justify="right")
    sample = args.text
    for split in SPLITS:
        texts = [row["text"] for row in islice(read_documents(folder, split), 20_000)]
        table.add_row(split, *(f"{bytes_per_token(t, texts):.3f}" for t in tokenizers.values()))
        if split == "validation" and sample is None:
            sample = texts[0][:400]
    screen = Console(highlight=False)
    screen.print(table)
    for name, tokenizer in tokenizers.items():
        screen.print(f"\n{name}, {len(tokenizer.encode(sample or ''))} tokens:")
        screen.print(colour_tokens(tokenizer, sample or ""))
    ours = tokenizers["this tokenizer"]
    screen.print(f"\nhash {ours.hash[:16]}, special tokens at ids {ours.special_ids}")


if __name__ == "__main__":
    run_command(main)
