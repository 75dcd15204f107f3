"""The rows of a ledger by method, axis and size, and what an method costs."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cli.errors import UserError
from compare.analysis.bootstrap import Resampled, Row, score

HELD_OUT = {"text": "document_bytes", "task": "items"}


class Sentence(NamedTuple):
    """A statement, and the ids of the rows that it follows from."""

    text: str
    rows: list[str]


def ids(*groups: Sequence[Row]) -> list[str]:
    """The ids of rows."""
    return [row["id"] for rows in groups for row in rows]


class Ledger:
    """All rows of a study. Raises UserError if they were not measured on the same held-out data."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = list(rows)
        self.groups: dict[tuple[str, str, float], list[Row]] = {}
        first: dict[str, Row] = {}
        for row in self.rows:
            self.groups.setdefault((row["axis"], row["arm"], row["size"]), []).append(row)
            other, key = first.setdefault(row["axis"], row), HELD_OUT[row["axis"]]
            if row.get(key) != other.get(key):
                raise UserError(
                    f"{row['id']} was measured on other held-out data than {other['id']}; the "
                    "study must be run again, with --overwrite"
                )
        self._scores: dict[tuple[str, str, float], Resampled] = {}

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """ledger.jsonl of a study. Raises UserError if there is none, or nothing in it."""
        path = folder / "ledger.jsonl"
        if not path.exists():
            raise UserError(f"{path}: no ledger; run: python -m compare.run STUDY --run-dir {folder}")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if not rows:
            raise UserError(f"{path}: holds no row yet")
        return cls(rows)

    def methods(self, axis: str) -> list[str]:
        """Arms that were measured on an axis, in the order of the ledger."""
        return list(dict.fromkeys(method for its, method, _ in self.groups if its == axis))

    def sizes(self, axis: str, method: str) -> list[float]:
        """At which sizes an method was measured, smallest first."""
        return sorted(size for its, name, size in self.groups if (its, name) == (axis, method))

    def at(self, axis: str, method: str, size: float) -> list[Row]:
        """The rows of a group, one per seed."""
        return self.groups[axis, method, size]

    def largest(self, axis: str, method: str) -> list[Row]:
        """The rows of an method's largest size."""
        return self.at(axis, method, self.sizes(axis, method)[-1])

    def score(self, axis: str, method: str, size: float | None = None) -> Resampled:
        """What an method scores, at its largest size if none is given."""
        size = self.sizes(axis, method)[-1] if size is None else size
        key = axis, method, size
        if key not in self._scores:
            self._scores[key] = score(self.groups[key], axis)
        return self._scores[key]


class Cost(NamedTuple):
    """What an method takes: once, and for every request. None where it was not counted."""

    once_seconds: float
    """Training, the mean over seeds, and the search before it."""
    once_flops: float
    request_seconds: float | None
    request_flops: float | None
    request_tokens: float | None
    """That run through the model."""
    prompt_tokens: float | None
    """Of the whole prompt, what is read once for all items included."""
    stored_bytes: float
    peak_bytes: float
    labels: float
    """Labelled items that it learns from, shows, or chooses by."""

    def seconds(self, requests: float) -> float:
        """All that so many requests take, training included."""
        return self.once_seconds + requests * (self.request_seconds or 0.0)

    def money(self, requests: float, per_hour: float, per_label: float) -> float:
        """As `seconds`, at a price per hour, with its labels."""
        return self.seconds(requests) / 3600 * per_hour + self.labels * per_label


NOTHING = Cost(0.0, 0.0, None, None, None, None, 0.0, 0.0, 0.0)


def cost_of(rows: Sequence[Row], before: Sequence[Row] = (), searched: Sequence[Row] = ()) -> Cost:
    """What an method at one size takes; `before` are the rows of the method that it goes on from.

    `searched` are the rows that the search is in, where `rows` are only some of the seeds.
    """

    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return statistics.mean(values) if values else None

    def search(key: str) -> float:
        # What was tried in vain: all tries but the one that is counted as training.
        chose = [row for row in searched or rows if row["search"]]
        tried = [sum(each[key] for each in row["search"]) for row in chose]
        chosen = [row.get(f"training_{key}") or 0.0 for row in chose]
        return sum(tried) - sum(chosen) if tried else 0.0

    first = cost_of(before) if before else NOTHING
    return Cost(
        (mean("training_seconds") or 0.0) + search("seconds") + first.once_seconds,
        (mean("training_flops") or 0.0) + search("flops") + first.once_flops,
        mean("seconds_per_request"),
        mean("flops_per_request"),
        mean("read_tokens"),
        mean("prompt_tokens"),
        mean("stored_bytes") or first.stored_bytes,
        max(first.peak_bytes, statistics.median(row["peak_bytes"] for row in rows)),
        mean("labels") or 0.0,
    )
