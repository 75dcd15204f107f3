"""What is held out must not be learnt, retrieved or shown: found by characters that texts share.

A text is a copy of another if it holds most of that one's runs of 32 characters, white space and
case aside (as Brown et al. 2020, arXiv:2005.14165, appendix C, whose runs are of words: those of
characters also tell texts that have few spaces, such as tunes).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cli.errors import UserError

RUN = 32  # characters; a power of two
SAME = 0.8  # share of a held-out text's runs that make another text a copy of it
SHORT = 16  # characters: a held-out text of fewer is no copy inside another, only as a whole
CHUNK = 2**22  # characters that are looked through at a time
BASE = 0x9E3779B97F4A7C15  # odd
TABLE = 2**22


def squeezed(text: str) -> bytes:
    """`text` without white space and case."""
    return "".join(text.casefold().split()).encode()


def hashes(data: bytes) -> np.ndarray:
    """(len(data) - RUN + 1,) uint64, of every run of bytes (Karp and Rabin 1987, modulo 2**64)."""
    found, width, base = np.frombuffer(data, np.uint8).astype(np.uint64), 1, BASE
    if len(found) < RUN:
        return found[:0]
    while width < RUN:  # of two runs side by side, that of both
        found = found[:-width] * np.uint64(base) + found[width:]
        width, base = 2 * width, base * base % 2**64
    return found


class HeldOut:
    """Held-out texts, as runs of characters."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        data = [squeezed(text) for text in self.texts]
        each = [np.unique(hashes(text)) for text in data]
        self.sizes = np.array([len(runs) for runs in each], np.int64)
        # Those too short for a run are looked for as they are; the shortest as a whole text.
        self.short = {
            number: text if len(text) >= SHORT else b"\n" + text + b"\n"
            for number, text in enumerate(data)
            if len(text) < RUN
        }
        owners = np.repeat(np.arange(len(each)), self.sizes)
        runs = np.concatenate([*each, np.zeros(0, np.uint64)])
        order = np.argsort(runs, kind="stable")
        self.owners = owners[order]
        self.runs, self.first, self.count = np.unique(runs[order], return_index=True, return_counts=True)
        self.table = np.zeros(TABLE, bool)
        self.table[self.runs % TABLE] = True

    def copies(self, texts: Iterable[str]) -> dict[int, str]:
        """Which held-out texts (by number) stand in one of `texts`, and the first it stands in."""
        found: dict[int, str] = {}
        for part, data, starts in chunks(texts):
            places, runs = self._hits(data)
            document = np.searchsorted(starts, places, "right") - 1
            document, runs = np.unique(np.stack([document, runs]), axis=1)
            count = self.count[runs]  # held-out texts that have it
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            owner = self.owners[np.repeat(self.first[runs], count) + within]
            pairs, shared = np.unique(np.stack([owner, np.repeat(document, count)]), axis=1, return_counts=True)
            same = shared >= SAME * self.sizes[pairs[0]]
            for number, document in pairs[:, same].T:
                found.setdefault(int(number), part[document])
            for number, text in self.short.items():
                if (place := data.find(text)) >= 0:
                    at = int(np.searchsorted(starts, place + 1, "right")) - 1
                    found.setdefault(number, part[at])
        return found

    def refuse(self, place: str, texts: Iterable[str]) -> None:
        """Raises UserError, naming `place`, if a held-out text stands in one of `texts`."""
        for number, text in self.copies(texts).items():
            raise UserError(
                f"{place} holds what is held out: {self.texts[number][:60]!r} stands in "
                f"{text[:60]!r}; the study would measure memory"
            )

    def overlap(self, texts: Iterable[str]) -> float:
        """Share of the runs of characters of all held-out texts that stand anywhere in `texts`."""
        seen = np.zeros(len(self.runs), bool)
        for _, data, _ in chunks(texts):
            seen[self._hits(data)[1]] = True
        return float(seen.mean()) if len(seen) else 0.0

    def _hits(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        # Where in `data` a held-out run begins, and which one.
        found = hashes(data)
        places = np.flatnonzero(self.table[found % TABLE])  # few: only these are looked up
        at = np.searchsorted(self.runs, found[places]).clip(max=max(0, len(self.runs) - 1))
        known = self.runs[at] == found[places] if len(self.runs) else np.zeros(0, bool)
        return places[known], at[known]


def chunks(texts: Iterable[str]) -> Iterator[tuple[list[str], bytes, np.ndarray]]:
    """Some texts at a time, squeezed and one per line, and where in these bytes each begins."""
    part: list[str] = []
    lines: list[bytes] = []
    size = 0
    for text in texts:
        part.append(text)
        lines.append(squeezed(text))
        size += len(lines[-1]) + 1
        if size > CHUNK:
            yield part, *_joined(lines)
            part, lines, size = [], [], 0
    if part:
        yield part, *_joined(lines)


def _joined(lines: list[bytes]) -> tuple[bytes, np.ndarray]:
    lengths = np.array([len(line) + 1 for line in lines])
    return b"\n" + b"\n".join(lines) + b"\n", 1 + np.cumsum(lengths) - lengths
