"""The rows of a ledger by axis, method and size, and the cost of a method."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cli.errors import UserError
from compare.analysis.bootstrap import Resampled, Row, score
from compare.methods import METHODS
from compare.rows import CALIBRATION, check_edition

HELD_OUT_KEYS = {"text": "document_bytes", "task": "items"}  # equal in all rows of an axis


class Sentence(NamedTuple):
    """A sentence of the verdict, and the ids of the rows that support it."""

    text: str
    rows: list[str]


def row_ids(*groups: Sequence[Row]) -> list[str]:
    """The ids of all rows in some groups."""
    return [row["id"] for rows in groups for row in rows]


class Ledger:
    """All rows of a study. Raises UserError if they were measured on different held-out data.

    With several foundation models, a method that uses one is named as "lora @ smollm2-135m".
    """

    def __init__(self, rows: Sequence[Row]):
        self.calibration: Row = next((row for row in rows if row["id"] == CALIBRATION), {})
        cells = [row for row in rows if row["id"] != CALIBRATION]
        self.searches = {self._key(row): row for row in cells if "search" in row}
        self.rows = [row for row in cells if "search" not in row]
        self.groups: dict[tuple[str, str, float], list[Row]] = {}
        self.budgets: dict[tuple[str, str, float], list[Row]] = {}  # (axis, method, factor), at the largest size
        first: dict[str, Row] = {}
        for row in self.rows:
            axis, method, size, factor = self._key(row)
            if factor == 1:
                self.groups.setdefault((axis, method, size), []).append(row)
            else:
                self.budgets.setdefault((axis, method, factor), []).append(row)
            other, key = first.setdefault(axis, row), HELD_OUT_KEYS[axis]
            if row.get(key) != other.get(key):
                raise UserError(
                    f"{row['id']} and {other['id']} were measured on different held-out data; "
                    "run the study again with --overwrite"
                )
        self._scores: dict[tuple[str, str, float], Resampled] = {}

    @staticmethod
    def _key(row: Row) -> tuple[str, str, float, float]:
        foundation = row.get("foundation")
        return row["axis"], row["method"] + (f" @ {foundation}" if foundation else ""), row["size"], row["factor"]

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Read ledger.jsonl of a study. Raises UserError if the file is missing, empty, or of another edition."""
        path = folder / "ledger.jsonl"
        if not path.exists():
            raise UserError(f"{path}: ledger not found; run: python -m compare.run STUDY --run-dir {folder}")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[:1]:
            check_edition(folder, row)
        ledger = cls(rows)
        if not ledger.rows:
            raise UserError(f"{path}: the ledger is empty; continue the study with --resume")
        return ledger

    def search_of(self, axis: str, method: str, size: float, factor: float = 1.0) -> Row | None:
        """The row of the cell that chose the setting; None if there was nothing to choose."""
        return self.searches.get((axis, method, size, factor))

    def cost(self, axis: str, method: str, size: float, factor: float = 1.0) -> "Cost":
        """The cost of a method with `factor` times the budget, with its search and its base method."""
        base = self.base_of(method)
        before = self.cost("text", base, 1.0) if base else NO_COST
        rows, search = self.measured(axis, method, size, factor), self.search_of(axis, method, size, factor)
        return cost_of(rows, search, before)

    def base_of(self, method: str) -> str:
        """The method whose model `method` starts from, with the same foundation; "" if there is none."""
        base = METHODS[name_of(method)].base_method
        if base and METHODS[base].uses_foundation:
            base += method.removeprefix(name_of(method))
        return base if ("text", base, 1.0) in self.groups else ""

    def methods(self, axis: str) -> list[str]:
        """Methods that were measured on an axis, in the order of the ledger."""
        return list(dict.fromkeys(method for group_axis, method, _ in self.groups if group_axis == axis))

    def variants(self, axis: str, *names: str) -> list[str]:
        """The methods of these names, one per foundation model: "lora", or "lora @ a" and "lora @ b"."""
        return [method for name in names for method in self.methods(axis) if name_of(method) == name]

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

    def measured(self, axis: str, method: str, size: float = 1.0, factor: float = 1.0) -> list[Row]:
        """The rows of a method at one size with `factor` times the budget, one per seed; empty if there are none.

        Other budgets than the study's own are measured at the largest size alone.
        """
        if factor == 1:
            return self.groups.get((axis, method, size), [])
        return self.budgets.get((axis, method, factor), [])

    def budget_score(self, axis: str, method: str, factor: float) -> Resampled:
        """The score of a method at its largest size with `factor` times the budget."""
        return self.score(axis, method) if factor == 1 else score(self.budgets[axis, method, factor], axis)


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


def name_of(method: str) -> str:
    """The name in METHODS of a ledger's method, without its foundation."""
    return method.partition(" @ ")[0]


def foundation_of(method: str) -> str:
    """The foundation in the name of a ledger's method; "" if the study has only one."""
    return method.partition(" @ ")[2]


def cost_of(rows: Sequence[Row], search: Row | None = None, base: Cost = NO_COST) -> Cost:
    """The cost of a method at one size: its rows, the row of its search, and the cost of its base method."""

    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return statistics.mean(values) if values else None

    def searched(key: str) -> float:
        return sum(each[key] for each in search["search"]) if search else 0.0

    return Cost(
        (mean("training_seconds") or 0.0) + searched("seconds") + base.fixed_seconds,
        (mean("training_flops") or 0.0) + searched("flops") + base.fixed_flops,
        mean("seconds_per_request"),
        mean("flops_per_request"),
        mean("read_tokens"),
        mean("prompt_tokens"),
        mean("stored_bytes") or base.stored_bytes,
        max(base.peak_bytes, statistics.median(row["peak_bytes"] for row in rows)),
        mean("labels") or 0.0,
    )
