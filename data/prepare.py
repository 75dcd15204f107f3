"""Prepare a corpus: clean, deduplicate and split its documents; the first step of every run.

    python -m data.prepare RECIPE [--data.corpus my-notes.txt …] [--workers 8 | --ray]

1. clean      normalise to NFC and Unix line ends, remove control characters and invalid UTF-8,
              drop documents that are too short, compute MinHash signatures (all cores)
2. exact      drop a document with the same text as an earlier one
3. near       near-duplicate removal: drop a document whose MinHash similarity to an earlier one
              is high (Broder 1997)
4. split      assign whole groups to test, validation or train, in an order given by the seed
5. straddle   drop a held-out document that is still similar to a document of another split
6. write      `train.jsonl`, `validation.jsonl`, `test.jsonl` ({"id", "text", "group"} per line), shuffled,
              and `manifest.json`, which counts the documents read and the documents dropped for each
              reason, with examples, to a cache folder named by a content hash

Neighbours in a corpus are often alike, and a training window with many of them teaches a model to copy.
So documents are shuffled; the sections of a file stay together and in order.

A second run returns at once. Stages work on files in a work folder: memory holds neither texts nor
signatures, a killed run continues where it stopped, and the result does not depend on the number of
workers.
"""

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from cli.atomic import atomic_folder, read_json, to_json, valid_manifest, write_atomically, write_manifest
from cli.console import say, show, track
from cli.errors import UserError, run_command
from cli.recipes import Parser, parse
from cli.workers import Workers, add_worker_options
from configs.schema import DataConfig, Recipe
from data.cleaning import Piece, clean_piece, cut_pieces, is_whole, load_piece
from data.corpora import open_corpus
from data.dedup import Signatures, exact_duplicates, near_duplicates, straddlers
from data.documents import Corpus
from data.external_sort import MOST_PARTS
from data.splits import SPLITS, load_manifest
from data.work import work_folder

VERSION = 4  # increase it when the result of a stage changes; this invalidates old caches
DROPPED = -1  # in the array of splits; other values are indices of SPLITS
FEW_PIECES = 4  # cleaned in this process, before others have started
PART_BYTES = 1 << 25  # of text that is shuffled in memory
EXAMPLES, EXAMPLE_CHARS = 10, 300  # near-duplicates shown in the manifest


def prepare(config: DataConfig, workers: int = 0, ray: bool = False) -> Path:
    """Prepare the three splits of `config.corpus`, unless they are cached; returns their folder.

    `workers` and `ray` are those of `cli.workers.Workers`; the result does not depend on them.
    Raises UserError if the corpus cannot be read, is empty, or is too small to split.
    """
    corpus = open_corpus(config)
    settings = config.model_dump(exclude={"cache_dir", "corpora", "on_error"}) | {"version": VERSION}
    if config.corpora:
        settings["corpus"] = [each.path for each in config.corpora]  # weights only matter in training
    if config.on_error != "stop":
        settings["on_error"] = config.on_error
    key = json.dumps([corpus.fingerprint, settings], sort_keys=True)
    folder = Path(config.cache_dir) / "documents" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if valid_manifest(folder):
        say(f"documents: cached in {folder}")
        return folder
    with work_folder(folder) as work:
        if valid_manifest(folder):
            say(f"documents: prepared by another process in {folder}")
            return folder
        if folder.exists():
            say(f"documents: {folder} is damaged and is rebuilt")
        with Workers(workers, ray) as pool:
            stages = Stages(corpus, config, work, pool)
            with atomic_folder(folder, keep_existing=valid_manifest) as aside:
                manifest = stages.write_splits(aside)
                manifest |= {"corpus": corpus.name, "source": corpus.fingerprint, "settings": settings}
                write_manifest(aside, manifest)
    return folder


class Stages:
    """The stages of one corpus, each with its result in a file of the work folder."""

    def __init__(self, corpus: Corpus, config: DataConfig, work: Path, workers: Workers):
        """Run or load all stages up to the splits. Raises UserError if no document is left."""
        self.corpus, self.config, self.work, self.workers = corpus, config, work, workers
        self.paths = self.clean()
        self.pieces = [len(load_piece(path)) for path in self.paths]
        self.signatures = Signatures(self.paths, self.pieces)
        self.exact = self.saved("exact", lambda: exact_duplicates(self.load(), sum(self.pieces), work / "sort"))
        self.near = self.saved("near", self.find_near_duplicates)
        self.split_of = self.saved("splits", self.assign_splits)
        self.straddling = self.saved("straddling", self.find_straddlers)

    def saved(self, name: str, stage: Callable[[], np.ndarray]) -> np.ndarray:
        """The result of a stage: of an earlier process if it was saved, else computed now."""
        path = self.work / f"{name}.npy"
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError):  # missing, or damaged
            result = stage()
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, result)
        temporary.replace(path)
        return result

    def load(self) -> Iterator[Piece]:
        """All pieces, one at a time."""
        return map(load_piece, self.paths)

    def clean(self) -> list[Path]:
        """Stage 1: read the corpus and clean it piece by piece; returns the paths of the pieces."""
        folder, config = self.work / "pieces", self.config
        folder.mkdir(exist_ok=True)
        saved = read_json(self.work / "pieces.json")
        if saved and all(is_whole(folder / f"{number:05}") for number in range(saved["pieces"])):
            self.skipped = saved["skipped"]
            return [folder / f"{number:05}" for number in range(saved["pieces"])]
        settings = (config.min_chars, config.group_field == "document", config.split_seed)
        paths: list[Path] = []

        def tasks() -> Iterator[tuple]:
            corpus = self.corpus
            documents = track(corpus.read(), f"reading {corpus.name}", corpus.characters, lambda d: len(d.text))
            for number, piece in enumerate(cut_pieces(documents)):
                paths.append(folder / f"{number:05}")
                if not is_whole(paths[-1]):
                    yield piece, paths[-1], *settings

        for _ in self.workers.map(clean_piece, tasks(), FEW_PIECES):
            pass
        self.skipped = self.corpus.skipped
        write_atomically(self.work / "pieces.json", to_json({"pieces": len(paths), "skipped": self.skipped}))
        return paths

    def find_near_duplicates(self) -> np.ndarray:
        """Stage 3: float64 (pairs, 3), as `near_duplicates` returns them."""
        threshold, folder = self.config.drop_similarity, self.work / "bands"
        pairs = near_duplicates(self.signatures, self.work / "exact.npy", threshold, folder, self.workers)
        shutil.rmtree(folder)
        return pairs

    def assign_splits(self) -> np.ndarray:
        """Stage 4: int8 (documents,), an index of SPLITS or DROPPED. Raises UserError if the corpus is too small."""
        kept = ~self.exact
        kept[self.near[:, 0].astype(np.int64)] = False
        keys, characters = (
            np.concatenate([getattr(piece, name) for piece in self.load()] or [np.empty(0, np.int64)])[kept]
            for name in ("group_keys", "characters")
        )
        config = self.config
        if not len(keys):
            read = sum(piece.counts["documents_read"] for piece in self.load())
            raise UserError(
                f"{config.corpus}: empty corpus: {read} documents read, none has data.min_chars = "
                f"{config.min_chars} characters or more after cleaning; check the corpus"
            )
        split_of = np.full(len(kept), DROPPED, np.int8)
        split_of[kept] = assign_groups(keys, characters, config)
        return split_of

    def find_straddlers(self) -> np.ndarray:
        """Stage 5: int64, the held-out documents to drop."""
        return straddlers(
            self.signatures, self.split_of, self.config.straddle_similarity, self.work / "held-out", self.workers
        )

    def write_splits(self, folder: Path) -> dict:
        """Stage 6: write the splits; returns the manifest. Raises UserError if a split is empty."""
        split_of = self.split_of.copy()
        split_of[self.straddling] = DROPPED
        columns = [(piece.characters, piece.bytes, piece.order_keys, piece.sources) for piece in self.load()]
        characters, size, keys, sources = (np.concatenate(each) for each in zip(*columns, strict=True))
        sizes = {}
        for number, split in enumerate(SPLITS):
            chosen = split_of == number
            counts = {"characters": int(characters[chosen].sum()), "bytes": int(size[chosen].sum())}
            sizes[split] = {"documents": int(chosen.sum()), **counts}
            if not chosen.any():
                raise UserError(
                    f"every {split} document is similar to one of another split; raise data.straddle_similarity "
                    "or add text"
                )
        order = np.lexsort((keys, sources, split_of))  # of a split, the corpora of a mixture one after another
        order = order[(split_of == DROPPED).sum() :]
        parts = self.write_parts(order, size)
        starts = [0]  # of each corpus of a mixture in train.jsonl
        digests = [hashlib.sha256() for _ in SPLITS]
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(open(folder / f"{split}.jsonl", "wb")) for split in SPLITS]
            for path, rows in track(parts, "shuffling", len(parts)):
                with open(path, "rb") as unordered:
                    lines = unordered.readlines()  # in the order of the corpus
                for row, at in zip(rows.tolist(), np.searchsorted(np.sort(rows), rows).tolist(), strict=True):
                    number = split_of[row]
                    while number == 0 and len(starts) <= sources[row]:
                        starts.append(files[0].tell())
                    files[number].write(lines[at])
                    digests[number].update(lines[at])
                path.unlink()
            whole = files[0].tell()
        joined = "".join(digest.hexdigest() for digest in digests)
        return {
            "fingerprint": hashlib.sha256(joined.encode()).hexdigest(),
            **self.count(sum(each["documents"] for each in sizes.values())),
            "splits": sizes,
            "near_duplicates": self.examples(),
            "lowest_similarity": float(self.near[:, 2].min(initial=1)),
            "skipped_files": self.skipped,
            "sources": [
                {"name": name, "start": starts[i] if i < len(starts) else whole}
                for i, name in enumerate(self.corpus.sources)
            ],
        }

    def write_parts(self, order: np.ndarray, size: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        """Distribute the lines to files of consecutive documents in their final `order`.

        Each file fits in memory; its lines are in the order of the corpus. Returns its path and its part of `order`.
        `size` are the bytes of all documents.
        """
        ends = np.cumsum(size[order])
        count = min(MOST_PARTS, 1 + int(ends[-1]) // PART_BYTES)
        part_of = np.full(len(size), DROPPED, np.int16)
        part_of[order] = (ends - 1) * count // ends[-1]
        paths = [self.work / f"part-{number:03}" for number in range(count)]
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(open(path, "wb")) for path in paths]
            by_piece = np.split(part_of, self.signatures.starts[1:-1])
            for path, parts in zip(track(self.paths, "writing", len(self.paths)), by_piece, strict=True):
                with open(path.with_suffix(".jsonl"), "rb") as lines:
                    for part, line in zip(parts.tolist(), lines, strict=True):
                        if part != DROPPED:
                            files[part].write(line)
        return list(zip(paths, np.split(order, np.searchsorted(part_of[order], range(1, count))), strict=True))

    def count(self, kept: int) -> dict[str, dict[str, int]]:
        """The documents read, dropped for each reason, and kept; and those that cleaning changed."""
        counts, changed = Counter[str](), Counter[str]()
        for piece in self.load():
            counts.update(piece.counts)
            changed.update(piece.changed)
        counts["dropped_exact_duplicate"] = int(self.exact.sum())
        counts["dropped_near_duplicate"] = len(self.near)
        counts["dropped_straddles_split"] = len(self.straddling)
        counts["documents_kept"] = kept
        return {"counts": dict(counts), "documents_cleaned": dict(changed)}

    def examples(self) -> list[dict]:
        """Some near-duplicates, evenly spread over the corpus, for people to check."""
        chosen = self.near[:: max(1, len(self.near) // EXAMPLES)][:EXAMPLES]
        found = []
        for dropped, kept, similarity in chosen.tolist():
            texts = {}
            for name, document in (("dropped", int(dropped)), ("kept", int(kept))):
                piece = int(np.searchsorted(self.signatures.starts, document, side="right")) - 1
                with open(self.paths[piece].with_suffix(".jsonl"), "rb") as lines:
                    row = json.loads(next(islice(lines, document - int(self.signatures.starts[piece]), None)))
                texts[name] = {"id": row["id"], "text": row["text"][:EXAMPLE_CHARS]}
            found.append({"similarity": round(similarity, 3), **texts})
        return found


def assign_groups(keys: np.ndarray, characters: np.ndarray, config: DataConfig) -> np.ndarray:
    """int8 (documents,), an index of SPLITS: groups in the order of their `keys` fill test, then validation.

    Raises UserError if a split stays empty.
    """
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.append(True, keys[order][1:] != keys[order][:-1]))
    group_sizes = np.add.reduceat(characters[order], starts)
    total, limit = int(characters.sum()), config.held_out_chars
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    wanted = {split: min(fraction * total, limit) for split, fraction in fractions.items()}
    filled: Counter = Counter()
    split_of_group = np.full(len(starts), SPLITS.index("train"), np.int8)
    for number, group_size in enumerate(group_sizes):
        if all(filled[split] >= size for split, size in wanted.items()):
            break
        for split, size in wanted.items():
            # A group larger than twice the share would dominate the split.
            if filled[split] < size and group_size <= 2 * fractions[split] * total:
                split_of_group[number] = SPLITS.index(split)
                filled[split] += int(group_size)
                break
    filled["train"] = total - filled.total()
    for split in SPLITS:
        if not filled[split]:
            raise UserError(
                f"{config.corpus}: too small to hold out a {split} split: {len(starts)} groups in "
                f"{len(keys)} documents; add text, or lower data.section_chars"
            )
    split_of = np.empty(len(keys), np.int8)
    split_of[order] = np.repeat(split_of_group, np.diff(np.append(starts, len(keys))))
    return split_of


def main() -> None:
    """Entry point of `python -m data.prepare`."""
    parser = Parser(__doc__, add_help=False)
    add_worker_options(parser)
    recipe, args = parse(Recipe, parser)
    folder = prepare(recipe.data, args.workers, args.ray)
    manifest = load_manifest(folder)
    for table in ("counts", "documents_cleaned"):
        show("  ".join(f"{name} {count:,}" for name, count in manifest[table].items()))
    for split, numbers in manifest["splits"].items():
        show(f"{split:10}  " + "  ".join(f"{name} {count:,}" for name, count in numbers.items()))
    show(str(folder))


if __name__ == "__main__":
    run_command(main)
