"""Sort more records than memory holds: partition them on disk by key, then sort part by part."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

PART_BYTES = 1 << 23  # size of a part, which is sorted in memory
MOST_PARTS = 500  # open files; parts of more records are larger


class ExternalSort:
    """Sorts numpy records by their field "key" (uint64); equal keys keep their order.

    Keys should be spread evenly below `limit`: each part holds a range of them. A context manager
    that removes its temporary files.
    """

    def __init__(self, folder: Path, dtype: list, records: int, limit: int):
        """`records` is the number to come (an estimate), `limit` is above every key."""
        self.dtype = np.dtype(dtype)
        self.limit = float(limit)
        self.folder = folder
        self.parts = min(MOST_PARTS, max(1, -(-records * self.dtype.itemsize // PART_BYTES)))

    def __enter__(self) -> "ExternalSort":
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.files = [open(self.folder / str(part), "wb+") for part in range(self.parts)]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self.files:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, *columns: np.ndarray) -> None:
        """Add records, given as one array per field."""
        records = np.empty(len(columns[0]), self.dtype)
        for name, column in zip(self.dtype.names or (), columns, strict=True):
            records[name] = column
        if self.parts == 1:
            records.tofile(self.files[0])
            return
        part = np.minimum((records["key"] / self.limit * self.parts).astype(np.int64), self.parts - 1)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(self.parts + 1))
        for i, file in enumerate(self.files):
            records[order[bounds[i] : bounds[i + 1]]].tofile(file)

    def sorted_parts(self) -> Iterator[np.ndarray]:
        """The records in order, part by part; records of one key are in one part."""
        for file in self.files:
            file.seek(0)
            records = np.fromfile(file, self.dtype)
            yield records[np.argsort(records["key"], kind="stable")]
