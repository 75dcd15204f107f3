"""Read the splits of a prepared corpus (data/prepare.py): in order, shuffled, or a share of them.

No function holds the texts of a split in memory, only some numbers per document.
"""

import hashlib
import json
import shutil
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cli.atomic import atomic_folder, valid_manifest, write_manifest
from cli.errors import UserError

SPLITS = ("train", "validation", "test")


def load_manifest(folder: Path) -> dict:
    """Load the manifest of a cache folder. Raises UserError if the folder is missing or damaged."""
    manifest = valid_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: not a prepared corpus, or damaged; run the command again")
    return manifest


def read_documents(folder: Path, split: str) -> Iterator[dict]:
    """Stream one split of a prepared folder as {"id", "text", "group"}."""
    with open(folder / f"{split}.jsonl", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_shuffled(folder: Path, split: str) -> Iterator[dict]:
    """Stream one split in a fixed shuffled order: sorted by the hash of the document ids."""
    path = folder / f"{split}.jsonl"
    keys, starts, _ = _index(path, lambda name: name)
    with open(path, "rb") as file:
        for row in np.argsort(keys, kind="stable"):
            file.seek(starts[row])
            yield json.loads(file.readline())


def subsample(folder: Path, share: float, seed: int) -> Path:
    """Copy a prepared folder with a random share of its training documents; returns the copy.

    `share` is the fraction of the training bytes. With the same `seed`, a larger share contains
    every smaller one; each has at least one document. The held-out splits do not change.
    """
    if share >= 1:
        return folder
    whole = load_manifest(folder)
    name = hashlib.sha256(f"{whole['fingerprint']}:{share}:{seed}".encode()).hexdigest()[:16]
    part = folder.with_name(name)
    if valid_manifest(part):
        return part
    keys, _, sizes = _index(folder / "train.jsonl", lambda name: f"{seed}:{name}")
    order = np.argsort(keys, kind="stable")
    wanted = share * whole["splits"]["train"]["bytes"]
    count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), wanted, side="right")))
    taken = np.zeros(len(keys), bool)
    taken[order[:count]] = True
    characters = 0
    with atomic_folder(part, keep_existing=valid_manifest) as aside:
        lines = open(folder / "train.jsonl", encoding="utf-8")
        with lines, open(aside / "train.jsonl", "w", encoding="utf-8") as file:
            for line, is_taken in zip(lines, taken, strict=True):
                if is_taken:
                    file.write(line)
                    characters += len(json.loads(line)["text"])
        for split in SPLITS[1:]:
            shutil.copyfile(folder / f"{split}.jsonl", aside / f"{split}.jsonl")
        size = int(sizes[taken].sum())
        whole["splits"]["train"] = {"documents": count, "characters": characters, "bytes": size}
        write_manifest(aside, whole | {"fingerprint": name, "share": share, "seed": seed})
    return part


def _index(path: Path, salted: Callable[[str], str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Of every line: the first 64 bits of the hash of its salted id, its position, and the bytes of its text.
    keys, starts, sizes = array("Q"), array("q"), array("q")
    position = 0
    with open(path, "rb") as file:
        for line in file:
            row = json.loads(line)
            keys.append(int.from_bytes(hashlib.sha256(salted(row["id"]).encode()).digest()[:8], "big"))
            starts.append(position)
            sizes.append(len(row["text"].encode()))
            position += len(line)
    return np.frombuffer(keys, np.uint64), np.frombuffer(starts, np.int64), np.frombuffer(sizes, np.int64)
