"""Prepare a corpus: clean, deduplicate and split its documents; the first step of every run.

    python -m data.prepare RECIPE [--data.corpus my-notes.txt …]

1. clean      normalise to NFC and Unix line ends, remove control characters and invalid UTF-8,
              drop documents that are too short
2. exact      drop a document with the same text as an earlier one
3. near       near-duplicate removal: drop a document whose MinHash similarity to an earlier one
              is high (Broder 1997)
4. split      assign whole groups to test, validation or train, in an order given by the seed
5. straddle   drop a held-out document that is still similar to a document of another split

Writes `train.jsonl`, `validation.jsonl`, `test.jsonl` ({"id", "text", "group"} per line) and
`manifest.json`, which counts the documents read and the documents dropped for each reason, to a
cache folder named by a content hash; a second run returns at once. Memory holds one signature per
document, not the text.
"""

import contextlib
import hashlib
import json
import re
import shutil
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rensa import RMinHash, RMinHashLSH

from cli.atomic import atomic_folder, valid_manifest, write_manifest
from cli.console import say, show, track
from cli.errors import UserError, run_command
from cli.recipes import Parser, parse
from configs.schema import DataConfig, Recipe
from data.corpora import open_corpus
from data.documents import Corpus

SPLITS = ("train", "validation", "test")
VERSION = 3  # increase it when the steps above change; this invalidates old caches
_PERMUTATIONS, _SHINGLE_WORDS = 96, 5
# Removes BOM, DEL and the C0/C1 controls except tab and line feed; U+FFFD and lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_INVALID = re.compile("[\ufffd\ud800-\udfff]")
# Scripts without spaces between words: each character counts as a word.
_UNSPACED = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def clean(text: str, changed: Counter | None = None) -> str:
    """Normalise `text` to NFC and Unix line ends; remove control characters and invalid UTF-8.

    Strips leading newlines and trailing whitespace of the whole text. `changed` counts the changed
    documents per reason.
    """
    changed = Counter() if changed is None else changed
    cleaned = text.replace("\r\n", "\n").replace("\r", "\n")
    for reason, pattern in (("invalid_utf8", _INVALID), ("control_characters", _CONTROL)):
        cleaned, count = pattern.subn("", cleaned)
        changed[reason] += bool(count)
    if not unicodedata.is_normalized("NFC", cleaned):
        cleaned = unicodedata.normalize("NFC", cleaned)
        changed["not_nfc"] += 1
    return cleaned.strip("\n").rstrip()


def prepare(config: DataConfig) -> Path:
    """Prepare the three splits of `config.corpus`, unless they are cached; returns their folder.

    Raises UserError if the corpus cannot be read, is empty, or is too small to split.
    """
    corpus = open_corpus(config)
    settings = config.model_dump(exclude={"cache_dir"}) | {"version": VERSION}
    key = json.dumps([corpus.fingerprint, settings], sort_keys=True)
    folder = Path(config.cache_dir) / "documents" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if valid_manifest(folder):
        say(f"documents: cached in {folder}")
        return folder
    if folder.exists():
        say(f"documents: {folder} is damaged and is rebuilt")
    with atomic_folder(folder, keep_existing=valid_manifest) as aside:
        manifest = _prepare_corpus(corpus, config, aside)
        manifest |= {"corpus": corpus.name, "source": corpus.fingerprint, "settings": settings}
        write_manifest(aside, manifest)
    return folder


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


def read_shuffled(folder: Path, split: str) -> list[dict]:
    """Load one split in a fixed shuffled order: sorted by the hash of the document ids."""
    return sorted(read_documents(folder, split), key=lambda row: hashlib.sha256(row["id"].encode()).digest())


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

    def random_key(row: dict) -> bytes:
        return hashlib.sha256(f"{seed}:{row['id']}".encode()).digest()

    rows = list(read_documents(folder, "train"))
    wanted, size = share * whole["splits"]["train"]["bytes"], 0
    taken: set[str] = set()
    for row in sorted(rows, key=random_key):
        row_size = len(row["text"].encode())
        if taken and size + row_size > wanted:
            break
        taken.add(row["id"])
        size += row_size
    kept = [row for row in rows if row["id"] in taken]
    characters = sum(len(row["text"]) for row in kept)
    with atomic_folder(part, keep_existing=valid_manifest) as aside:
        with open(aside / "train.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        for split in SPLITS[1:]:
            shutil.copyfile(folder / f"{split}.jsonl", aside / f"{split}.jsonl")
        whole["splits"]["train"] = {"documents": len(kept), "characters": characters, "bytes": size}
        write_manifest(aside, whole | {"fingerprint": name, "share": share, "seed": seed})
    return part


class _SimilarityIndex:
    """Finds documents whose MinHash similarity reaches a threshold, by LSH banding (Broder 1997)."""

    def __init__(self, threshold: float):
        # Longer bands give fewer false candidates; take the longest with a recall of 95 %.
        divisors = [n for n in range(2, _PERMUTATIONS + 1) if _PERMUTATIONS % n == 0]
        usable = [n for n in divisors if (1 - threshold**n) ** (_PERMUTATIONS / n) <= 0.05]
        rows = max(usable, default=1)
        self.threshold = threshold
        self.signatures: list[RMinHash] = []
        self.index = RMinHashLSH(threshold, _PERMUTATIONS, _PERMUTATIONS // rows)

    def add(self, signature: RMinHash) -> None:
        self.index.insert(len(self.signatures), signature)
        self.signatures.append(signature)

    def has_similar(self, signature: RMinHash) -> bool:
        return any(signature.jaccard(self.signatures[i]) >= self.threshold for i in self.index.query(signature))


def _prepare_corpus(corpus: Corpus, config: DataConfig, folder: Path) -> dict:
    counts: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    seen: set[bytes] = set()
    kept = _SimilarityIndex(config.drop_similarity)
    groups: list[str] = []
    sizes = array("q")

    all_documents = folder / "all.jsonl"
    with open(all_documents, "w", encoding="utf-8") as file:
        for document in track(corpus.read(), f"reading {corpus.name}"):
            counts["documents_read"] += 1
            counts["characters_read"] += len(document.text)
            text = clean(document.text, changed)
            if len(text) < config.min_chars:
                counts["dropped_too_short"] += 1
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen:
                counts["dropped_exact_duplicate"] += 1
                continue
            seen.add(digest)
            signature = RMinHash(_PERMUTATIONS, 0)
            signature.update(_shingles(document.dedup_text or text))
            if kept.has_similar(signature):
                counts["dropped_near_duplicate"] += 1
                continue
            kept.add(signature)
            group = "" if config.group_field == "document" else document.group
            groups.append(group or document.id)
            sizes.append(len(text))
            file.write(json.dumps({"id": document.id, "text": text, "group": groups[-1]}) + "\n")
    if not groups:
        raise UserError(
            f"{config.corpus}: empty corpus: {counts['documents_read']} documents read, none has "
            f"data.min_chars = {config.min_chars} characters or more after cleaning; check the corpus"
        )
    split_of = _assign_splits(groups, sizes, config)
    straddling = _find_straddlers(kept.signatures, split_of, config.straddle_similarity)
    counts["dropped_straddles_split"] = len(straddling)
    return _write_splits(all_documents, folder, split_of, straddling, counts, changed)


def _shingles(text: str) -> list[str]:
    words = _UNSPACED.sub(r" \1 ", text).split()
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return [" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(last)]


def _assign_splits(groups: list[str], sizes: array, config: DataConfig) -> list[str]:
    size_of: Counter = Counter()
    for group, size in zip(groups, sizes, strict=True):
        size_of[group] += size

    def random_key(group: str) -> bytes:
        return hashlib.sha256(f"{config.split_seed}:{group}".encode()).digest()

    total, limit = sum(sizes), config.held_out_chars
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    wanted = {split: min(fraction * total, limit) for split, fraction in fractions.items()}
    filled: Counter = Counter()
    split_of: dict[str, str] = {}
    for group in sorted(size_of, key=random_key):
        split_of[group] = "train"
        for split, size in wanted.items():
            # A group larger than twice the share would dominate the split.
            if filled[split] < size and size_of[group] <= 2 * fractions[split] * total:
                split_of[group] = split
                break
        filled[split_of[group]] += size_of[group]
    for split in SPLITS:
        if not filled[split]:
            raise UserError(
                f"{config.corpus}: too small to hold out a {split} split: {len(size_of)} groups in "
                f"{len(groups)} documents; add text, or lower data.section_chars"
            )
    return [split_of[group] for group in groups]


def _find_straddlers(signatures: list[RMinHash], split_of: list[str], threshold: float) -> set[int]:
    # Train keeps all documents; test drops those similar to train, validation those similar to both.
    others = _SimilarityIndex(threshold)
    dropped = set()
    for split in ("train", "test", "validation"):
        numbers = [number for number, its in enumerate(split_of) if its == split]
        if split != "train":
            dropped |= {n for n in numbers if others.has_similar(signatures[n])}
        for number in numbers:
            if number not in dropped:
                others.add(signatures[number])
    return dropped


def _write_splits(
    all_documents: Path, folder: Path, split_of: list[str], dropped: set[int], counts: Counter, changed: Counter
) -> dict:
    splits = {split: Counter(documents=0, characters=0, bytes=0) for split in SPLITS}
    digests = {split: hashlib.sha256() for split in SPLITS}
    with contextlib.ExitStack() as opened:
        lines = opened.enter_context(open(all_documents, encoding="utf-8"))
        files = {
            split: opened.enter_context(open(folder / f"{split}.jsonl", "w", encoding="utf-8")) for split in SPLITS
        }
        for number, line in enumerate(lines):
            if number in dropped:
                continue
            text = json.loads(line)["text"]
            split = split_of[number]
            files[split].write(line)
            digests[split].update(line.encode())
            splits[split].update(documents=1, characters=len(text), bytes=len(text.encode()))
    all_documents.unlink()
    for split in SPLITS:
        if not splits[split]["documents"]:
            raise UserError(
                f"every {split} document is similar to one of another split; raise data.straddle_similarity or add text"
            )
    joined = "".join(digests[split].hexdigest() for split in SPLITS)
    counts["documents_kept"] = sum(splits[split]["documents"] for split in SPLITS)
    return {
        "fingerprint": hashlib.sha256(joined.encode()).hexdigest(),
        "counts": dict(counts),
        "documents_cleaned": dict(changed),
        "splits": {split: dict(splits[split]) for split in SPLITS},
    }


def main() -> None:
    """Entry point of `python -m data.prepare`."""
    recipe, _ = parse(Recipe, Parser(__doc__, add_help=False))
    folder = prepare(recipe.data)
    manifest = load_manifest(folder)
    for table in ("counts", "documents_cleaned"):
        show("  ".join(f"{name} {count:,}" for name, count in manifest[table].items()))
    for split, numbers in manifest["splits"].items():
        show(f"{split:10}  " + "  ".join(f"{name} {count:,}" for name, count in numbers.items()))
    show(str(folder))


if __name__ == "__main__":
    run_command(main)
