"""Tokenise a range of the documents of a split: what several cores do at once."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from cli.atomic import read_json, to_json, write_atomically
from tokenizer.bpe import Tokenizer

RANGE_BYTES = 1 << 27  # of a .jsonl file. A token has a byte at least, so its ids take at most 512 MiB.
_BATCH = 256  # documents


def id_dtype(vocab_size: int) -> np.dtype:
    """The dtype of token ids on disk: little-endian uint16, or uint32 above 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def cut_ranges(path: Path, starts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Byte ranges of a file; `tokenise_range` takes the lines that begin in one. One begins at each of `starts`."""
    size = path.stat().st_size
    bounds = sorted({0, size, *starts})
    return [
        (start, min(start + RANGE_BYTES, end))
        for begin, end in pairwise(bounds)
        for start in range(begin, end, RANGE_BYTES)
    ]


def tokenise_range(path: Path, start: int, end: int, tokenizer: Tokenizer, out: Path) -> dict[str, int]:
    """Write the ids of the documents whose lines begin in a range: separator, document, separator, …

    Returns "tokens", "documents" and "bytes" of text, which stand in `out` plus .json too. A range
    that an earlier process has finished is not tokenised again.
    """
    done = out.with_suffix(".json")
    saved = read_json(done)
    dtype = id_dtype(tokenizer.vocab_size)
    if saved and out.exists() and out.stat().st_size == saved["tokens"] * dtype.itemsize:
        return saved
    separator = np.array([tokenizer.separator_id], dtype)
    tokens = documents = size = 0
    with open(out, "wb") as file:
        lines = _lines(path, start, end)
        while batch := [json.loads(line)["text"] for line in islice(lines, _BATCH)]:
            documents += len(batch)
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                tokens += 1 + len(ids)
                size += len(text.encode())
                separator.tofile(file)
                np.array(ids, dtype).tofile(file)
    result = {"tokens": tokens, "documents": documents, "bytes": size}
    write_atomically(done, to_json(result))
    return result


def _lines(path: Path, start: int, end: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        if start:  # a line that begins before the range belongs to the range before
            file.seek(start - 1)
            file.readline()
        while file.tell() < end and (line := file.readline()):
            yield line
