"""Costs: the break-even of training against prompting, and the Pareto front of cost and score."""

import math
from collections.abc import Callable, Iterator, Sequence

from compare.analysis.ledger import Cost, Ledger, Sentence, cost_of, row_ids
from compare.methods import BASELINES, METHODS

PROMPTED = ("zero-shot", "one-shot", "few-shot", "neighbour-shots", "retrieval")
Group = tuple[str, float]
"""A method and its size."""


def break_even(trained: Cost, prompted: Cost) -> float | None:
    """Number of requests after which training costs no more seconds than prompting.

    None if a request to the trained method is not faster; 0 if training is cheaper from the first
    request. See Liu et al. 2022, arXiv:2205.05638.
    """
    each = [cost.request_seconds for cost in (trained, prompted)]
    if each[0] is None or each[1] is None or each[0] >= each[1]:
        return None
    saved = each[1] - each[0]
    return max(0.0, math.ceil((trained.fixed_seconds - prompted.fixed_seconds) / saved))


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats in both cost and score, cheapest first."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def base_rows(ledger: Ledger, method: str) -> list[dict]:
    """The rows of the method whose model `method` starts from; empty if there is none."""
    return ledger.groups.get(("text", METHODS[method].base_method, 1.0), [])


def choose_from_front(
    ledger: Ledger, groups: Sequence[Group], total: Callable[[Cost], float]
) -> tuple[list[Group], Group]:
    """The Pareto front on the task, cheapest first, and the recommended group on it.

    The recommended group is the cheapest one that is not significantly worse than the best.
    """
    scores = [ledger.score("task", *group) for group in groups]
    costs = [total(cost_of(ledger.at("task", *g), base_rows(ledger, g[0]))) for g in groups]
    front = pareto_front(costs, [score.value for score in scores])
    best = scores[front[-1]]
    choice = next(i for i in front if i == front[-1] or best.minus(scores[i]).estimate.low <= 0)
    return [groups[i] for i in front], groups[choice]


def break_even_sentences(ledger: Ledger, requests: int) -> Iterator[Sentence]:
    """Break-even of each trained method against the recommended prompted method."""
    methods = ledger.methods("task")
    groups = [(method, ledger.sizes("task", method)[-1]) for method in methods if method in PROMPTED]
    if not groups:
        return
    _, (prompted, _) = choose_from_front(ledger, groups, lambda cost: cost.seconds(requests))
    prompted_rows, prompted_score = ledger.largest("task", prompted), ledger.score("task", prompted)
    for method in methods:
        if method in PROMPTED or method in BASELINES:
            continue
        rows, base = ledger.largest("task", method), base_rows(ledger, method)
        gap = ledger.score("task", method).minus(prompted_score).estimate
        direction = "higher" if gap.value > 0 else "lower"
        compared = f"{method} has a {abs(gap.value):.3f} {direction} share of items right."
        if gap.low <= 0 <= gap.high:
            compared = "No significant difference in the share of items right was found."
        needed = break_even(cost_of(rows, base), cost_of(prompted_rows))
        if needed is None:
            when = f"never, because a request to {prompted} does not take longer"
        elif needed == 0:
            when = "from the first request"
        else:
            when = f"after {needed:,.0f} requests ({_break_even_by_seed(rows, base, prompted_rows)})"
        text = f"Break-even of {method} against {prompted} in seconds, training and search included: {when}. {compared}"
        yield Sentence(text, row_ids(rows, prompted_rows, base))


def _break_even_by_seed(rows: Sequence[dict], base: Sequence[dict], prompted_rows: Sequence[dict]) -> str:
    # The same seed on both sides, or all prompted rows where that seed was not run.
    values = []
    for row in rows:
        same_seed = [prompted for prompted in prompted_rows if prompted["seed"] == row["seed"]] or prompted_rows
        values.append(break_even(cost_of([row], base, rows), cost_of(same_seed, (), prompted_rows)))
    finite = [value for value in values if value is not None]
    if not finite:
        return "never with any single seed"
    never = f", never with {len(values) - len(finite)} of {len(values)}" if None in values else ""
    return f"seeds: {min(finite):,.0f} to {max(finite):,.0f}{never}"


def front_sentences(ledger: Ledger, requests: int, per_hour: float = 0.0, per_label: float = 0.0) -> Iterator[Sentence]:
    """The Pareto front and the recommended method for `requests` requests.

    In seconds, and also in money if there is a price.
    """
    groups = [(method, size) for axis, method, size in ledger.groups if axis == "task"]
    if not groups:
        return

    def describe(unit: str, total: Callable[[Cost], float], form: str) -> Sentence:
        def describe_group(group: Group) -> str:
            with_items = f" with {group[1]:g} items" if group[1] else ""
            cost = total(cost_of(ledger.at("task", *group), base_rows(ledger, group[0])))
            return f"{group[0]}{with_items} ({ledger.score('task', *group).value:.3f}; {form.format(cost)})"

        front, choice = choose_from_front(ledger, groups, total)
        return Sentence(
            f"Pareto front of score and cost for {requests:,} requests, {unit}: "
            f"{', '.join(map(describe_group, front))}. The cheapest of these that is not significantly worse "
            f"than the best is {describe_group(choice)}.",
            row_ids(*(ledger.at("task", *g) for g in front)),
        )

    yield describe("in seconds, training and search included", lambda cost: cost.seconds(requests), "{:,.0f} s")
    if per_hour or per_label:
        unit = f"in money at {per_hour:g} per hour and {per_label:g} per label, validation labels included"
        yield describe(unit, lambda cost: cost.money(requests, per_hour, per_label), "{:,.2f}")
