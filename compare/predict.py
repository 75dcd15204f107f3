"""Predict whether training from scratch beats tuning on a corpus, from what two minutes measure.

    python -m compare.predict [benchmarks/studies/atlas] [--out docs/atlas.json]

Fits a ridge regression to the atlas (compare/atlas.py) and prints how well it predicts domains that it has
not seen, beside three rules that need no model. `compare.run --corpus X --predict` uses it.

The outcome is log2(bits per byte of the better of LoRA and full fine-tuning / bits per byte from scratch), for
every size and budget of a domain: above 0 training from scratch is better.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from math import log2, log10
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli.atomic import to_json, write_atomically
from cli.console import show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from compare.analysis.ledger import Ledger

ATLAS = Path("benchmarks/studies/atlas")
SHORT = 0.5  # budget factor of the short runs that are features
TUNED = ("lora", "full")
LEVEL = 0.8  # of the intervals
PENALTIES = np.logspace(-2, 3, 11)
LARGE = 10e6  # bytes; what the primers' prose is taken to mean by a large domain
MIN_DOMAINS = 4


class Features(NamedTuple):
    """What is measured of a corpus before any decision."""

    ratio: float
    """log2 of zero-shot bits per byte over those of xz: how far the text is from the foundation."""
    early: float
    """log2 of LoRA's bits per byte over those from scratch, after short runs on all of the text."""
    fertility: float
    """The foundation's tokens per byte."""
    overlap: float
    """Share of the held-out n-grams that occur in the training text: how much it repeats itself."""


class Outcome(NamedTuple):
    """Who won on how much text with how much training, and by how much."""

    bytes: float
    seconds: float
    advantage: float
    """Of training from scratch, in log2 of bits per byte."""


class Domain(NamedTuple):
    """A domain of the atlas."""

    name: str
    features: Features
    outcomes: list[Outcome]

    @property
    def decisive(self) -> Outcome:
        """The outcome on all of the text with the study's own budget."""
        largest = max(outcome.bytes for outcome in self.outcomes)
        seconds = sorted({outcome.seconds for outcome in self.outcomes if outcome.bytes == largest})
        middle = seconds[len(seconds) // 2]
        return next(o for o in self.outcomes if (o.bytes, o.seconds) == (largest, middle))


class Prediction(NamedTuple):
    """What is predicted at one size and budget."""

    advantage: float
    low: float
    high: float
    chance: float
    """That training from scratch is better: the share of the atlas's errors with which it would be."""


def measure_features(ledger: Ledger, factor: float) -> Features:
    """The features of a corpus from its rows; the short runs are those with `factor` times the budget."""

    def bits(method: str) -> float:
        return ledger.budget_score("text", method, factor).value

    (zero,) = ledger.largest("text", "zero-shot")
    return Features(
        log2(ledger.score("text", "zero-shot").value / ledger.score("text", "xz").value),
        log2(bits("lora") / bits("scratch")),
        sum(zero["document_tokens"]) / sum(zero["document_bytes"]),
        statistics.mean(row["overlap"] for row in ledger.largest("text", "xz")),
    )


def measure_outcomes(ledger: Ledger) -> list[Outcome]:
    """Who won at every size and budget of a study."""
    methods = [method for method in TUNED if method in ledger.methods("text")]
    found = []
    for size in ledger.sizes("text", "scratch"):
        row, *_ = ledger.at("text", "scratch", size)
        tuned = min(ledger.score("text", method, size).value for method in methods)
        advantage = log2(tuned / ledger.score("text", "scratch", size).value)
        found.append(Outcome(row["seen_bytes"], row["training_seconds"], advantage))
    for factor in sorted({factor for axis, _, factor in ledger.budgets if axis == "text"}):
        row, *_ = ledger.budgets["text", "scratch", factor]
        tuned = min(ledger.budget_score("text", method, factor).value for method in methods)
        advantage = log2(tuned / ledger.budget_score("text", "scratch", factor).value)
        found.append(Outcome(row["seen_bytes"], row["training_seconds"], advantage))
    return found


def read_atlas(folder: Path) -> list[Domain]:
    """All domains whose studies have ended, and those that users have added. Raises UserError if they are too few."""
    found = []
    for path in sorted(folder.glob("*/answer.md")):
        ledger = Ledger.read(path.parent)
        found.append(Domain(path.parent.name, measure_features(ledger, SHORT), measure_outcomes(ledger)))
    for path in sorted(folder.glob("*.domain.json")):
        name, features, outcomes = json.loads(path.read_text(encoding="utf-8"))
        found.append(Domain(name, Features(*features), [Outcome(*each) for each in outcomes]))
    if len(found) < MIN_DOMAINS:
        raise UserError(f"{folder}: {len(found)} finished domains are too few to predict from; run: compare.atlas")
    return found


def add_domain(atlas: Path, name: str, predicted: Path, study: Path) -> Path:
    """Add a corpus to an atlas: its features from the short runs in `predicted`, its outcomes from a full study."""
    outcomes = measure_outcomes(Ledger.read(study))
    domain = Domain(name, measure_features(Ledger.read(predicted), 1.0), outcomes)
    path = atlas / f"{name}.domain.json"
    write_atomically(path, to_json(domain) + "\n")
    return path


def describe_prediction(folder: Path, corpus: str, atlas: Path = ATLAS) -> list[str]:
    """What the atlas predicts for a corpus, in sentences; `folder` is a study of `own_corpus.short_recipe`.

    Raises UserError if the atlas has too few domains.
    """
    domains, ledger = read_atlas(atlas), Ledger.read(folder)
    predictor, features = Predictor(domains), measure_features(ledger, 1.0)
    size = float(ledger.largest("text", "scratch")[0]["seen_bytes"])
    seconds = statistics.median(domain.decisive.seconds for domain in domains)
    now = predictor.predict(features, size, seconds)
    lines = [f"With {seconds:.0f} s of training on all of the text ({_megabytes(size)}): {_winner(now)}."]
    more = predictor.predict(features, 10 * size, seconds), predictor.predict(features, size, 10 * seconds)
    lines.append(f"  With ten times the text: {_winner(more[0])}; with ten times the training: {_winner(more[1])}.")
    if crossing := predictor.crossing(features, size, seconds):
        at, low, high = map(_megabytes, crossing)
        lines.append(f"  Training from scratch is likely to be better from {at} of text on [{low}, {high}].")
    else:
        lines.append("  In the atlas, more text does not favour training from scratch.")
    nearest = ", ".join(domain.name for domain in predictor.nearest(features, size))
    lines.append(f"  The corpus resembles {nearest} most.")
    name, right, _, _ = judge(domains)[-1]
    lines.append(f"  {name.capitalize()}, named the winner for {right} of {len(domains)} domains.")
    lines.append(f"  To be sure, measure it: python -m compare.run --corpus {corpus} --minutes 20")
    return lines


def _winner(found: Prediction) -> str:
    """Such as "from scratch, chance 83 %, with 12 % [-3 %, 25 %] fewer bits per byte"."""
    sign = 1 if found.advantage > 0 else -1
    value, *ends = (1 - 2 ** (-sign * each) for each in (found.advantage, found.low, found.high))
    low, high = sorted(ends)
    name, chance = ("from scratch", found.chance) if sign > 0 else ("tuning", 1 - found.chance)
    return f"{name}, chance {chance:.0%}, with {value:.0%} [{low:.0%}, {high:.0%}] fewer bits per byte"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3g} MB"


def _inputs(features: Features, size: float, seconds: float) -> list[float]:
    return [log10(size), log10(seconds), *features]


class Model:
    """Ridge regression on standardised features, every domain with the same weight."""

    def __init__(self, domains: Sequence[Domain], penalty: float | None = None):
        """`penalty`: chosen by leaving out one domain at a time, unless it is given."""
        x = np.array([_inputs(d.features, o.bytes, o.seconds) for d in domains for o in d.outcomes])
        y = np.array([o.advantage for d in domains for o in d.outcomes])
        weights = np.array([1 / len(d.outcomes) for d in domains for _ in d.outcomes])
        if penalty is None:
            penalty = min(PENALTIES, key=lambda each: squared_error(domains, each))
        self.penalty = penalty
        self.mean = np.average(x, axis=0, weights=weights)
        self.scale = np.sqrt(np.average((x - self.mean) ** 2, axis=0, weights=weights)) + 1e-9
        z = (x - self.mean) / self.scale
        self.intercept = float(np.average(y, weights=weights))
        gram = (z * weights[:, None]).T @ z + penalty * len(domains) / 100 * np.eye(z.shape[1])
        self.slopes = np.linalg.solve(gram, (z * weights[:, None]).T @ (y - self.intercept))

    def __call__(self, features: Features, size: float, seconds: float) -> float:
        """The predicted advantage of training from scratch."""
        z = (np.array(_inputs(features, size, seconds)) - self.mean) / self.scale
        return float(self.intercept + z @ self.slopes)

    def per_decade(self) -> float:
        """By how much the advantage rises if there is ten times as much text."""
        return float(self.slopes[0] / self.scale[0])


def squared_error(domains: Sequence[Domain], penalty: float) -> float:
    """The mean squared error on domains that are left out one at a time."""
    return statistics.mean(error**2 for errors in left_out_errors(domains, penalty) for error in errors)


def left_out_errors(domains: Sequence[Domain], penalty: float | None = None) -> list[list[float]]:
    """By domain, outcome minus prediction of a model that has not seen the domain."""
    found = []
    for number, left_out in enumerate(domains):
        model = Model([*domains[:number], *domains[number + 1 :]], penalty)
        found.append([o.advantage - model(left_out.features, o.bytes, o.seconds) for o in left_out.outcomes])
    return found


class Predictor:
    """The model of the atlas, with intervals from its errors on domains that it has not seen."""

    def __init__(self, domains: Sequence[Domain]):
        self.domains, self.model = domains, Model(domains)
        errors = left_out_errors(domains)
        self.errors = np.array([error for each in errors for error in each])
        self.weights = np.array([1 / len(each) for each in errors for _ in each]) / len(errors)

    def quantile(self, level: float) -> float:
        """Of the errors, every domain with the same weight."""
        order = np.argsort(self.errors)
        at = min(int(np.searchsorted(np.cumsum(self.weights[order]), level)), len(order) - 1)
        return float(self.errors[order][at])

    def predict(self, features: Features, size: float, seconds: float) -> Prediction:
        """At one size and budget, with the interval of LEVEL."""
        value = self.model(features, size, seconds)
        low, high = (value + self.quantile(level) for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Prediction(value, low, high, float(self.weights[value + self.errors > 0].sum()))

    def crossing(self, features: Features, size: float, seconds: float) -> tuple[float, float, float] | None:
        """Bytes from which training from scratch is better, with an interval; None if more text does not help it."""
        slope, found = self.model.per_decade(), self.predict(features, size, seconds)
        if slope <= 0:
            return None
        at, low, high = (size * 10 ** min(9.0, max(-9.0, -value / slope)) for value in found[:3])
        return at, high, low

    def nearest(self, features: Features, size: float, count: int = 3) -> list[Domain]:
        """The domains of the atlas that resemble a corpus most, by its features and its size."""

        def place(features: Features, size: float) -> np.ndarray:
            z = (np.array(_inputs(features, size, 1.0)) - self.model.mean) / self.model.scale
            return np.delete(z, 1)

        own = place(features, size)
        return sorted(self.domains, key=lambda d: float(np.linalg.norm(place(d.features, d.decisive.bytes) - own)))[
            :count
        ]


RULES: dict[str, Callable[[Features, float], bool]] = {
    "always tune": lambda features, size: False,
    "from scratch if zero-shot is worse than xz": lambda features, size: features.ratio > 0,
    "from scratch if the domain is large and unusual": lambda features, size: features.ratio > 0 and size >= LARGE,
}
"""Whether to train from scratch, without a model. The third is the primers' prose."""


def judge(domains: Sequence[Domain]) -> list[tuple[str, int, int, float]]:
    """How often every rule and the predictor name the winner: (name, domains right, outcomes right, of which share)."""
    errors = left_out_errors(domains)
    calls: dict[str, list[list[bool]]] = {
        name: [[rule(d.features, o.bytes) == (o.advantage > 0) for o in d.outcomes] for d in domains]
        for name, rule in RULES.items()
    }
    calls["the predictor, which has not seen the domain"] = [
        [(o.advantage - error > 0) == (o.advantage > 0) for o, error in zip(d.outcomes, each, strict=True)]
        for d, each in zip(domains, errors, strict=True)
    ]
    found = []
    for name, right in calls.items():
        decided = sum(each[d.outcomes.index(d.decisive)] for d, each in zip(domains, right, strict=True))
        every = [call for each in right for call in each]
        found.append((name, decided, sum(every), sum(every) / len(every)))
    return found


def main() -> None:
    """Entry point of `python -m compare.predict`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ATLAS)
    parser.add_argument("--out", type=Path, help="write what is printed as JSON")
    args = parser.parse_args()
    domains = read_atlas(args.folder)
    predictor = Predictor(domains)
    rows = []
    for domain, errors in zip(domains, left_out_errors(domains), strict=True):
        decisive = domain.decisive
        predicted = decisive.advantage - errors[domain.outcomes.index(decisive)]
        rows.append({"domain": domain.name, **domain.features._asdict(), **decisive._asdict(), "predicted": predicted})
        show(
            f"{domain.name:20} {decisive.bytes / 1e6:6.2f} MB, distance {2**domain.features.ratio:.2f}: from scratch "
            f"{decisive.advantage:+.3f}, predicted {predicted:+.3f}"
        )
    for name, decided, right, share in (judged := judge(domains)):
        show(f"{name}: {decided} of {len(domains)} domains, {share:.0%} of all sizes and budgets ({right})")
    names = ("log10 bytes", "log10 seconds", *Features._fields)
    slopes = dict(zip(names, map(float, predictor.model.slopes), strict=True))
    show("slopes per standard deviation: " + ", ".join(f"{name} {slope:+.3f}" for name, slope in slopes.items()))
    if args.out:
        rules = [dict(zip(("rule", "domains", "outcomes", "share"), each, strict=True)) for each in judged]
        write_atomically(args.out, to_json({"domains": rows, "rules": rules, "slopes": slopes}, 1) + "\n")


if __name__ == "__main__":
    run_command(main)
