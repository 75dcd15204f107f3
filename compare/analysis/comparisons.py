"""What a study compares: at every size and every budget, all methods and baselines measured there."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from compare.analysis.bootstrap import Resampled, Row
from compare.analysis.ledger import Ledger, name_of
from compare.analysis.significance import Claims, find_claims
from compare.methods import METHODS


class Comparison(NamedTuple):
    """Methods and baselines that were measured on the same items with the same data and budget."""

    size: float
    """Share of the text, or labelled items."""
    factor: float
    """Times the budget of the study."""
    rows: dict[str, list[Row]]
    """By method, one per seed."""
    scores: dict[str, Resampled]
    claims: Claims
    """Those that hold, corrected for all comparisons on the axis."""


def advantage(axis: str, a: Resampled, b: Resampled) -> Resampled:
    """By how much `a` is better than `b`: fewer bits per byte, or a larger share of items right."""
    return b.minus(a) if axis == "text" else a.minus(b)


def is_baseline(method: str) -> bool:
    """Whether a method of a ledger is a baseline."""
    return METHODS[name_of(method)].family == "baseline"


def is_constant(axis: str, method: str) -> bool:
    """Whether a method has one score instead of a learning curve, since it trains on no share or labels."""
    return METHODS[name_of(method)].sizes[axis] not in ("share", "labels")


def split(scores: Mapping[str, Resampled]) -> tuple[dict[str, Resampled], dict[str, Resampled]]:
    """The methods that are no baselines, and the baselines."""
    methods = {method: score for method, score in scores.items() if not is_baseline(method)}
    return methods, {method: score for method, score in scores.items() if method not in methods}


def comparisons(ledger: Ledger, axis: str) -> list[Comparison]:
    """All comparisons on an axis: by size with the study's budget, then by budget at the largest size."""
    found = [*_by_size(ledger, axis), *_by_budget(ledger, axis)]
    claims = find_claims([split(scores) for *_, scores in found], partial(advantage, axis))
    return [Comparison(*each, held) for each, held in zip(found, claims, strict=True)]


Measured = tuple[float, float, dict[str, list[Row]], dict[str, Resampled]]


def _by_size(ledger: Ledger, axis: str) -> Iterator[Measured]:
    # A prompt with N items is compared at every size of N or more labelled items.
    methods = ledger.methods(axis)
    curves = {method: ledger.sizes(axis, method) for method in methods if not is_constant(axis, method)}
    constant = {method: ledger.sizes(axis, method)[0] for method in methods if method not in curves}
    sizes = sorted({size for each in curves.values() for size in each})
    for size in sizes or [0.0]:
        at = {method: size for method, each in curves.items() if size in each}
        at |= {method: own for method, own in constant.items() if axis == "text" or own <= size or not sizes}
        rows = {method: ledger.at(axis, method, own) for method, own in at.items()}
        yield size, 1.0, rows, {method: ledger.score(axis, method, own) for method, own in at.items()}


def _by_budget(ledger: Ledger, axis: str) -> Iterator[Measured]:
    # What needs no training is the same with every budget.
    untrained = [method for method in ledger.methods(axis) if is_constant(axis, method) or is_baseline(method)]
    for factor in sorted({factor for at, _, factor in ledger.budgets if at == axis}):
        trained = {method: rows for (at, method, by), rows in ledger.budgets.items() if (at, by) == (axis, factor)}
        rows = {method: ledger.largest(axis, method) for method in untrained} | trained
        scores = {method: ledger.score(axis, method) for method in untrained}
        scores |= {method: ledger.budget_score(axis, method, factor) for method in trained}
        size = max(row["size"] for each in trained.values() for row in each)
        yield size, factor, rows, scores
