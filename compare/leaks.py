"""What is held out must not be learnt, retrieved or shown: found by the words that texts share.

Two texts share what they say if most runs of eight words of the one stand in the other (as
Brown et al. 2020, arXiv:2005.14165, appendix C, with 13 words of longer texts).
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from configs.cli import UserError

WORDS = 8
SAME = 0.8  # share of a held-out text's runs that make another text a copy of it


def runs(text: str) -> set[int]:
    """Hashes of all runs of eight words; of a shorter text, of the whole."""
    words = text.casefold().split()
    if len(words) <= WORDS:
        return {hash(tuple(words))}
    shifted = (words[i:] for i in range(WORDS))
    return set(map(hash, zip(*shifted, strict=False)))


class HeldOut:
    """Held-out texts, as runs of words."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        self.runs = [runs(text) for text in self.texts]
        self.where: dict[int, list[int]] = {}
        for number, found in enumerate(self.runs):
            for run in found:
                self.where.setdefault(run, []).append(number)

    def copies(self, texts: Iterable[str]) -> dict[int, str]:
        """Which held-out texts (by number) stand in one of `texts`, and the first it stands in."""
        found: dict[int, str] = {}
        for text in texts:
            known = [run for run in runs(text) if run in self.where]  # nearly always none
            shared = Counter(number for run in known for number in self.where[run])
            for number, count in shared.items():
                if count >= SAME * len(self.runs[number]):
                    found.setdefault(number, text)
        return found

    def refuse(self, place: str, texts: Iterable[str]) -> None:
        """Raises UserError, naming `place`, if a held-out text stands in one of `texts`."""
        for number, text in self.copies(texts).items():
            raise UserError(
                f"{place} holds what is held out: {self.texts[number][:60]!r} stands in "
                f"{text[:60]!r}; the study would measure memory"
            )

    def overlap(self, texts: Iterable[str]) -> float:
        """Share of the runs of words of all held-out texts that stand anywhere in `texts`."""
        seen: set[int] = set()
        for text in texts:
            seen |= runs(text) & self.where.keys()
        return len(seen) / max(1, len(self.where))
