"""Score text under a model: bits per byte, perplexity and token count of any corpus.

    python -m train.score RUN|FOUNDATION FILE [FILE …] [--document line] [--precision int4] [--json]

A FILE is anything that `data.corpus` accepts: text, source code, a table, a folder, compressed or not.
Each document starts after the separator token; a document longer than the context is scored in
overlapping windows. `--precision` shows what rounding the weights costs. Bits per byte are comparable
between tokenizers; perplexity is per token, so it is comparable only between models with the same tokenizer.
"""

from pathlib import Path

import torch

from cli.atomic import to_json
from cli.console import show
from cli.errors import UserError, run_command
from cli.recipes import Parser, validate
from configs.schema import DataConfig
from data.cleaning import clean
from data.corpora import open_corpus
from data.readers import TABLES, effective_suffix, list_files
from model.inference import PRECISIONS, load_for_generation
from model.likelihood import score_texts


def read_texts(name: str, document: str | None, text_field: str) -> list[str]:
    """The cleaned documents of a file, folder or corpus. Raises UserError if there are none."""
    path, texts = Path(name), []
    for part in list_files(path) if path.is_dir() else [path]:
        is_text = part.exists() and effective_suffix(part) not in TABLES
        values = {
            "corpus": name if part == path else str(part),
            "document": document or ("file" if is_text else "section"),
            "text_field": text_field,
        }
        config = validate(DataConfig, values, name)
        texts += [text for row in open_corpus(config).read() if (text := clean(row.text))]
    if not texts:
        raise UserError(f"{name}: holds no text; give another file")
    return texts


def main() -> None:
    """Entry point of `python -m train.score`."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="RUN|FOUNDATION")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, a folder or a corpus")
    parser.add_argument(
        "--document", choices=("file", "line", "section"), help="what one document of a text file is; default: file"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="of the weights; default: float32, on a GPU bfloat16")
    parser.add_argument("--text-field", default="text", help="column of a table")
    parser.add_argument("--json", action="store_true", help="one JSON object per FILE")
    args = parser.parse_args()
    corpora = [(name, read_texts(name, args.document, args.text_field)) for name in args.files]
    precision = args.precision or ("bfloat16" if torch.cuda.is_available() else "float32")
    loaded = load_for_generation(args.model, precision)
    model, tokenizer = loaded.model, loaded.tokenizer
    for name, texts in corpora:
        found = score_texts(model, tokenizer, texts)
        if args.json:
            show(to_json({"file": name, **found}))
            continue
        show(
            f"{name}: {found['bits_per_byte']:.4f} bits per byte, perplexity "
            f"{found['perplexity']:.4g}, {found['tokens']:,} tokens, {found['bytes']:,} bytes, "
            f"{found['documents']:,} documents"
        )


if __name__ == "__main__":
    run_command(main)
