"""Predict whether training from scratch beats tuning on a corpus, from what two minutes measure.

    python -m compare.predict [benchmarks/studies/atlas]

Fits a ridge regression to the atlas (compare/atlas.py) and prints how well it predicts domains that it has
not seen, beside rules that need no model. `compare.run --corpus X --predict` uses it (compare/prediction.py).
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli.console import show
from cli.errors import run_command
from cli.recipes import Parser
from compare.domains import ATLAS, SHORT_SECONDS, Domain, Features, Outcome, View, read_atlas

LEVEL = 0.8  # of the intervals
PENALTIES = np.logspace(-2, 3, 11)
APART = 1.5  # times as much text or training is another kind of outcome
POINTS = 400  # of a path along which a tie is sought

INPUTS = ("log10 bytes", "log10 seconds", "growth", "growth x ratio", "bend", *Features._fields[:-1])
Kind = tuple[int, bool]
"""Less (-1), as much (0) or more text (1) than the features were measured with, and whether training is longer."""


class Prediction(NamedTuple):
    """What is predicted at one size and budget."""

    advantage: float
    low: float
    high: float
    chance: float
    """That training from scratch is better: the share of the atlas's errors, of either sign, with which it would be."""


def pairs(domain: Domain) -> Iterator[tuple[View, Outcome]]:
    """What was known of a domain, and what is to be predicted from it."""
    return ((view, outcome) for view in domain.views for outcome in domain.outcomes)


def inputs(view: View, size: float, seconds: float) -> list[float]:
    """What the model sees; INPUTS has the names. Text that training from scratch does not read counts for nothing."""
    *others, pace = view.features
    read = log10(min(size, pace * seconds))
    growth = read - log10(min(view.bytes, pace * SHORT_SECONDS))
    return [read, log10(seconds), growth, growth * view.features.ratio, (read - 6) ** 2, *others]


class Model:
    """Ridge regression of how far the outcome is from that of the short runs; every domain has the same weight."""

    def __init__(self, domains: Sequence[Domain], penalty: float | None = None):
        """`penalty`: chosen by leaving out one domain at a time, unless it is given."""
        x = np.array([inputs(v, o.bytes, o.seconds) for d in domains for v, o in pairs(d)])
        y = np.array([o.advantage - v.features.early for d in domains for v, o in pairs(d)])
        weights = np.array([1 / (len(d.views) * len(d.outcomes)) for d in domains for _ in pairs(d)])
        if penalty is None:
            penalty = min(PENALTIES, key=lambda each: squared_error(domains, each))
        self.penalty = penalty
        self.mean = np.average(x, axis=0, weights=weights)
        self.scale = np.sqrt(np.average((x - self.mean) ** 2, axis=0, weights=weights)) + 1e-9
        z = (x - self.mean) / self.scale
        self.intercept = float(np.average(y, weights=weights))
        gram = (z * weights[:, None]).T @ z + penalty * len(domains) / 100 * np.eye(z.shape[1])
        self.slopes = np.linalg.solve(gram, (z * weights[:, None]).T @ (y - self.intercept))

    def __call__(self, view: View, size: float, seconds: float) -> float:
        """The predicted advantage of training from scratch."""
        z = (np.array(inputs(view, size, seconds)) - self.mean) / self.scale
        return float(view.features.early + self.intercept + z @ self.slopes)


def squared_error(domains: Sequence[Domain], penalty: float) -> float:
    """The mean squared error on domains that are left out one at a time."""
    return statistics.mean(error**2 for errors in left_out_errors(domains, penalty) for error in errors)


def left_out_errors(domains: Sequence[Domain], penalty: float | None = None) -> list[list[float]]:
    """By domain and pair, outcome minus prediction of a model that has not seen the domain."""
    found = []
    for number, left_out in enumerate(domains):
        model = Model([*domains[:number], *domains[number + 1 :]], penalty)
        found.append([o.advantage - model(v, o.bytes, o.seconds) for v, o in pairs(left_out)])
    return found


class Predictor:
    """The model of the atlas, with intervals from its errors on domains that it has not seen."""

    def __init__(self, domains: Sequence[Domain]):
        self.domains, self.model = domains, Model(domains)
        self.seconds = statistics.median(domain.decisive.seconds for domain in domains)
        self.left_out = left_out_errors(domains)
        self.errors: dict[Kind, list[list[float]]] = {}  # by domain
        for domain, errors in zip(domains, self.left_out, strict=True):
            own: dict[Kind, list[float]] = {}
            for (view, outcome), error in zip(pairs(domain), errors, strict=True):
                own.setdefault(self.kind(view, outcome.bytes, outcome.seconds), []).append(error)
            for kind, each in own.items():
                self.errors.setdefault(kind, []).append(each)

    def kind(self, view: View, size: float, seconds: float) -> Kind:
        """Predictions of one kind are about equally hard: they have errors of their own."""
        more = size / view.bytes
        return int(more > APART) - int(more < 1 / APART), bool(seconds > APART * self.seconds)

    def known_errors(self, kind: Kind) -> tuple[np.ndarray, np.ndarray, int]:
        """Errors on unseen domains, their weights (every domain has the same), and the number of domains."""
        by_domain = self.errors.get(kind) or self.left_out
        errors = np.array([error for each in by_domain for error in each])
        weights = np.array([1 / len(each) for each in by_domain for _ in each]) / len(by_domain)
        return errors, weights, len(by_domain)

    def half_width(self, kind: Kind) -> float:
        """Half of an interval of LEVEL: a quantile of the absolute errors.

        As a new domain is one more than the domains whose errors are known, the quantile is that of a
        conformal prediction (Vovk et al. 2005).
        """
        errors, weights, count = self.known_errors(kind)
        order = np.argsort(abs(errors))
        level = min(1.0, LEVEL * (count + 1) / count)
        at = min(int(np.searchsorted(np.cumsum(weights[order]), level - 1e-9)), len(order) - 1)
        return float(abs(errors[order][at]))

    def predict(self, view: View, size: float, seconds: float) -> Prediction:
        """At one size and budget, with the interval of LEVEL."""
        value, kind = self.model(view, size, seconds), self.kind(view, size, seconds)
        errors, weights, count = self.known_errors(kind)
        half = self.half_width(kind)
        share = statistics.mean(float(weights[value + sign * errors > 0].sum()) for sign in (1, -1))
        return Prediction(value, value - half, value + half, (count * share + 0.5) / (count + 1))

    def tie(self, view: View, path: Sequence[tuple[float, float]]) -> tuple[int | None, int | None, int | None]:
        """Where on a path of (size, seconds) training from scratch becomes better, and the ends of the interval.

        Indices of `path`: the expected one, the earliest, the latest; None: not on the path.
        """
        found = [self.predict(view, size, seconds) for size, seconds in path]

        def first(values: list[float]) -> int | None:
            return next((at for at, value in enumerate(values) if value >= 0), None)

        return first([f.advantage for f in found]), first([f.high for f in found]), first([f.low for f in found])

    def sizes(self, view: View, seconds: float) -> list[tuple[float, float]]:
        """A path from the smallest size of the atlas to what training from scratch reads in `seconds`."""
        least, most = min(o.bytes for d in self.domains for o in d.outcomes), view.features.pace * seconds
        return [(float(size), seconds) for size in np.geomspace(least, max(least, most), POINTS)]

    def nearest(self, view: View, count: int = 3) -> list[Domain]:
        """The domains of the atlas that resemble a corpus most, by its features and its size."""

        def place(at: View) -> np.ndarray:
            return (np.array(inputs(at, at.bytes, self.seconds)) - self.model.mean) / self.model.scale

        def far(domain: Domain) -> float:
            return min(float(np.linalg.norm(place(each) - place(view))) for each in domain.views)

        return sorted(self.domains, key=far)[:count]

    def unlike(self, view: View) -> list[str]:
        """The features of a corpus that lie outside those of all domains."""
        known = np.array([each.features for domain in self.domains for each in domain.views])
        outside = (np.array(view.features) < known.min(0)) | (np.array(view.features) > known.max(0))
        return [name for name, is_outside in zip(Features._fields, outside, strict=True) if is_outside]


RULES: dict[str, Callable[[View, Outcome], bool]] = {
    "always tune": lambda view, at: False,
    "from scratch if zero-shot is worse than xz": lambda view, at: at.ratio > 0,
    "the same, and 1 MB of text or more": lambda view, at: at.ratio > 0 and at.bytes >= 1e6,
    "the same, and 10 MB of text or more": lambda view, at: at.ratio > 0 and at.bytes >= 10e6,
    "whichever leads after the short runs": lambda view, at: view.features.early > 0,
}
"""Whether to train from scratch, without a model. Two say what introductory guides do: if large and unusual."""


class Verdict(NamedTuple):
    """How often a rule or the predictor names the winner."""

    name: str
    decisive: int
    """Domains, with all of the text and the study's own budget."""
    longest: int
    """Domains, with all of the text and the largest budget."""
    pairs: int
    """Sizes and budgets of all domains, from what is known at every size."""


def judge(domains: Sequence[Domain]) -> list[Verdict]:
    """How often every rule and, as the last, the predictor name the winner."""
    calls: dict[str, list[list[bool]]] = {
        name: [[rule(v, o) == (o.advantage > 0) for v, o in pairs(d)] for d in domains] for name, rule in RULES.items()
    }
    calls["the predictor, which has not seen the domain"] = [
        [(o.advantage - error > 0) == (o.advantage > 0) for (_, o), error in zip(pairs(d), each, strict=True)]
        for d, each in zip(domains, left_out_errors(domains), strict=True)
    ]

    def at(domain: Domain, right: list[bool], outcome: Outcome) -> bool:
        return right[list(pairs(domain)).index((domain.views[-1], outcome))]

    found = []
    for name, by_domain in calls.items():
        both = list(zip(domains, by_domain, strict=True))
        decisive, longest = (
            sum(at(domain, right, getattr(domain, which)) for domain, right in both)
            for which in ("decisive", "longest")
        )
        found.append(Verdict(name, decisive, longest, sum(map(sum, by_domain))))
    return found


def side(advantage: float) -> str:
    """Who has fewer bits per byte."""
    return "from scratch" if advantage > 0 else "tuning"


def megabytes(size: float) -> str:
    """Such as "0.31 MB"."""
    return f"{size / 1e6:.2g} MB"


def measured_tie(domain: Domain) -> float | None:
    """Bytes at which the two curves of the study's own budget meet, between two sizes; None if they do not."""
    seconds = domain.decisive.seconds
    curve = sorted((log10(o.bytes), o.advantage) for o in domain.outcomes if o.seconds == seconds)
    for (before, low), (after, high) in pairwise(curve):
        if low < 0 <= high:
            return float(10 ** (before + (after - before) * -low / (high - low)))
    return None


def tables(domains: Sequence[Domain]) -> list[str]:
    """The lines of two Markdown tables, every domain and every rule, and of what the predictor's errors are."""
    found = [
        "| domain | text | distance | fewer bits per byte | tie | predicted by a model that has not seen the domain |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    held: list[bool] = []
    for number, domain in enumerate(domains):
        decisive, view = domain.decisive, domain.views[-1]
        others = Predictor([*domains[:number], *domains[number + 1 :]])
        for known, outcome in pairs(domain):
            each = others.predict(known, outcome.bytes, outcome.seconds)
            held.append(each.low <= outcome.advantage <= each.high)
        predicted = others.predict(view, decisive.bytes, decisive.seconds)
        path = others.sizes(domain.views[0], decisive.seconds)
        at = others.tie(domain.views[0], path)[0]
        # A path that begins above the tie has none.
        ties = [megabytes(size) if size else "none" for size in (measured_tie(domain), at and path[at][0])]
        right = "right" if predicted.advantage * decisive.advantage > 0 else "wrong"
        winner = f"{side(decisive.advantage)}, {1 - 2 ** -abs(decisive.advantage):.0%}"
        found.append(
            f"| {domain.name} | {megabytes(decisive.bytes)} | {2**domain.features.ratio:.2f} | "
            f"{winner}{', not significant' if decisive.is_tie else ''} | {ties[0]}, predicted {ties[1]} | "
            f"{right}: {side(predicted.advantage)}, {describe_advantage(predicted)} |"
        )
    budgets = [
        statistics.median(each.seconds for each in group)
        for group in ([d.decisive for d in domains], [d.longest for d in domains])
    ]
    heads = [f"domains right, {seconds:.0f} s" for seconds in budgets]
    found += ["", f"| rule | {heads[0]} | {heads[1]} | all sizes and budgets right |", "| --- | ---: | ---: | ---: |"]
    count = sum(len(list(pairs(domain))) for domain in domains)
    for name, decisive_right, longest_right, right_in_all in judge(domains):
        found.append(
            f"| {name} | {decisive_right} of {len(domains)} | {longest_right} of {len(domains)} | "
            f"{right_in_all} of {count}, {right_in_all / count:.0%} |"
        )
    errors = [abs(error) for each in left_out_errors(domains) for error in each]
    found += [
        "",
        f"On domains that it has not seen, the predictor is wrong by {2 ** statistics.median(errors) - 1:.0%} of the "
        f"bits per byte (median), and {np.mean(held):.0%} of its intervals of {LEVEL:.0%} hold the outcome.",
    ]
    return found


def describe_advantage(found: Prediction) -> str:
    """Such as "12 % fewer bits per byte (between 3 % more and 25 % fewer)"."""
    sign = 1 if found.advantage > 0 else -1
    value, *ends = (1 - 2 ** (-sign * each) for each in (found.advantage, found.low, found.high))
    low, high = (f"{abs(end):.0%} {'fewer' if end >= 0 else 'more'}" for end in sorted(ends))
    return f"{value:.0%} fewer bits per byte (between {low} and {high})"


def main() -> None:
    """Entry point of `python -m compare.predict`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ATLAS)
    domains = read_atlas(parser.parse_args().folder)
    show("\n".join(tables(domains)))
    slopes = dict(zip(INPUTS, map(float, Predictor(domains).model.slopes), strict=True))
    show("\nSlopes per standard deviation: " + ", ".join(f"{name} {slope:+.3f}" for name, slope in slopes.items()))


if __name__ == "__main__":
    run_command(main)
