"""Exact and near-duplicate removal, and documents that straddle two splits, on files.

A document is a near-duplicate of an earlier one that was kept if the two MinHash signatures share a
band (LSH, Indyk & Motwani 1998) and the estimated Jaccard similarity reaches a threshold: the same
answer as one pass over the documents with an index of all kept ones in memory. Documents have
numbers, in the order of the corpus; a signature is a row of the files that data/cleaning.py writes.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from cli.console import track
from cli.workers import Workers
from data.cleaning import PERMUTATIONS, Piece
from data.external_sort import ExternalSort

_ENTRY = [("key", "u8"), ("band", "i2"), ("group", "i8")]  # the key is a document
_ENTRY_BYTES = 16  # in the files of bands: document and group
FEW = 100_000  # documents that one process compares before others have started
_ROW_BYTES = 4 * PERMUTATIONS
_MOST_OPEN = 128  # files
_RECALL = 0.95  # of pairs at the threshold: the share that has a band in common


class Signatures:
    """The signatures of all documents, in the files of the pieces."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]):
        """`sizes` is the number of documents of each piece."""
        self.paths = [path.with_suffix(".signatures") for path in paths]
        self.starts = np.cumsum([0, *sizes])
        self._files: dict[int, IO[bytes]] = {}

    def read_piece(self, number: int) -> np.ndarray:
        """uint32 (documents, 96) of one piece."""
        return np.fromfile(self.paths[number], np.uint32).reshape(-1, PERMUTATIONS)

    def read(self, documents: np.ndarray) -> np.ndarray:
        """uint32 (len(documents), 96)."""
        rows = np.empty((len(documents), PERMUTATIONS), np.uint32)
        pieces = np.searchsorted(self.starts, documents, side="right") - 1
        for row, document, piece in zip(rows, documents.tolist(), pieces.tolist(), strict=True):
            if piece not in self._files:
                if len(self._files) == _MOST_OPEN:
                    self.close()
                self._files[piece] = open(self.paths[piece], "rb", buffering=0)
            self._files[piece].seek((document - int(self.starts[piece])) * _ROW_BYTES)
            row[:] = np.frombuffer(self._files[piece].read(_ROW_BYTES), np.uint32)
        return rows

    def close(self) -> None:
        """Close the files that `read` left open."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def rows_per_band(threshold: float) -> int:
    """The longest bands with the wanted recall at `threshold`: they give the fewest false candidates."""
    divisors = [n for n in range(2, PERMUTATIONS + 1) if PERMUTATIONS % n == 0]
    usable = [n for n in divisors if (1 - threshold**n) ** (PERMUTATIONS / n) <= 1 - _RECALL]
    return max(usable, default=1)


def band_keys(signatures: np.ndarray, band: int, rows: int) -> np.ndarray:
    """uint64 (documents,): a hash of one band of (documents, 96) signatures."""
    keys = np.full(len(signatures), band + 1, np.uint64)
    for column in signatures[:, band * rows : (band + 1) * rows].T:
        # The finaliser of splitmix64 (Steele et al. 2014, figure 17), once per value.
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(31)
    return keys


def exact_duplicates(pieces: Iterator[Piece], total: int, folder: Path) -> np.ndarray:
    """Bool (total,): whether an earlier document has the same text."""
    dropped, number = np.zeros(total, bool), 0
    dtype = [("key", "u8"), ("rest", "u8"), ("document", "i8")]
    with ExternalSort(folder, dtype, total, 1 << 64) as records:
        for piece in pieces:
            documents = np.arange(number, number + len(piece))
            records.add(*piece.digests.T, documents)
            number += len(piece)
        for part in records.sorted_parts():
            part = part[np.lexsort((part["document"], part["rest"], part["key"]))]
            same = (part["key"][1:] == part["key"][:-1]) & (part["rest"][1:] == part["rest"][:-1])
            dropped[part["document"][1:][same]] = True
    return dropped


def write_band(signatures: Signatures, dropped: Path, band: int, rows: int, folder: Path) -> Path:
    """Find the documents that have a band in common; writes and returns `folder`/BAND.

    int64 (entries, 2): document and group, sorted by group, then document. Documents of one group
    agree in this band; those that agree with no other are left out, and so are `dropped` ones.
    """
    skip, path, groups = np.load(dropped), folder / f"{band:02}", 0
    temporary = path.with_suffix(".tmp")
    sort = ExternalSort(path.with_suffix(".sort"), [("key", "u8"), ("document", "i8")], len(skip), 1 << 64)
    with sort as records, open(temporary, "wb") as file:
        for number, start in enumerate(signatures.starts[:-1]):
            kept = np.flatnonzero(~skip[start : signatures.starts[number + 1]])
            records.add(band_keys(signatures.read_piece(number)[kept], band, rows), kept + start)
        for part in records.sorted_parts():
            same = part["key"][1:] == part["key"][:-1]
            follows, leads = np.append(False, same)[: len(part)], np.append(same, False)[: len(part)]
            shared = follows | leads
            numbers = groups + np.cumsum(~follows[shared]) - 1
            np.stack([part["document"][shared], numbers], 1).tofile(file)
            groups += int((~follows[shared]).sum())
    temporary.replace(path)
    return path


def _read_entries(path: Path) -> Iterator[np.ndarray]:
    with open(path, "rb") as file:
        while len(entries := np.fromfile(file, np.int64, 1 << 20)):
            yield entries.reshape(-1, 2)


def near_duplicates(
    signatures: Signatures, exact: Path, threshold: float, folder: Path, workers: Workers
) -> np.ndarray:
    """float64 (pairs, 3): a near-duplicate, the kept document it is similar to, and their similarity.

    `exact` is the file of an array like that of `exact_duplicates`: documents to leave out.
    """
    rows = rows_per_band(threshold)
    bands = [folder / f"{band:02}" for band in range(PERMUTATIONS // rows)]
    folder.mkdir(exist_ok=True)
    tasks = [(signatures, exact, band, rows, folder) for band, path in enumerate(bands) if not path.exists()]
    few = len(tasks) if signatures.starts[-1] < FEW else 0
    for _ in track(workers.map(write_band, tasks, few), "comparing signatures, band by band", len(tasks)):
        pass
    kept, pairs = KeptDocuments(bands, int(signatures.starts[-1])), array("d")
    total = sum(path.stat().st_size for path in bands) // _ENTRY_BYTES
    with ExternalSort(folder / "sort", _ENTRY, total, int(signatures.starts[-1]) + 1) as records:
        for band, path in enumerate(bands):
            for entries in _read_entries(path):
                records.add(entries[:, 0], np.full(len(entries), band), entries[:, 1])
        for part in track(records.sorted_parts(), "removing near-duplicates", records.parts):
            last = np.append(part["key"][1:] != part["key"][:-1], True)[: len(part)]
            for start, end in pairwise(np.append(0, np.flatnonzero(last) + 1)):
                own = part[start:end]
                document = int(own["key"][0])
                candidates = kept.sharing(own)
                if candidates:
                    numbers = np.array(sorted(candidates))
                    both = signatures.read(np.append(numbers, document))
                    similarity = (both[:-1] == both[-1]).sum(1) / PERMUTATIONS
                    if similarity.max() >= threshold:
                        first = int(np.argmax(similarity >= threshold))
                        pairs.extend((document, numbers[first], similarity[first]))
                        continue
                kept.add(document, own)
    signatures.close()
    return np.array(pairs).reshape(-1, 3)


class KeptDocuments:
    """The documents kept so far, by the groups of `write_band`: 8 bytes per document and group.

    16 bytes where a number exceeds 2^31.
    """

    def __init__(self, bands: Sequence[Path], documents: int):
        """`bands` are the files that `write_band` wrote, of `documents` documents."""
        entries = sum(path.stat().st_size for path in bands) // _ENTRY_BYTES
        code = "q" if max(entries, documents) >= 1 << 31 else "i"
        self.newest = [np.full(_count_groups(path), -1, code) for path in bands]
        self.members, self.previous = array(code), array(code)  # a linked list per group

    def sharing(self, entries: np.ndarray) -> set[int]:
        """The kept documents that share a group with these entries."""
        found: set[int] = set()
        for _, band, group in entries.tolist():
            at = int(self.newest[band][group])
            while at >= 0:
                found.add(self.members[at])
                at = self.previous[at]
        return found

    def add(self, document: int, entries: np.ndarray) -> None:
        """Keep a document, given its entries."""
        for _, band, group in entries.tolist():
            self.previous.append(int(self.newest[band][group]))
            self.newest[band][group] = len(self.members)
            self.members.append(document)


def _count_groups(path: Path) -> int:
    if not path.stat().st_size:
        return 0
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        return int(np.fromfile(file, np.int64, 1)[0]) + 1


class HeldOutIndex:
    """Finds, among a few documents, those that are similar to others that stream past."""

    def __init__(self, signatures: np.ndarray, threshold: float):
        """`signatures` is uint32 (documents, 96)."""
        self.signatures, self.threshold = signatures, threshold
        self.rows = rows_per_band(threshold)
        self.bands = []
        for band in range(PERMUTATIONS // self.rows):
            keys = band_keys(signatures, band, self.rows)
            order = np.argsort(keys, kind="stable")
            self.bands.append((keys[order], order))

    def similar(self, others: np.ndarray) -> np.ndarray:
        """Bool (documents,): whether any of the (N, 96) signatures `others` is similar to each."""
        found = np.zeros(len(self.signatures), bool)
        for band, (keys, order) in enumerate(self.bands):
            wanted = band_keys(others, band, self.rows)
            begin, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            count = end - begin
            other = np.repeat(np.arange(len(others)), count)
            offset = np.arange(len(other)) - np.repeat(np.cumsum(count) - count, count)
            own = order[np.repeat(begin, count) + offset]
            left = ~found[own]
            own, other = own[left], other[left]
            for start in range(0, len(own), 1 << 16):
                chunk = slice(start, start + (1 << 16))
                equal = (self.signatures[own[chunk]] == others[other[chunk]]).mean(1)
                found[own[chunk][equal >= self.threshold]] = True
        return found


def similar_to_training(index: Path, threshold: float, piece: Path, training: np.ndarray) -> np.ndarray:
    """Bool (held out,): which documents, whose signatures are in `index`, resemble training documents of a piece."""
    rows = np.fromfile(piece, np.uint32).reshape(-1, PERMUTATIONS)[training]
    return _load_index(index, threshold).similar(rows)


@lru_cache(1)
def _load_index(path: Path, threshold: float) -> HeldOutIndex:
    return HeldOutIndex(np.load(path), threshold)


def straddlers(
    signatures: Signatures, split_of: np.ndarray, threshold: float, folder: Path, workers: Workers
) -> np.ndarray:
    """int64: held-out documents that are similar to a document of another split.

    Training keeps all of its documents; test drops those similar to training ones, validation those
    similar to training ones or to those that test keeps. `split_of` is int8 (documents,): 0 train,
    1 validation, 2 test, -1 dropped.
    """
    held = np.flatnonzero(split_of > 0)
    own = signatures.read(held)
    signatures.close()
    folder.mkdir(exist_ok=True)
    index = folder / "held-out.npy"
    np.save(index, own)
    pieces = range(len(signatures.paths))
    is_training = (split_of[signatures.starts[i] : signatures.starts[i + 1]] == 0 for i in pieces)
    tasks = ((index, threshold, signatures.paths[i], each) for i, each in enumerate(is_training))
    found = np.zeros(len(held), bool)
    few = len(pieces) if signatures.starts[-1] < FEW else 0
    for each in track(workers.map(similar_to_training, tasks, few), "comparing splits", len(pieces)):
        found |= each
    is_test = split_of[held] == 2
    validation = np.flatnonzero(~is_test & ~found)
    kept_test = own[is_test & ~found]
    if len(validation) and len(kept_test):
        found[validation] = HeldOutIndex(own[validation], threshold).similar(kept_test)
    return held[found]
