"""Token shards: files of token ids per split, read as one in fixed-length windows.

Layout of a shard folder (in the cache, named by a hash of documents and tokenizer):

    train-00000.bin        little-endian uint16 (uint32 above 65,536 ids): separator, document,
    train-00001.bin        separator, document, …, and a last separator; at most 512 MiB each
    manifest.json          dtype, and per split tokens, documents, bytes of text, tokens of each
                           file; the first training token of each corpus of a mixture; checksums;
                           tokenizer hash; fingerprint
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from cli.atomic import atomic_folder, read_json, valid_manifest, write_atomically, write_manifest
from cli.console import say, track
from cli.errors import UserError
from cli.workers import Workers
from configs.schema import TokenizerConfig
from data.splits import SPLITS, load_manifest, read_documents
from data.tokenise import cut_ranges, id_dtype, tokenise_range
from data.work import work_folder
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

LAYOUT = 2  # increase it when the files change; the fingerprint, which checkpoints hold, stays
_MOST_MAPPED = 128  # files
IGNORE = -100  # targets with this value have no loss (default of torch's cross_entropy)


def cached_tokenizer(folder: Path, config: TokenizerConfig) -> Path:
    """Train the tokenizer of a prepared folder, unless it is cached; returns its path.

    Raises UserError if `config.strict` and the corpus is too small for `config.vocab_size`.
    """
    key = json.dumps([load_manifest(folder)["fingerprint"], config.model_dump()], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = folder.parent.parent / "tokenizers" / f"{name}.json"
    try:
        size = Tokenizer.load(path).vocab_size
        say(f"tokenizer: {size:,} tokens, cached in {path}")
        return path
    except UserError as error:
        if path.exists():
            say(f"{error}; training it again")
    say(f"tokenizer: training for {config.vocab_size:,} tokens")
    learned = train_tokenizer(_sample(folder, config.sample_megabytes * 1_000_000), config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, learned.to_json())
    return path


def _sample(folder: Path, size: int) -> Iterator[str]:
    # The training documents, or a random sample of at most `size` bytes, in the order of the file.
    total = load_manifest(folder)["splits"]["train"]["bytes"]
    if total > size:
        say(f"tokenizer: training on a random sample of {size:,} of {total:,} bytes (tokenizer.sample_megabytes)")
    share, taken = size / total, 0
    for row in read_documents(folder, "train"):
        if total > size:
            digest = hashlib.sha256(f"tokenizer:{row['id']}".encode()).digest()
            if int.from_bytes(digest[:8], "big") >= share * 2**64:
                continue
            taken += len(row["text"].encode())
            if taken > size:
                return
        yield row["text"]


def write_shards(folder: Path, tokenizer: Tokenizer, workers: int = 0, ray: bool = False) -> Path:
    """Tokenise the splits of a prepared folder, unless that is cached; returns the shard folder.

    `workers` and `ray` are those of `cli.workers.Workers`; the result does not depend on them.
    """
    manifest = load_manifest(folder)
    name = hashlib.sha256((manifest["fingerprint"] + tokenizer.hash).encode()).hexdigest()
    layout = hashlib.sha256(f"{name}:{LAYOUT}".encode()).hexdigest()
    shards = folder.parent.parent / "tokens" / layout[:16]
    if valid_manifest(shards):
        say(f"tokens: cached in {shards}")
        return shards
    if shards.exists():
        say(f"tokens: {shards} is damaged and is rebuilt")
    train, sources = folder / "train.jsonl", manifest.get("sources", [])
    starts = {split: [source["start"] for source in sources] if split == "train" else [] for split in SPLITS}
    with work_folder(shards) as work:
        if valid_manifest(shards):
            say(f"tokens: written by another process in {shards}")
            return shards
        tasks = [
            (folder / f"{split}.jsonl", *ends, tokenizer, work / f"{split}-{number:05}.bin")
            for split in SPLITS
            for number, ends in enumerate(cut_ranges(folder / f"{split}.jsonl", starts[split]))
        ]
        few = len(tasks) if len(tasks) == len(SPLITS) else 0  # the tokenizer uses all cores by itself
        with Workers(workers, ray) as pool:
            for _ in track(pool.map(tokenise_range, tasks, few), "tokenising", len(tasks)):
                pass
        written = [(start, read_json(out.with_suffix(".json"))) for path, start, _, _, out in tasks if path == train]
        first_tokens = [
            {"name": source["name"], "token": sum(each["tokens"] for at, each in written if at < source["start"])}
            for source in sources
        ]
        with atomic_folder(shards, keep_existing=valid_manifest) as aside:
            counts = {split: _collect(work, split, tokenizer, aside) for split in SPLITS}
            about = {"fingerprint": name, "tokenizer": tokenizer.hash, "splits": counts, "sources": first_tokens}
            write_manifest(aside, about | {"dtype": id_dtype(tokenizer.vocab_size).str})
    return shards


def _collect(work: Path, split: str, tokenizer: Tokenizer, folder: Path) -> dict:
    # Moves the files of a split, and adds the last separator.
    paths = sorted(work.glob(f"{split}-*.bin"))
    paths = [path for path in paths if path.stat().st_size] or paths[:1]  # no line begins in some ranges
    found = [read_json(path.with_suffix(".json")) for path in paths]
    with open(paths[-1], "ab") as file:
        np.array([tokenizer.separator_id], id_dtype(tokenizer.vocab_size)).tofile(file)
    found[-1]["tokens"] += 1
    for number, path in enumerate(paths):
        path.replace(folder / f"{split}-{number:05}.bin")
    total = {name: sum(each[name] for each in found) for name in ("tokens", "documents", "bytes")}
    return total | {"tokens_per_file": [each["tokens"] for each in found]}


class TokenIds:
    """The token ids of a split: a sequence over all of its files, which are mapped when they are read."""

    def __init__(self, folder: Path, split: str, manifest: dict, limit: int = 0):
        """`limit` is the number of ids to keep; 0: all."""
        counts = manifest["splits"][split]["tokens_per_file"]
        self.dtype = np.dtype(manifest["dtype"])
        self.ends = np.cumsum(counts)
        self.length = min(limit or int(self.ends[-1]), int(self.ends[-1]))
        self.paths = [folder / f"{split}-{number:05}.bin" for number in range(len(counts))]
        self._map = lru_cache(_MOST_MAPPED)(lambda number: np.memmap(self.paths[number], self.dtype, mode="r"))

    def __len__(self) -> int:
        """Number of ids."""
        return self.length

    def __getitem__(self, span: slice) -> np.ndarray:
        """The ids of a span without a step."""
        start, stop, _ = span.indices(self.length)
        parts = []
        for number in range(int(np.searchsorted(self.ends, start, side="right")), len(self.ends)):
            first = int(self.ends[number - 1]) if number else 0
            if first >= stop:
                break
            parts.append(self._map(number)[max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])


class Windows:
    """A memory-mapped split in consecutive windows of `seq_len` tokens; the last one is padded.

    Windows start at every multiple of `seq_len`, so each token except the first is a target once.
    """

    weights: Sequence[float] = ()
    """Of the corpora of a mixture; empty: every window once per epoch."""
    separator = -1
    """The id at which the document mask starts a document; -1: attention crosses documents."""

    def __init__(self, shards: Path, split: str, seq_len: int, tokenizer: Tokenizer, max_windows: int = 0):
        """Open the first `max_windows` windows (0: all).

        Raises UserError if the train split is shorter than one window.
        """
        manifest = load_manifest(shards)
        self.fingerprint = f"{manifest['fingerprint']}:{split}:{seq_len}"
        self.seq_len = seq_len
        self.ids: TokenIds | np.ndarray = TokenIds(shards, split, manifest, max_windows and max_windows * seq_len + 1)
        self.parts = self._parts(manifest) if split == "train" else []
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        if split == "train" and len(self.ids) <= seq_len:
            raise UserError(
                f"sequences of {seq_len} tokens are longer than the corpus: its train split has "
                f"{len(self.ids)}; lower model.max_seq_len or add text"
            )

    @classmethod
    def of_texts(cls, texts: Sequence[str], seq_len: int, tokenizer: Tokenizer) -> "Windows":
        """The windows of a few texts, tokenised in memory, to evaluate on."""
        windows = cls.__new__(cls)
        separator = tokenizer.separator_id
        ids = [i for document in tokenizer.encode_batch(texts) for i in (separator, *document)]
        windows.ids = np.array([*ids, separator])
        windows.fingerprint, windows.seq_len, windows.parts = "", seq_len, []
        windows.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        return windows

    def __len__(self) -> int:
        """Number of windows."""
        return -(-(len(self.ids) - 1) // self.seq_len)

    def _parts(self, manifest: dict) -> list[tuple[str, int, int]]:
        # Of each corpus of a mixture its name, first window, and number of windows that hold no other.
        names = [source["name"] for source in manifest.get("sources", ())]
        starts = [source["token"] for source in manifest.get("sources", ())]
        first = [-(-start // self.seq_len) for start in starts]
        ends = [end // self.seq_len for end in starts[1:]] + [len(self)]
        return [(name, a, max(0, b - a)) for name, a, b in zip(names, first, ends, strict=False)]

    def mix(self, weights: Sequence[float]) -> None:
        """Draw training windows by `weights`, one per corpus of a mixture; none: all windows once per epoch.

        Raises UserError if a corpus is shorter than a window.
        """
        self.weights = list(weights)
        for name, _, count in self.parts if weights else ():
            if not count:
                raise UserError(f"data.corpora: {name} has less than one window of {self.seq_len} tokens; add text")
        if weights:
            self.fingerprint += f":{self.weights}"

    def longest(self, count: int) -> np.ndarray:
        """Return indices of windows that need the most memory; all windows need the same."""
        return np.arange(min(count, len(self)))

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and next-token targets, each (len(indices), seq_len) int64."""
        rows = np.full((len(indices), self.seq_len + 1), IGNORE, np.int64)
        for row, index in zip(rows, indices, strict=True):
            window = self.ids[index * self.seq_len : (index + 1) * self.seq_len + 1]
            row[: len(window)] = window
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:]
