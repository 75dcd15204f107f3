"""The domains of an atlas: what is known of a corpus before a decision, and who won on it.

The outcome is log2(bits per byte of the tuned foundation / bits per byte from scratch), for every size and budget
of a domain: above 0 training from scratch is better. Validation chooses between LoRA and full fine-tuning. The
shortest budget is not an outcome, as its runs are features.
"""

import json
import statistics
from math import log2
from pathlib import Path
from typing import NamedTuple

from cli.atomic import to_json, write_atomically
from cli.console import say
from cli.errors import UserError
from cli.recipes import load
from compare.analysis.bootstrap import score
from compare.analysis.ledger import Ledger
from compare.plan import plan
from compare.rows import read_rows
from configs.study_recipe import StudyRecipe

ATLAS = Path("benchmarks/studies/atlas")
SHORT = 0.5  # budget factor of the short runs that are features
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


class Outcome(NamedTuple):
    """Who won on how much text with how much training, and by how much."""

    bytes: float
    seconds: float
    """Of training on one core, by the calibration of the study."""
    advantage: float
    """Of training from scratch, in log2 of bits per byte."""
    ratio: float
    """As in Features, with xz after this much of the text."""


class Domain(NamedTuple):
    """A domain of the atlas."""

    name: str
    features: Features
    outcomes: list[Outcome]

    @property
    def decisive(self) -> Outcome:
        """The outcome on all of the text with the study's own budget, the least after that of the short runs."""
        return min(self.outcomes, key=lambda outcome: (-outcome.bytes, outcome.seconds))

    @property
    def longest(self) -> Outcome:
        """The outcome on all of the text with the largest budget."""
        return max(self.outcomes, key=lambda outcome: (outcome.bytes, outcome.seconds))


def measure_features(ledger: Ledger, factor: float) -> Features:
    """The features of a corpus from its rows; the short runs are those with `factor` times the budget."""

    def bits(method: str) -> float:
        return ledger.budget_score("text", method, factor).value

    (zero,) = ledger.largest("text", "zero-shot")
    (short, *_), timed = ledger.measured("text", "scratch", factor=factor), ledger.calibration
    # `compare.run --predict` takes the steps of the atlas, but may use more threads.
    threads = timed.get("timed_threads", timed["threads"])
    seconds = threads * short["training_steps"] * timed["speeds"]["scratch-text"]["step_seconds"]
    return Features(
        log2(ledger.score("text", "zero-shot").value / ledger.score("text", "xz").value),
        log2(bits("lora") / bits("scratch")),
        sum(zero["document_tokens"]) / sum(zero["document_bytes"]),
        statistics.mean(row["overlap"] for row in ledger.largest("text", "xz")),
        short["epochs"] * short["seen_bytes"] / seconds,
    )


def measure_outcomes(ledger: Ledger) -> list[Outcome]:
    """Who won at every size and budget of a study, but for the budget of the short runs."""
    zero, threads = ledger.score("text", "zero-shot").value, ledger.calibration["threads"]
    cases = [(size, 1.0) for size in ledger.sizes("text", "scratch")]
    cases += [(1.0, factor) for axis, method, factor in ledger.budgets if (axis, method) == ("text", "scratch")]
    found = []
    for size, factor in cases:
        rows = {m: ledger.measured("text", m, size, factor) for m in ("scratch", *TUNED)}
        tuned = {m: statistics.mean(row["validation_bits"] for row in rows[m]) for m in TUNED if rows[m]}
        if factor == SHORT or not tuned:
            continue
        bits = score(rows[min(tuned, key=tuned.__getitem__)], "text").value
        # The seconds of LoRA are steps alone; those from scratch hold its tokenizer's.
        row, *_ = rows["lora"] or rows["full"]
        advantage = log2(bits / score(rows["scratch"], "text").value)
        ratio = log2(zero / ledger.score("text", "xz", size).value)
        found.append(Outcome(row["seen_bytes"], threads * row["training_seconds"], advantage, ratio))
    return found


def read_atlas(folder: Path) -> list[Domain]:
    """All domains that have been measured, and those that users have added. Raises UserError if they are too few.

    A study that is not finished is left out, with a line.
    """
    found = []
    for path in sorted(folder.glob("*/answer.md")):
        ledger, name = Ledger.read(path.parent), path.parent.name
        rows = read_rows(path.parent)
        missing = [c.name for c in plan(load(StudyRecipe, path.with_name("config.toml"))) if c.name not in rows]
        if missing:
            more = ", …" if len(missing) > 1 else ""
            say(f"{path.parent}: left out, as {missing[0]}{more} is missing: compare.atlas --domains {name}")
            continue
        found.append(Domain(name, measure_features(ledger, SHORT), measure_outcomes(ledger)))
    for path in sorted(folder.glob("*.domain.json")):
        name, features, outcomes = json.loads(path.read_text(encoding="utf-8"))
        found.append(Domain(name, Features(*features), [Outcome(*each) for each in outcomes]))
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
    write_atomically(path, to_json(Domain(name, measure_features(Ledger.read(predicted), 1.0), outcomes)) + "\n")
    return path
