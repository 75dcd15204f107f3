"""The rows of a ledger by axis, method and size, and the cost of a method."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cli.errors import UserError
from compare.analysis.bootstrap import Resampled, Row, score

HELD_OUT_KEYS = {"text": "document_bytes", "task": "items"}  # equal in all rows of an axis


class Sentence(NamedTuple):
    """A sentence of the verdict, and the ids of the rows that support it."""

    text: str
    rows: list[str]


def row_ids(*groups: Sequence[Row]) -> list[str]:
    """The ids of all rows in some groups."""
    return [row["id"] for rows in groups for row in rows]


class Ledger:
    """All rows of a study. Raises UserError if they were measured on different held-out data."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = list(rows)
        self.groups: dict[tuple[str, str, float], list[Row]] = {}
        first: dict[str, Row] = {}
        for row in self.rows:
            self.groups.setdefault((row["axis"], row["arm"], row["size"]), []).append(row)
            other, key = first.setdefault(row["axis"], row), HELD_OUT_KEYS[row["axis"]]
            if row.get(key) != other.get(key):
                raise UserError(
                    f"{row['id']} and {other['id']} were measured on different held-out data; "
                    "run the study again with --overwrite"
                )
        self._scores: dict[tuple[str, str, float], Resampled] = {}

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Read ledger.jsonl of a study. Raises UserError if the file is missing or empty."""
        path = folder / "ledger.jsonl"
        if not path.exists():
            raise UserError(f"{path}: ledger not found; run: python -m compare.run STUDY --run-dir {folder}")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if not rows:
            raise UserError(f"{path}: the ledger is empty; continue the study with --resume")
        return cls(rows)

    def methods(self, axis: str) -> list[str]:
        """Methods that were measured on an axis, in the order of the ledger."""
        return list(dict.fromkeys(method for group_axis, method, _ in self.groups if group_axis == axis))

    def sizes(self, axis: str, method: str) -> list[float]:
        """The sizes at which a method was measured, smallest first."""
        return sorted(size for group_axis, name, size in self.groups if (group_axis, name) == (axis, method))

    def at(self, axis: str, method: str, size: float) -> list[Row]:
        """The rows of a method at one size, one per seed."""
        return self.groups[axis, method, size]

    def largest(self, axis: str, method: str) -> list[Row]:
        """The rows of a method at its largest size, one per seed."""
        return self.at(axis, method, self.sizes(axis, method)[-1])

    def curve(self, axis: str, method: str) -> list[Resampled]:
        """The scores of a method at all of its sizes, smallest first."""
        return [self.score(axis, method, size) for size in self.sizes(axis, method)]

    def row_ids(self, axis: str, *methods: str) -> list[str]:
        """The ids of the rows of some methods at all of their sizes."""
        return row_ids(*(self.at(axis, method, size) for method in methods for size in self.sizes(axis, method)))

    def score(self, axis: str, method: str, size: float | None = None) -> Resampled:
        """The score of a method at `size`, by default its largest."""
        size = self.sizes(axis, method)[-1] if size is None else size
        key = axis, method, size
        if key not in self._scores:
            self._scores[key] = score(self.groups[key], axis)
        return self._scores[key]


class Cost(NamedTuple):
    """The cost of a method: fixed, and per request. None where it was not measured."""

    fixed_seconds: float
    """Training (mean over seeds) and hyperparameter search, with those of the base method."""
    fixed_flops: float
    """FLOPs of the same."""
    request_seconds: float | None
    request_flops: float | None
    request_tokens: float | None
    """Tokens that the model processes."""
    prompt_tokens: float | None
    """Tokens of the whole prompt, including a prefix that is processed once for all items."""
    stored_bytes: float
    peak_bytes: float
    labels: float
    """Labelled items for training, prompts and validation."""

    def seconds(self, requests: float) -> float:
        """Seconds of the fixed costs and of `requests` requests."""
        return self.fixed_seconds + requests * (self.request_seconds or 0.0)

    def money(self, requests: float, per_hour: float, per_label: float) -> float:
        """The price of `seconds(requests)` and of the labels."""
        return self.seconds(requests) / 3600 * per_hour + self.labels * per_label


NO_COST = Cost(0.0, 0.0, None, None, None, None, 0.0, 0.0, 0.0)


def cost_of(rows: Sequence[Row], before: Sequence[Row] = (), searched: Sequence[Row] = ()) -> Cost:
    """The cost of a method at one size; `before` are the rows of its base method.

    `searched` are the rows that contain the search, if `rows` are only some of the seeds.
    """

    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return statistics.mean(values) if values else None

    def search(key: str) -> float:
        # All tries except the chosen one, which is counted as training.
        with_search = [row for row in searched or rows if row["search"]]
        tried = [sum(each[key] for each in row["search"]) for row in with_search]
        chosen = [row.get(f"training_{key}") or 0.0 for row in with_search]
        return sum(tried) - sum(chosen) if tried else 0.0

    base = cost_of(before) if before else NO_COST
    return Cost(
        (mean("training_seconds") or 0.0) + search("seconds") + base.fixed_seconds,
        (mean("training_flops") or 0.0) + search("flops") + base.fixed_flops,
        mean("seconds_per_request"),
        mean("flops_per_request"),
        mean("read_tokens"),
        mean("prompt_tokens"),
        mean("stored_bytes") or base.stored_bytes,
        max(base.peak_bytes, statistics.median(row["peak_bytes"] for row in rows)),
        mean("labels") or 0.0,
    )
