"""Predict whether training from scratch beats tuning on a corpus, from what two minutes measure.

    python -m compare.predict [benchmarks/studies/atlas]

Fits a ridge regression to the atlas (compare/atlas.py) and prints how well it predicts domains that it has
not seen, beside four rules that need no model. `compare.run --corpus X --predict` uses it.
"""

import statistics
from collections.abc import Callable, Sequence
from math import log10
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli.console import show
from cli.errors import run_command
from cli.recipes import Parser
from compare.analysis.ledger import Ledger
from compare.domains import ATLAS, Domain, Features, Outcome, measure_features, read_atlas

LEVEL = 0.8  # of the intervals
PENALTIES = np.logspace(-2, 3, 11)
LARGE = 10e6  # bytes; what the primers' prose is taken to mean by a large domain


class Prediction(NamedTuple):
    """What is predicted at one size and budget."""

    advantage: float
    low: float
    high: float
    chance: float
    """That training from scratch is better: the share of the atlas's errors, of either sign, with which it would be."""


def describe_prediction(folder: Path, corpus: str, atlas: Path = ATLAS) -> list[str]:
    """What the atlas predicts for a corpus, in sentences; `folder` is a study of `own_corpus.short_recipe`.

    Raises UserError if the atlas has too few domains.
    """
    domains, ledger = read_atlas(atlas), Ledger.read(folder)
    predictor, features = Predictor(domains), measure_features(ledger, 1.0)
    size = float(ledger.largest("text", "scratch")[0]["seen_bytes"])
    seconds = statistics.median(domain.decisive.seconds for domain in domains)
    now = predictor.predict(features, size, seconds)
    lines = [f"With {seconds:.0f} s of training on one core on all of the text ({_megabytes(size)}): {_winner(now)}."]
    longest = max(outcome.seconds for domain in domains for outcome in domain.outcomes)
    for name, at, for_seconds in (
        ("the training", size, 10 * seconds),
        ("the text", 10 * size, seconds),
        ("both", 10 * size, 10 * seconds),
    ):
        found = _winner(predictor.predict(features, at, for_seconds))
        lines.append(f"  Ten times {name}: {found}.")
    lines.append(
        f"  These three are extrapolated: the atlas has trainings of at most {longest:.0f} s, and tests no corpus that "
        "is larger than what was measured of it."
    )
    read = features.pace * seconds
    crossing = predictor.crossing(features, seconds)
    if crossing and crossing[0] <= read:
        at, low, high = crossing
        end = _megabytes(high) if high <= read else "never"
        lines.append(
            f"  The predicted tie is at {_megabytes(at)} of text [{_megabytes(low)}, {end}] in {seconds:.0f} s."
        )
    else:
        lines.append(
            f"  More text alone makes no tie: in {seconds:.0f} s the model from scratch reads {_megabytes(read)}."
        )
    nearest = ", ".join(domain.name for domain in predictor.nearest(features, size))
    lines.append(f"  The corpus resembles {nearest} most.")
    verdict, count = judge(domains)[-1], len(domains)
    lines.append(
        f"  For domains that it had not seen, it named the winner {verdict.decisive} of {count} times, and "
        f"{verdict.longest} of {count} times with {longest:.0f} s of training."
    )
    lines.append(f"  To be sure, measure it: python -m compare.run --corpus {corpus} --minutes 20")
    return lines


def _winner(found: Prediction) -> str:
    """Such as "from scratch, chance 83 %, with 12 % [-3 %, 25 %] fewer bits per byte"."""
    sign = 1 if found.advantage > 0 else -1
    value, *ends = (1 - 2 ** (-sign * each) for each in (found.advantage, found.low, found.high))
    low, high = sorted(ends)
    chance = found.chance if sign > 0 else 1 - found.chance
    return (
        f"{_side(found.advantage)}, chance {chance:.0%}, with {value:.0%} [{low:.0%}, {high:.0%}] fewer bits per byte"
    )


def _side(advantage: float) -> str:
    return "from scratch" if advantage > 0 else "tuning"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3g} MB"


def _inputs(features: Features, size: float, seconds: float) -> list[float]:
    *others, pace = features
    return [log10(min(size, pace * seconds)), log10(seconds), *others]


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
        """By how much the advantage rises if ten times as much text is read."""
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

    def half_width(self) -> float:
        """Half of an interval of LEVEL: a quantile of the absolute errors, every domain with the same weight.

        As a new domain is one more than the domains whose errors are known, the quantile is that of a
        conformal prediction (Vovk et al. 2005).
        """
        count = len(self.domains)
        order = np.argsort(abs(self.errors))
        level = min(1.0, LEVEL * (count + 1) / count)
        at = min(int(np.searchsorted(np.cumsum(self.weights[order]), level - 1e-9)), len(order) - 1)
        return float(abs(self.errors[order][at]))

    def predict(self, features: Features, size: float, seconds: float) -> Prediction:
        """At one size and budget, with the interval of LEVEL."""
        value, half = self.model(features, size, seconds), self.half_width()
        chances = [float(self.weights[value + sign * self.errors > 0].sum()) for sign in (1, -1)]
        return Prediction(value, value - half, value + half, statistics.mean(chances))

    def crossing(self, features: Features, seconds: float) -> tuple[float, float, float] | None:
        """Bytes from which training from scratch is better, with an interval; None if more text does not help it.

        They may be more than training from scratch reads in `seconds`: then no amount of text is enough.
        """
        read = features.pace * seconds
        slope, found = self.model.per_decade(), self.predict(features, read, seconds)
        if slope <= 0:
            return None
        at, low, high = (read * 10 ** min(9.0, max(-9.0, -value / slope)) for value in found[:3])
        return at, high, low

    def nearest(self, features: Features, size: float, count: int = 3) -> list[Domain]:
        """The domains of the atlas that resemble a corpus most, by its features and its size."""

        def place(features: Features, size: float) -> np.ndarray:
            z = (np.array(_inputs(features, size, seconds)) - self.model.mean) / self.model.scale
            return np.delete(z, 1)

        seconds = self.domains[0].decisive.seconds
        own = place(features, size)
        return sorted(self.domains, key=lambda d: float(np.linalg.norm(place(d.features, d.decisive.bytes) - own)))[
            :count
        ]


RULES: dict[str, Callable[[Features, Outcome], bool]] = {
    "always tune": lambda features, at: False,
    "from scratch if zero-shot is worse than xz": lambda features, at: at.ratio > 0,
    "from scratch if the domain is large and unusual": lambda features, at: at.ratio > 0 and at.bytes >= LARGE,
    "whichever leads after the short runs": lambda features, at: features.early > 0,
}
"""Whether to train from scratch, without a model. The third is the primers' prose."""


class Verdict(NamedTuple):
    """How often a rule or the predictor names the winner."""

    name: str
    decisive: int
    """Domains, with all of the text and the study's own budget."""
    longest: int
    """Domains, with all of the text and the largest budget."""
    outcomes: int
    """Sizes and budgets of all domains."""


def judge(domains: Sequence[Domain]) -> list[Verdict]:
    """How often every rule and, as the last, the predictor name the winner."""
    errors = left_out_errors(domains)
    calls: dict[str, list[list[bool]]] = {
        name: [[rule(d.features, o) == (o.advantage > 0) for o in d.outcomes] for d in domains]
        for name, rule in RULES.items()
    }
    calls["the predictor, which has not seen the domain"] = [
        [(o.advantage - error > 0) == (o.advantage > 0) for o, error in zip(d.outcomes, each, strict=True)]
        for d, each in zip(domains, errors, strict=True)
    ]
    found = []
    for name, right in calls.items():
        pairs = list(zip(domains, right, strict=True))
        found.append(
            Verdict(
                name,
                sum(each[d.outcomes.index(d.decisive)] for d, each in pairs),
                sum(each[d.outcomes.index(d.longest)] for d, each in pairs),
                sum(map(sum, right)),
            )
        )
    return found


def tables(domains: Sequence[Domain]) -> list[str]:
    """The lines of two Markdown tables: every domain with its winner and what is predicted, and every rule."""
    found = [
        "| domain | text | distance | fewer bits per byte | predicted by a model that has not seen the domain |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for number, domain in enumerate(domains):
        decisive = domain.decisive
        others = Predictor([*domains[:number], *domains[number + 1 :]])
        predicted = others.predict(domain.features, decisive.bytes, decisive.seconds)
        right = "right" if predicted.advantage * decisive.advantage > 0 else "wrong"
        found.append(
            f"| {domain.name} | {_megabytes(decisive.bytes)} | {2**domain.features.ratio:.2f} | "
            f"{_side(decisive.advantage)}, {1 - 2 ** -abs(decisive.advantage):.0%} | {right}: {_winner(predicted)} |"
        )
    budgets = [
        statistics.median(each.seconds for each in group)
        for group in ([d.decisive for d in domains], [d.longest for d in domains])
    ]
    heads = [f"domains right, {seconds:.0f} s" for seconds in budgets]
    found += ["", f"| rule | {heads[0]} | {heads[1]} | sizes and budgets right |", "| --- | ---: | ---: | ---: |"]
    count = sum(len(domain.outcomes) for domain in domains)
    for name, decisive_right, longest_right, right_in_all in judge(domains):
        found.append(
            f"| {name} | {decisive_right} of {len(domains)} | {longest_right} of {len(domains)} | "
            f"{right_in_all} of {count}, {right_in_all / count:.0%} |"
        )
    return found


def main() -> None:
    """Entry point of `python -m compare.predict`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ATLAS)
    domains = read_atlas(parser.parse_args().folder)
    show("\n".join(tables(domains)))
    names = ("log10 bytes", "log10 seconds", *Features._fields)
    slopes = dict(zip(names, map(float, Predictor(domains).model.slopes), strict=True))
    show("\nSlopes per standard deviation: " + ", ".join(f"{name} {slope:+.3f}" for name, slope in slopes.items()))


if __name__ == "__main__":
    run_command(main)
