"""Labelled tasks: built from a corpus, or read from a file of your own.

A task is a closed set of labels to choose from (classification), a short answer that must be met
exactly (naming), or free text (completion). Its items come in three splits that follow groups: an
item's group is never in two of them. One file defines a task, a line per item:

    {"text": "the input", "label": "the answer", "group": "optional", "split": "optional"}
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cli.console import say
from cli.errors import UserError, nearest
from configs.schema import DataConfig, TaskConfig
from data.builtin_tasks import TASKS
from data.items import Item, Task
from data.prepare import SPLITS, prepare, read_shuffled


def load_task(config: TaskConfig, data: DataConfig) -> Task:
    """The task named by `config`, at most the asked number of items each.

    A built-in is made from the corpus that `data` names and follows its split; a file is split by
    its groups into shares of the same size. Items come in a fixed order that is not the files', so
    the first few are not all from one.

    Raises UserError for an unknown name, a malformed file (the line is named), and a split without
    items.
    """
    if config.name.endswith(".jsonl"):
        return _limited(_from_file(config, data), config)
    if config.name not in TASKS:
        hint = nearest(config.name, sorted(TASKS))
        raise UserError(f'task.name: no task or .jsonl file "{config.name}"{hint}')
    made, folder = TASKS[config.name], prepare(data)
    items = {split: [item for d in read_shuffled(folder, split) for item in made.items(d)] for split in SPLITS}
    if made.kind == "naming":  # an answer that can be copied tells nothing
        items = {s: [i for i in its if i.label.lower() not in i.text.lower()] for s, its in items.items()}
    labels: list[str] = []
    if made.classes:
        common = Counter(item.label for item in items["train"]).most_common(made.classes)
        labels = sorted(label for label, _ in common)
        items = {s: [i for i in its if i.label in labels] for s, its in items.items()}
    for split, found in items.items():
        if not found:
            raise UserError(f"task {config.name}: the corpus' {split} split has no {made.what}")
    train, validation, test = (items[split] for split in SPLITS)
    task = Task(made.field, made.answer, labels, train, validation, test, made.kind)
    return _limited(task, config)


def _limited(task: Task, config: TaskConfig) -> Task:
    def short(items: list[Item], count: int) -> list[Item]:
        long = sum(len(item.text) > config.max_chars for item in items[:count])
        if long:
            say(
                f"{config.name}: {long} of {min(count, len(items))} texts are cut to task.max_chars"
                f" = {config.max_chars} characters"
            )
        return [item._replace(text=item.text[: config.max_chars]) for item in items[:count]]

    return task._replace(
        train=short(task.train, config.train_items),
        validation=short(task.validation, config.test_items),
        test=short(task.test, config.test_items),
        instruction=config.instruction,
    )


def _from_file(config: TaskConfig, data: DataConfig) -> Task:
    path = Path(config.name)
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    placed: dict[str, str] = {}
    for number, line in read_numbered_lines(path, "task.name"):
        row = parse_row(line, f"{path}: line {number}", ("text", "label"))
        group = row_group(row, row["text"])
        split = row.get("split") or assign_split(group, data)
        if split not in splits:
            hint = nearest(str(split), SPLITS)
            raise UserError(f'{path}: line {number}: no split "{split}"{hint}')
        if has_group(row) and placed.setdefault(group, split) != split:
            raise UserError(
                f'{path}: line {number}: group "{group}" is in the {placed[group]} split already, not in {split}'
            )
        splits[split].append(Item(f"{path.name}:{number}", row["text"], row["label"]))
    seen = {item.text for item in splits["train"]}
    for split in ("validation", "test"):  # what has been trained on is not asked
        splits[split] = [item for item in splits[split] if item.text not in seen]
    for split, items in splits.items():
        if not items:
            raise UserError(f'{path}: no item is left for the {split} split; add lines, or give each a "split"')
        items.sort(key=lambda item: hashlib.sha256(item.text.encode()).digest())
    labels: list[str] = []
    if config.kind == "classification":
        labels = sorted({item.label for item in splits["train"]})
        for split in ("validation", "test"):
            for item in splits[split]:
                if item.label not in labels:
                    line = item.id.rpartition(":")[2]
                    raise UserError(
                        f'{path}: line {line}: no training item has the label "{item.label}"; '
                        'use task.kind = "naming" for open answers'
                    )
    train, validation, test = splits.values()
    return Task(config.field, config.answer, labels, train, validation, test, config.kind)


def read_numbered_lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, from 1. Raises UserError, naming the setting."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path}: {error}") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def parse_row(line: str, place: str, fields: tuple[str, ...]) -> dict:
    """A JSON object with texts in `fields`. Raises UserError, naming the place."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object: {line[:60]}")
    for name in fields:
        if name not in row:
            raise UserError(f'{place}: no "{name}"; it has: {", ".join(row) or "nothing"}')
        if not isinstance(row[name], str) or not row[name].strip():
            raise UserError(f'{place}: "{name}" is not a text: {json.dumps(row[name])[:60]}')
    return row


def has_group(row: dict) -> bool:
    """Whether a row says which others it belongs to; a group may be a number, 0 too."""
    return row.get("group") not in (None, "")


def row_group(row: dict, otherwise: str) -> str:
    """What of a file stays in one split with this row."""
    return str(row["group"]) if has_group(row) else otherwise


def assign_split(group: str, data: DataConfig) -> str:
    """Which split a group of a file belongs to, by its hash and the shares that `data` names."""
    number = int.from_bytes(hashlib.sha256(f"{data.split_seed}:{group}".encode()).digest())
    share = number / 2**256
    if share < data.test_fraction:
        return "test"
    return "validation" if share < data.test_fraction + data.validation_fraction else "train"
