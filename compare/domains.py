"""The domains of an atlas: what is known of a corpus before a decision, and who won on it.

The outcome is log2(bits per byte of the tuned foundation / bits per byte from scratch), for every size and budget
of a domain: above 0 training from scratch is better. Validation chooses between LoRA and full fine-tuning. The
shortest budget is not an outcome, as its runs are features. The first held-out documents give the features, the
others the outcomes, so that a document that suits one method does not count twice.
"""

import json
import statistics
from collections.abc import Sequence
from itertools import accumulate
from math import log2
from pathlib import Path
from typing import NamedTuple

from cli.atomic import to_json, write_atomically
from cli.console import say
from cli.errors import UserError
from cli.recipes import load
from compare.analysis.bootstrap import Row, score
from compare.analysis.ledger import Ledger
from compare.plan import plan
from compare.rows import read_rows
from configs.study_recipe import StudyRecipe

ATLAS = Path("benchmarks/studies/atlas")
SHORT = 0.5  # budget factor of the short runs that are features
SHORT_SECONDS = 30.0  # of their training on one core
SMALL = "-small"  # of the name of the study that measures a domain as if its smallest size were all of the text
FEATURE_TOKENS = 6_400  # of held-out text that gives the features, at most half of it; --predict scores as much
TUNED = ("lora", "full")
MIN_DOMAINS = 4


class Features(NamedTuple):
    """What is measured of a corpus before any decision."""

    ratio: float
    """log2 of zero-shot bits per byte over those of xz after all of the text: how far it is from the foundation."""
    early: float
    """log2 of LoRA's bits per byte over those from scratch, after short runs on all of the text."""
    fertility: float
    """The foundation's tokens per byte."""
    overlap: float
    """Share of the held-out n-grams that occur in the training text: how much it repeats itself."""
    pace: float
    """Bytes of text that a second of training from scratch reads, on one core: it learns no more text than that."""


class View(NamedTuple):
    """A corpus as it is known when so much of its text is at hand."""

    bytes: float
    features: Features


class Outcome(NamedTuple):
    """Who won on how much text with how much training, and by how much."""

    bytes: float
    seconds: float
    """Of training on one core, by the calibration of the study."""
    advantage: float
    """Of training from scratch, in log2 of bits per byte."""
    ratio: float
    """As in Features, with xz after this much of the text."""
    is_tie: bool = False
    """Whether the 95 % interval of the difference holds 0."""


class Domain(NamedTuple):
    """A domain of the atlas."""

    name: str
    views: list[View]
    """The largest is the last."""
    outcomes: list[Outcome]

    @property
    def features(self) -> Features:
        """With all of the text."""
        return self.views[-1].features

    @property
    def decisive(self) -> Outcome:
        """The outcome on all of the text with the study's own budget, the least after that of the short runs."""
        return min(self.outcomes, key=lambda outcome: (-outcome.bytes, outcome.seconds))

    @property
    def longest(self) -> Outcome:
        """The outcome on all of the text with the largest budget."""
        return max(self.outcomes, key=lambda outcome: (outcome.bytes, outcome.seconds))


def count_feature_documents(ledger: Ledger) -> int:
    """How many of the first held-out documents of an atlas's domain give its features."""
    (zero,) = ledger.largest("text", "zero-shot")
    read = list(accumulate(zero["document_tokens"]))
    return min(len(read) // 2, 1 + sum(tokens < FEATURE_TOKENS for tokens in read))


def only(rows: Sequence[Row], documents: slice) -> list[Row]:
    """Rows of text with some of their held-out documents alone."""
    keys = ("document_bits", "document_bytes", "document_tokens", "groups")
    return [row | {key: row[key][documents] for key in keys if row.get(key)} for row in rows]


def measure_view(ledger: Ledger, factor: float, documents: slice = slice(None)) -> View:
    """A corpus as its rows show it; the short runs are those with `factor` times the budget."""

    def bits(rows: Sequence[Row]) -> float:
        return score(only(rows, documents), "text").value

    zero, xz = ledger.largest("text", "zero-shot"), ledger.largest("text", "xz")
    size, timed = ledger.sizes("text", "scratch")[-1], ledger.calibration
    scratch, lora = (ledger.measured("text", method, size, factor) for method in ("scratch", "lora"))
    # `compare.run --predict` takes the steps of the atlas, but may use more threads.
    threads = timed.get("timed_threads", timed["threads"])
    seconds = threads * scratch[0]["training_steps"] * timed["speeds"]["scratch-text"]["step_seconds"]
    (scored,) = only(zero, documents)
    features = Features(
        log2(bits(zero) / bits(xz)),
        log2(bits(lora) / bits(scratch)),
        sum(scored["document_tokens"]) / sum(scored["document_bytes"]),
        statistics.mean(row["overlap"] for row in xz),
        scratch[0]["epochs"] * scratch[0]["seen_bytes"] / seconds,
    )
    return View(scratch[0]["seen_bytes"], features)


def measure_outcomes(ledger: Ledger, documents: slice = slice(None)) -> list[Outcome]:
    """Who won at every size and budget of a study, but for the budget of the short runs."""
    threads, sizes = ledger.calibration["threads"], ledger.sizes("text", "scratch")
    factors = [factor for axis, method, factor in ledger.budgets if (axis, method) == ("text", "scratch")]
    found = []
    for size, factor in [*((size, 1.0) for size in sizes), *((sizes[-1], factor) for factor in factors)]:
        rows = {m: only(ledger.measured("text", m, size, factor), documents) for m in ("scratch", *TUNED)}
        tuned = {m: statistics.mean(row["validation_bits"] for row in rows[m]) for m in TUNED if rows[m]}
        if factor == SHORT or not tuned:
            continue
        best, scratch = (score(rows[m], "text") for m in (min(tuned, key=tuned.__getitem__), "scratch"))
        zero, xz = (
            score(only(ledger.at("text", m, s), documents), "text") for m, s in (("zero-shot", 0), ("xz", size))
        )
        # The seconds of LoRA are steps alone; those from scratch hold its tokenizer's.
        row, *_ = rows["lora"] or rows["full"]
        difference = best.minus(scratch).estimate
        found.append(
            Outcome(
                row["seen_bytes"],
                threads * row["training_seconds"],
                log2(best.value / scratch.value),
                log2(zero.value / xz.value),
                difference.low <= 0 <= difference.high,
            )
        )
    return found


def read_domain(path: Path) -> Domain | None:
    """A domain of the atlas, from its two studies; None, with a line, if one is not finished."""
    views, outcomes = [], []
    for folder in (path.with_name(path.name + SMALL), path):
        if not folder.exists():
            continue
        rows = read_rows(folder)
        missing = [c.name for c in plan(load(StudyRecipe, folder / "config.toml")) if c.name not in rows]
        if missing:
            more = ", …" if len(missing) > 1 else ""
            say(f"{path}: left out, as {missing[0]}{more} is missing: compare.atlas --domains {path.name}")
            return None
        ledger = Ledger.read(folder)
        count = count_feature_documents(ledger)
        views.append(measure_view(ledger, SHORT, slice(count)))
        outcomes += measure_outcomes(ledger, slice(count, None))
    return Domain(path.name, views, outcomes)


def read_atlas(folder: Path) -> list[Domain]:
    """All domains that have been measured, and those that users have added. Raises UserError if they are too few.

    A domain that is not finished is left out, with a line.
    """
    paths = sorted(path.parent for path in folder.glob("*/config.toml") if not path.parent.name.endswith(SMALL))
    found = [domain for path in paths if (domain := read_domain(path))]
    for path in sorted(folder.glob("*.domain.json")):
        name, views, outcomes = json.loads(path.read_text(encoding="utf-8"))
        seen = [View(size, Features(*features)) for size, features in views]
        found.append(Domain(name, seen, [Outcome(*each) for each in outcomes]))
    if len(found) < MIN_DOMAINS:
        raise UserError(f"{folder}: {len(found)} finished domains are too few to predict from; run: compare.atlas")
    return found


def add_domain(atlas: Path, name: str, predicted: Path, study: Path) -> Path:
    """Add a corpus to an atlas: its features from the short runs in `predicted`, its outcomes from a full study.

    Raises UserError if the atlas has a domain of that name, or if the study compared nothing.
    """
    path = atlas / f"{name}.domain.json"
    if path.exists() or (atlas / name).exists():
        raise UserError(f"{atlas}: already has a domain {name}; delete it, or rename your corpus")
    outcomes = measure_outcomes(Ledger.read(study))
    if not outcomes:
        raise UserError(f"{study}: trained no model from scratch and tuned none: there is nothing to add to an atlas")
    atlas.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json(Domain(name, [measure_view(Ledger.read(predicted), 1.0)], outcomes)) + "\n")
    return path
