"""Leak check (contamination): refuses training data, passages and shots that hold a held-out text.

A text contains a copy of a held-out text if it has most of its 32-character n-grams, white space
and case ignored. Brown et al. 2020 (arXiv:2005.14165, appendix C) use n-grams of words; those of
characters also work for texts with few spaces, such as tunes.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cli.errors import UserError

NGRAM = 32  # characters; a power of two
COPY_SHARE = 0.8  # share of a held-out text's n-grams that make another text a copy
MIN_SUBSTRING = 16  # characters: a shorter held-out text is searched as a whole text only
CHUNK = 2**22  # characters searched at a time
BASE = 0x9E3779B97F4A7C15  # odd
TABLE = 2**22


def normalise(text: str) -> bytes:
    """`text` in UTF-8, case-folded and without white space."""
    return "".join(text.casefold().split()).encode()


def hash_ngrams(data: bytes) -> np.ndarray:
    """(max(0, len(data) - NGRAM + 1),) uint64: rolling hashes (Karp and Rabin 1987), modulo 2**64."""
    found, width, base = np.frombuffer(data, np.uint8).astype(np.uint64), 1, BASE
    if len(found) < NGRAM:
        return found[:0]
    while width < NGRAM:  # doubling: joins the hashes of two adjacent n-grams
        found = found[:-width] * np.uint64(base) + found[width:]
        width, base = 2 * width, base * base % 2**64
    return found


class HeldOut:
    """Held-out texts, indexed by their character n-grams."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        data = [normalise(text) for text in self.texts]
        by_text = [np.unique(hash_ngrams(text)) for text in data]
        self.sizes = np.array([len(ngrams) for ngrams in by_text], np.int64)
        # Texts shorter than an n-gram are searched as substrings, the shortest as whole lines.
        self.short = {
            number: text if len(text) >= MIN_SUBSTRING else b"\n" + text + b"\n"
            for number, text in enumerate(data)
            if len(text) < NGRAM
        }
        owners = np.repeat(np.arange(len(by_text)), self.sizes)
        ngrams = np.concatenate([*by_text, np.zeros(0, np.uint64)])
        order = np.argsort(ngrams, kind="stable")
        self.owners = owners[order]
        self.ngrams, self.first, self.count = np.unique(ngrams[order], return_index=True, return_counts=True)
        self.table = np.zeros(TABLE, bool)
        self.table[self.ngrams % TABLE] = True

    def find_copies(self, texts: Iterable[str]) -> dict[int, str]:
        """The held-out texts (by index) that one of `texts` contains, each with the first such text."""
        found: dict[int, str] = {}
        for part, data, starts in chunks(texts):
            places, ngrams = self._find_ngrams(data)
            document = np.searchsorted(starts, places, "right") - 1
            document, ngrams = np.unique(np.stack([document, ngrams]), axis=1)
            count = self.count[ngrams]  # held-out texts that share the n-gram
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            owner = self.owners[np.repeat(self.first[ngrams], count) + within]
            pairs, shared = np.unique(np.stack([owner, np.repeat(document, count)]), axis=1, return_counts=True)
            is_copy = shared >= COPY_SHARE * self.sizes[pairs[0]]
            for number, document in pairs[:, is_copy].T:
                found.setdefault(int(number), part[document])
            for number, text in self.short.items():
                if (place := data.find(text)) >= 0:
                    at = int(np.searchsorted(starts, place + 1, "right")) - 1
                    found.setdefault(number, part[at])
        return found

    def refuse_copies(self, place: str, texts: Iterable[str]) -> None:
        """Raises UserError, naming `place`, if one of `texts` contains a held-out text."""
        for number, text in self.find_copies(texts).items():
            raise UserError(
                f"leak check: {place} contains the held-out text {self.texts[number][:60]!r} in "
                f"{text[:60]!r}; remove it, or the study would measure memorisation"
            )

    def overlap(self, texts: Iterable[str]) -> float:
        """Share of the n-grams of all held-out texts that occur anywhere in `texts`."""
        occurs = np.zeros(len(self.ngrams), bool)
        for _, data, _ in chunks(texts):
            occurs[self._find_ngrams(data)[1]] = True
        return float(occurs.mean()) if len(occurs) else 0.0

    def _find_ngrams(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        # The positions in `data` of held-out n-grams, and the indices of these n-grams.
        found = hash_ngrams(data)
        places = np.flatnonzero(self.table[found % TABLE])  # a cheap filter before the exact search
        at = np.searchsorted(self.ngrams, found[places]).clip(max=max(0, len(self.ngrams) - 1))
        known = self.ngrams[at] == found[places] if len(self.ngrams) else np.zeros(0, bool)
        return places[known], at[known]


def chunks(texts: Iterable[str]) -> Iterator[tuple[list[str], bytes, np.ndarray]]:
    """Chunks of texts: the texts, their normalised bytes one per line, and the offset of each."""
    part: list[str] = []
    lines: list[bytes] = []
    size = 0
    for text in texts:
        part.append(text)
        lines.append(normalise(text))
        size += len(lines[-1]) + 1
        if size > CHUNK:
            yield part, *_joined(lines)
            part, lines, size = [], [], 0
    if part:
        yield part, *_joined(lines)


def _joined(lines: list[bytes]) -> tuple[bytes, np.ndarray]:
    lengths = np.array([len(line) + 1 for line in lines])
    return b"\n" + b"\n".join(lines) + b"\n", 1 + np.cumsum(lengths) - lengths
