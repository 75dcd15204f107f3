"""Supervised examples with a loss mask: prompts with completions, and conversations."""

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cli.errors import UserError
from configs.schema import DataConfig
from data.shards import IGNORE
from data.tasks import assign_split, read_json_rows, require_texts, row_group
from tokenizer.bpe import Tokenizer
from tokenizer.chat import encode_chat


class Row(NamedTuple):
    """Token ids of one text, starting with the separator, and which of them have a loss."""

    ids: list[int]
    scored: list[bool]
    place: str = "an example"
    """Source of the text, for error messages."""


class Examples:
    """A dataset of texts: one text per row, padded on the right, or packed into shared rows.

    Packed texts cannot attend to each other: each begins with the separator, and `separator` is the
    id at which the document mask starts a new document (-1: no packing, no document mask).
    """

    def __init__(self, texts: Sequence[Row], seq_len: int, tokenizer: Tokenizer, pack: bool = False):
        """Raises UserError if a text has more than `seq_len` tokens after the separator."""
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        for text in texts:
            if len(text.ids) > seq_len + 1:
                raise UserError(
                    f"{text.place}: {len(text.ids)} tokens are more than the context of {seq_len}; "
                    "shorten the text or raise the context"
                )
        self.separator = tokenizer.separator_id if pack else -1
        self.rows = _pack(texts, seq_len + 1) if pack else list(texts)
        self.seq_len = max(len(row.ids) for row in self.rows) - 1
        self.fingerprint = hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def longest(self, count: int) -> np.ndarray:
        """Return the indices of the `count` longest rows, which need the most memory."""
        return np.argsort([len(row.ids) for row in self.rows])[-count:]

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, each (len(indices), longest row - 1) int64."""
        rows = [self.rows[i] for i in indices]
        longest = max(len(row.ids) for row in rows)
        inputs = torch.zeros(len(rows), longest - 1, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE)
        for at, row in enumerate(rows):
            ids, scored = torch.tensor(row.ids), torch.tensor(row.scored)
            inputs[at, : len(ids) - 1] = ids[:-1]
            targets[at, : len(ids) - 1] = ids[1:].masked_fill(~scored[1:], IGNORE)
        return inputs, targets


def encode_completions(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, end: bool = False) -> list[Row]:
    """Encode (prompt, completion) pairs; only the completion tokens have a loss.

    With `end`, the separator follows and has a loss, so the model learns to stop.
    """
    prompts, answers = zip(*pairs, strict=True)
    suffix = [tokenizer.separator_id] if end else []
    encoded = zip(tokenizer.encode_batch(prompts), tokenizer.encode_batch(answers), strict=True)
    rows = []
    for prompt, answer in encoded:
        answer += suffix
        head = [tokenizer.separator_id, *prompt]
        rows.append(Row(head + answer, [False] * len(head) + [True] * len(answer)))
    return rows


def read_examples(path: Path, data: DataConfig, tokenizer: Tokenizer) -> tuple[list[Row], list[Row]]:
    """Read the training and validation texts of a .jsonl file.

    A line is {"prompt", "completion"} with a loss on the completion, or {"messages": [{"role",
    "content"}, …]}, formatted by the model's chat template, with a loss on the assistant's turns. A
    "group" stays in one split; `data.validation_fraction` is the held-out share. Raises UserError
    for a malformed line, naming it, and for an empty split.
    """
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    settings = data.model_copy(update={"test_fraction": 0.0})
    for number, row in read_json_rows(path, "examples"):
        place = f"{path}: line {number}"
        if "messages" in row:
            text = Row(*encode_chat(tokenizer, row["messages"], place))
            text_key = json.dumps(row["messages"])
        else:
            require_texts(row, place, ("prompt", "completion"))
            (text,) = encode_completions([(row["prompt"], row["completion"])], tokenizer, end=True)
            text_key = row["prompt"]
        split = assign_split(row_group(row) or text_key, settings)
        splits[split].append(text._replace(place=place))
    for split, texts in splits.items():
        if not texts:
            raise UserError(f"{path}: the {split} split is empty; add lines")
    return splits["train"], splits["validation"]


def _pack(texts: Sequence[Row], capacity: int) -> list[Row]:
    # Best-fit decreasing: the longest texts first, each into the fullest row that has space.
    rows: list[Row] = []
    spaces: list[tuple[int, int]] = []  # (space left, row), sorted
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        at = bisect_left(spaces, (len(text.ids), -1))
        if at == len(spaces):
            spaces.append((capacity, len(rows)))
            rows.append(Row([], []))
            at = len(spaces) - 1
        space, number = spaces.pop(at)
        rows[number].ids.extend(text.ids)
        rows[number].scored.extend(text.scored)
        insort(spaces, (space - len(text.ids), number))
    return rows
