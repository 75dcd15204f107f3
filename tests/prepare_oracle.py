"""Preparation in one pass with everything in memory: what data/prepare.py must agree with."""

import hashlib
import json
from collections import Counter

from rensa import RMinHash, RMinHashLSH

from data.cleaning import clean, shingles
from data.corpora import open_corpus
from data.splits import SPLITS

PERMUTATIONS = 96


class Index:
    """All signatures in memory, with the LSH index of `rensa`."""

    def __init__(self, threshold):
        divisors = [n for n in range(2, PERMUTATIONS + 1) if PERMUTATIONS % n == 0]
        usable = [n for n in divisors if (1 - threshold**n) ** (PERMUTATIONS / n) <= 0.05]
        self.threshold, self.signatures = threshold, []
        self.index = RMinHashLSH(threshold, PERMUTATIONS, PERMUTATIONS // max(usable, default=1))

    def add(self, signature):
        self.index.insert(len(self.signatures), signature)
        self.signatures.append(signature)

    def has_similar(self, signature):
        return any(signature.jaccard(self.signatures[i]) >= self.threshold for i in self.index.query(signature))


def prepare_in_memory(config):
    """The lines of each split and the counts of dropped documents."""
    counts, seen, kept = Counter(), set(), Index(config.drop_similarity)
    groups, sizes, lines, places = [], [], [], []
    for document in open_corpus(config).read():
        text = clean(document.text)
        if len(text) < config.min_chars:
            counts["dropped_too_short"] += 1
            continue
        if text in seen:
            counts["dropped_exact_duplicate"] += 1
            continue
        seen.add(text)
        signature = RMinHash(PERMUTATIONS, 0)
        signature.update(shingles(document.dedup_text or text))
        if kept.has_similar(signature):
            counts["dropped_near_duplicate"] += 1
            continue
        kept.add(signature)
        group = "" if config.group_field == "document" else document.group
        groups.append(group or document.id)
        sizes.append(len(text))
        drawn = f"{config.split_seed}:order:{document.sequence or document.id}"
        places.append((document.source, hashlib.sha256(drawn.encode()).digest()))
        lines.append(json.dumps({"id": document.id, "text": text, "group": groups[-1]}) + "\n")
    split_of = assign(groups, sizes, config)
    others, dropped = Index(config.straddle_similarity), set()
    for split in ("train", "test", "validation"):
        numbers = [number for number, its in enumerate(split_of) if its == split]
        if split != "train":
            dropped |= {n for n in numbers if others.has_similar(kept.signatures[n])}
        for number in numbers:
            if number not in dropped:
                others.add(kept.signatures[number])
    counts["dropped_straddles_split"] = len(dropped)
    order = sorted(set(range(len(lines))) - dropped, key=places.__getitem__)
    return {split: [lines[n] for n in order if split_of[n] == split] for split in SPLITS}, counts


def assign(groups, sizes, config):
    size_of = Counter()
    for group, size in zip(groups, sizes, strict=True):
        size_of[group] += size
    total = sum(sizes)
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    wanted = {split: min(fraction * total, config.held_out_chars) for split, fraction in fractions.items()}
    filled, split_of = Counter(), {}
    for group in sorted(size_of, key=lambda group: hashlib.sha256(f"{config.split_seed}:{group}".encode()).digest()):
        split_of[group] = "train"
        for split, size in wanted.items():
            if filled[split] < size and size_of[group] <= 2 * fractions[split] * total:
                split_of[group] = split
                break
        filled[split_of[group]] += size_of[group]
    return [split_of[group] for group in groups]


def fingerprint(splits):
    digests = (hashlib.sha256("".join(splits[split]).encode()).hexdigest() for split in SPLITS)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
