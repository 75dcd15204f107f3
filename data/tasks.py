"""Labelled tasks that come with a corpus.

`tune-key`: the notes of a folk tune -> its key. The label stands in the tune's own K: line, which
is removed from the input; inputs follow the corpus' split, so no melody is in two of them.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from configs.cli import UserError
from configs.schema import TaskConfig
from data.builtin import ABC_HEADER
from data.prepare import shuffled

CLASSES = 10


class Item(NamedTuple):
    """One labelled example; `id` is its document's."""

    id: str
    text: str
    label: str


class Task(NamedTuple):
    """Items to learn from, to choose on and to be tested on, and the closed set of labels."""

    field: str
    """What an input is called in a prompt."""
    answer: str
    """What a label is called in a prompt."""
    labels: list[str]
    train: list[Item]
    validation: list[Item]
    test: list[Item]

    def prompt(self, text: str) -> str:
        """The input as `Field: value` lines with the answer left open."""
        return f"{self.field}: {text}\n{self.answer}:"

    @staticmethod
    def completion(label: str) -> str:
        """What follows a prompt: a space, the label, and a line end that closes it."""
        return f" {label}\n"


def load_task(config: TaskConfig, folder: Path) -> Task:
    """The task made from a folder of `data.prepare`; at most the asked number of items each.

    Items come in the order of `shuffled`, so the first few are not all from the first file.

    Raises UserError if the corpus does not hold such items.
    """
    splits = {
        split: [item for d in shuffled(folder, split) if (item := _tune_key(d, config.max_chars))]
        for split in ("train", "validation", "test")
    }
    common = Counter(item.label for item in splits["train"]).most_common(CLASSES)
    labels = sorted(label for label, _ in common)
    kept = {
        split: [item for item in items if item.label in labels] for split, items in splits.items()
    }
    for split, items in kept.items():
        if not items:
            raise UserError(f"task {config.name}: the corpus' {split} split has no tune with a key")
    return Task(
        "Tune",
        "Key",
        labels,
        kept["train"][: config.train_items],
        kept["validation"][: config.test_items],
        kept["test"][: config.test_items],
    )


def _tune_key(document: dict, max_chars: int) -> Item | None:
    lines = document["text"].split("\n")
    keys = [line[2:] for line in lines if line.startswith("K:") and ABC_HEADER.match(line)]
    notes = "".join(line.strip(" \\") for line in lines if not ABC_HEADER.match(line))
    notes = re.sub(r"\[K:[^\]]*\]", "", notes)
    match = re.match(r"([A-G][#b]?)\s*(\w*)", keys[0]) if len(keys) == 1 else None
    if not match or not notes:
        return None
    mode = match[2].lower()[:3]
    names = {"": "", "maj": "", "ion": "", "m": "m", "min": "m", "aeo": "m",
             "dor": "dor", "mix": "mix"}  # fmt: skip
    if mode not in names:
        return None
    return Item(document["id"], notes[:max_chars], match[1] + names[mode])
