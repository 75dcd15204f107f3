"""Token shards: one memory-mapped file of token ids per split, read in fixed-length windows.

Layout of a shard folder (in the cache, named by a hash of documents and tokenizer):

    train.bin              little-endian uint16 (uint32 above 65,536 ids): separator, document,
                           separator, document, …, separator
    train.documents.npy    int64, the position of each document's separator
    manifest.json          dtype, tokens, documents, bytes per split; tokenizer hash; fingerprint
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cli.atomic import atomic_folder, valid_manifest, write_atomically, write_manifest
from cli.console import say, track
from cli.errors import UserError
from configs.schema import TokenizerConfig
from data.prepare import SPLITS, load_manifest, read_documents
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

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
    learned = train_tokenizer((d["text"] for d in read_documents(folder, "train")), config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, learned.to_json())
    return path


def write_shards(folder: Path, tokenizer: Tokenizer) -> Path:
    """Tokenise the splits of a prepared folder, unless that is cached; returns the shard folder."""
    fingerprint = load_manifest(folder)["fingerprint"]
    name = hashlib.sha256((fingerprint + tokenizer.hash).encode()).hexdigest()
    shards = folder.parent.parent / "tokens" / name[:16]
    if valid_manifest(shards):
        say(f"tokens: cached in {shards}")
        return shards
    if shards.exists():
        say(f"tokens: {shards} is damaged and is rebuilt")
    with atomic_folder(shards, keep_existing=valid_manifest) as aside:
        counts = {split: _write_split(folder, split, tokenizer, aside) for split in SPLITS}
        about = {"fingerprint": name, "tokenizer": tokenizer.hash, "splits": counts}
        write_manifest(aside, about | {"dtype": _dtype(tokenizer).str})
    return shards


def _write_split(folder: Path, split: str, tokenizer: Tokenizer, aside: Path) -> dict[str, int]:
    dtype, starts, position, size = _dtype(tokenizer), [], 0, 0
    separator = np.array([tokenizer.separator_id], dtype)
    with open(aside / f"{split}.bin", "wb") as file:
        for batch in _batches(track(read_documents(folder, split), f"tokenising {split}")):
            for row, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                starts.append(position)
                position += 1 + len(ids)
                size += len(row.encode())
                separator.tofile(file)
                np.array(ids, dtype).tofile(file)
        separator.tofile(file)
    np.save(aside / f"{split}.documents.npy", np.array(starts, np.int64))
    return {"tokens": position + 1, "documents": len(starts), "bytes": size}


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


class Windows:
    """A memory-mapped split in consecutive windows of `seq_len` tokens; the last one is padded.

    Windows start at every multiple of `seq_len`, so each token except the first is a target once.
    """

    separator = -1
    """The id at which the document mask starts a document; -1: attention crosses documents."""

    def __init__(self, shards: Path, split: str, seq_len: int, tokenizer: Tokenizer, max_windows: int = 0):
        """Open the first `max_windows` windows (0: all).

        Raises UserError if the train split is shorter than one window.
        """
        manifest = load_manifest(shards)
        self.fingerprint = f"{manifest['fingerprint']}:{split}:{seq_len}"
        self.seq_len = seq_len
        self.ids: np.ndarray = np.memmap(shards / f"{split}.bin", manifest["dtype"], mode="r")
        if max_windows:
            self.ids = self.ids[: max_windows * seq_len + 1]
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        if split == "train" and len(self.ids) <= seq_len:
            raise UserError(
                f"sequences of {seq_len} tokens are longer than the corpus: its train split has "
                f"{len(self.ids)}; lower model.max_seq_len or add text"
            )

    def __len__(self) -> int:
        """Number of windows."""
        return -(-(len(self.ids) - 1) // self.seq_len)

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


def _batches(rows: Iterable[dict], size: int = 256) -> Iterator[list[str]]:
    texts = (row["text"] for row in rows)
    while batch := list(islice(texts, size)):
        yield batch
