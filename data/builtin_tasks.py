"""Labelled tasks made from the built-in corpora.

    tune-key        folk-tunes      notes -> key (the ten most frequent)
    api-service     aws-api         first sentence of the documentation -> service (the twelve with most operations)

The input never contains the label. Items keep the split of their document, so no melody, service
or package is in two splits. `api-service` needs every service in the training split, so its corpus
must be split document by document (data.group_field = "document").
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.builtin import ABC_HEADER
from data.items import Item

_MODES = {"": "", "maj": "", "ion": "", "m": "m", "min": "m", "aeo": "m", "dor": "dor", "mix": "mix"}


class TaskBuilder(NamedTuple):
    """How to make the items of a classification task from the documents of a corpus."""

    field: str
    answer: str
    classes: int
    """Number of most frequent labels in the closed set."""
    source: str
    """What an item is made from, for error messages."""
    make_items: Callable[[dict], Iterator[Item]]


def _tune_key_items(document: dict) -> Iterator[Item]:
    keys: list[str] = []
    notes = ""
    for line in document["text"].split("\n"):
        if not ABC_HEADER.match(line):
            notes += line.strip(" \\")
        elif line[0] == "K":
            keys.append(line[2:].strip())
    notes = re.sub(r"\[[KMR]:[^\]]*\]", "", notes)
    match = re.match(r"([A-G][#b]?)\s*(\w*)", keys[0]) if len(keys) == 1 else None
    mode = match[2].lower()[:3] if match else "?"
    if match and notes and mode in _MODES:
        yield Item(document["id"], notes, match[1] + _MODES[mode])


def _api_service_items(document: dict) -> Iterator[Item]:
    service, _, kind, _ = document["id"].split("/")
    _, _, text = document["text"].partition("\n")
    sentence = re.split(r"(?<=[.!?])\s", text.split("\n")[0], maxsplit=1)[0]
    if kind == "operation" and len(sentence) >= 20 and service.lower() not in sentence.lower():
        yield Item(document["id"], sentence, service)


TASKS = {
    "tune-key": TaskBuilder("Tune", "Key", 10, "tune with a key", _tune_key_items),
    "api-service": TaskBuilder(
        "Description",
        "Service",
        12,
        'service that is also in the train split: set data.group_field = "document"',
        _api_service_items,
    ),
}
