"""Labelled tasks made from the built-in corpora.

    tune-key        folk-tunes      notes -> key (the ten most frequent)
    tune-rhythm     folk-tunes      notes -> rhythm (six: reel, jig, hornpipe, …)
    tune-meter      folk-tunes      notes -> metre (the seven most frequent)
    api-operation   aws-api         first sentence of the documentation -> name of the operation
    api-service     aws-api         the same sentence -> service (the twelve with most operations)
    docstring-name  python-stdlib   first paragraph of a docstring -> name of the function

The input never contains the label. Items keep the split of their document, so no melody, service
or package is in two splits. `api-service` needs every service in the training split, so its corpus
must be split document by document (data.group_field = "document").
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.builtin import ABC_HEADER
from data.items import Item, Kind

RHYTHMS = ("clog", "hornpipe", "jig", "reel", "slip jig", "strathspey")
_MODES = {"": "", "maj": "", "ion": "", "m": "m", "min": "m", "aeo": "m", "dor": "dor", "mix": "mix"}


class TaskBuilder(NamedTuple):
    """How to make the items of a task from the documents of a corpus."""

    field: str
    answer: str
    kind: Kind
    classes: int
    """Number of most frequent labels in the closed set; 0 for open answers."""
    source: str
    """What an item is made from, for error messages."""
    make_items: Callable[[dict], Iterator[Item]]


def _parse_tune(document: dict) -> tuple[dict[str, list[str]], str]:
    headers: dict[str, list[str]] = {}
    notes = ""
    for line in document["text"].split("\n"):
        if ABC_HEADER.match(line):
            headers.setdefault(line[0], []).append(line[2:].strip())
        else:
            notes += line.strip(" \\")
    return headers, re.sub(r"\[[KMR]:[^\]]*\]", "", notes)


def _tune_key_items(document: dict) -> Iterator[Item]:
    headers, notes = _parse_tune(document)
    keys = headers.get("K", [])
    match = re.match(r"([A-G][#b]?)\s*(\w*)", keys[0]) if len(keys) == 1 else None
    mode = match[2].lower()[:3] if match else "?"
    if match and notes and mode in _MODES:
        yield Item(document["id"], notes, match[1] + _MODES[mode])


def _tune_rhythm_items(document: dict) -> Iterator[Item]:
    headers, notes = _parse_tune(document)
    names = [name.lower() for name in headers.get("R", [])]
    if notes and len(names) == 1 and names[0] in RHYTHMS:
        yield Item(document["id"], notes, names[0])


def _tune_meter_items(document: dict) -> Iterator[Item]:
    headers, notes = _parse_tune(document)
    meters = headers.get("M", [])
    if notes and len(meters) == 1:
        yield Item(document["id"], notes, meters[0])


def _parse_operation(document: dict) -> tuple[str, str, str] | None:
    service, _, kind, name = document["id"].split("/")
    _, _, text = document["text"].partition("\n")
    sentence = re.split(r"(?<=[.!?])\s", text.split("\n")[0], maxsplit=1)[0]
    if kind != "operation" or len(sentence) < 20:
        return None
    return service, name, sentence


def _api_operation_items(document: dict) -> Iterator[Item]:
    if operation := _parse_operation(document):
        _, name, sentence = operation
        yield Item(document["id"], sentence, name)


def _api_service_items(document: dict) -> Iterator[Item]:
    if operation := _parse_operation(document):
        service, _, sentence = operation
        if service.lower() not in sentence.lower():
            yield Item(document["id"], sentence, service)


def _docstring_name_items(document: dict) -> Iterator[Item]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(document["text"])
    except (SyntaxError, ValueError):  # sample code for another Python version
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(text) >= 20 and not node.name.startswith("_"):
                yield Item(f"{document['id']}:{node.lineno}", text, node.name)


TASKS = {
    "tune-key": TaskBuilder("Tune", "Key", "classification", 10, "tune with a key", _tune_key_items),
    "tune-rhythm": TaskBuilder("Tune", "Rhythm", "classification", 6, "tune with a rhythm", _tune_rhythm_items),
    "tune-meter": TaskBuilder("Tune", "Meter", "classification", 7, "tune with a metre", _tune_meter_items),
    "api-operation": TaskBuilder(
        "Description", "Operation", "naming", 0, "operation of AWS (aws-api)", _api_operation_items
    ),
    "api-service": TaskBuilder(
        "Description",
        "Service",
        "classification",
        12,
        'service that is also in the train split: set data.group_field = "document"',
        _api_service_items,
    ),
    "docstring-name": TaskBuilder(
        "Docstring", "Function", "naming", 0, "documented function (python-stdlib)", _docstring_name_items
    ),
}
