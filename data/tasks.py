"""Labelled tasks: built from a corpus, or read from a user's file.

The answer is a label of a closed set (classification), a short text that must match exactly
(naming), or free text (completion). The items are in three splits; a group is never in two of
them. A .jsonl file defines a task with one item per line:

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
from data.builtin import TASKS, WHOLE_TASKS
from data.items import Item, Task
from data.prepare import prepare
from data.readers import parse_json_lines
from data.splits import SPLITS, read_shuffled


def load_task(config: TaskConfig, data: DataConfig) -> Task:
    """Load the task named by `config`, with at most the configured number of items per split.

    A built-in task is made from the corpus named by `data` and keeps its splits; a file is split by
    group, with the fractions of `data`. Items are in a fixed shuffled order, so the first few do
    not all come from one file.

    Raises UserError for an unknown name, a malformed file (naming the line), and an empty split.
    """
    if config.name.endswith(".jsonl"):
        return _apply_limits(_load_file(config, data), config)
    if config.name in WHOLE_TASKS:
        return _apply_limits(WHOLE_TASKS[config.name](config.train_items, config.test_items), config)
    if config.name not in TASKS:
        hint = nearest(config.name, sorted((*TASKS, *WHOLE_TASKS)))
        raise UserError(f'task.name: no task or .jsonl file "{config.name}"{hint}')
    builder, folder = TASKS[config.name], prepare(data)
    items = {
        split: [i._replace(group=row_group(d)) for d in read_shuffled(folder, split) for i in builder.make_items(d)]
        for split in SPLITS
    }
    common = Counter(item.label for item in items["train"]).most_common(builder.classes)
    labels = sorted(label for label, _ in common)
    items = {split: [i for i in its if i.label in labels] for split, its in items.items()}
    for split, split_items in items.items():
        if not split_items:
            raise UserError(f"task {config.name}: the {split} split of the corpus has no {builder.source}")
    train, validation, test = (items[split] for split in SPLITS)
    return _apply_limits(Task(builder.field, builder.answer, labels, train, validation, test), config)


def _apply_limits(task: Task, config: TaskConfig) -> Task:
    def truncate(items: list[Item], count: int) -> list[Item]:
        long = sum(len(item.text) > config.max_chars for item in items[:count])
        if long:
            say(
                f"{config.name}: {long} of {min(count, len(items))} texts are truncated to task.max_chars"
                f" = {config.max_chars} characters"
            )
        return [item._replace(text=item.text[: config.max_chars]) for item in items[:count]]

    return task._replace(
        train=truncate(task.train, config.train_items),
        validation=truncate(task.validation, config.test_items),
        test=truncate(task.test, config.test_items),
        instruction=config.instruction,
    )


def _load_file(config: TaskConfig, data: DataConfig) -> Task:
    path = Path(config.name)
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    split_of_group: dict[str, str] = {}
    for number, row in read_json_rows(path, "task.name"):
        require_texts(row, f"{path}: line {number}", ("text", "label"))
        group = row_group(row)
        split = row.get("split") or assign_split(group or row["text"], data)
        if split not in splits:
            hint = nearest(str(split), SPLITS)
            raise UserError(f'{path}: line {number}: no split "{split}"{hint}')
        if group and split_of_group.setdefault(group, split) != split:
            raise UserError(
                f'{path}: line {number}: group "{group}" is already in the {split_of_group[group]} split, '
                f"here it is in {split}; use one split per group"
            )
        splits[split].append(Item(f"{path.name}:{number}", row["text"], row["label"], group))
    trained = {item.text for item in splits["train"]}
    for split in ("validation", "test"):  # leak check: no held-out item is also a training item
        splits[split] = [item for item in splits[split] if item.text not in trained]
    for split, items in splits.items():
        if not items:
            raise UserError(f'{path}: the {split} split is empty; add lines, or set "split" on each line')
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


def read_json_rows(path: Path, key: str) -> Iterator[tuple[int, dict]]:
    """Read the objects of a .jsonl file with their line numbers, from 1.

    Raises UserError for a malformed line, naming it, and if the file cannot be read, naming the setting `key`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path}: {error}") from None
    return parse_json_lines(path, lines)


def require_texts(row: dict, place: str, fields: tuple[str, ...]) -> None:
    """Raises UserError, naming `place`, unless the row has a non-empty string in each of `fields`."""
    for name in fields:
        if name not in row:
            raise UserError(f'{place}: no "{name}"; its keys: {", ".join(row) or "none"}')
        if not isinstance(row[name], str) or not row[name].strip():
            raise UserError(f'{place}: "{name}" is not a non-empty string: {json.dumps(row[name])[:60]}')


def row_group(row: dict) -> str:
    """Return the group of a row as text (a number, 0 included, is a group), or an empty string."""
    return "" if row.get("group") is None else str(row["group"])


def assign_split(group: str, data: DataConfig) -> str:
    """Assign a group to a split by its hash and the fractions of `data`."""
    number = int.from_bytes(hashlib.sha256(f"{data.split_seed}:{group}".encode()).digest())
    share = number / 2**256
    if share < data.test_fraction:
        return "test"
    return "validation" if share < data.test_fraction + data.validation_fraction else "train"
