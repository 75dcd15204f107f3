"""Costs: the break-even of training against prompting, and the Pareto front of cost and score."""

import math
from collections.abc import Callable, Iterator, Sequence

from compare.analysis.ledger import Cost, Ledger, Sentence, name_of, row_ids
from compare.methods import METHODS

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


def choose_from_front(
    ledger: Ledger, groups: Sequence[Group], total: Callable[[Cost], float], margin: float
) -> tuple[list[Group], Group]:
    """The Pareto front on the task, cheapest first, and the recommended group on it.

    The recommended group is the cheapest one that is shown to be worse than the best by at most
    `margin`: the whole interval of the difference is below it (non-inferiority).
    """
    scores = [ledger.score("task", *group) for group in groups]
    costs = [total(ledger.cost("task", *g)) for g in groups]
    front = pareto_front(costs, [score.value for score in scores])
    best = scores[front[-1]]
    choice = next(i for i in front if i == front[-1] or best.minus(scores[i]).estimate.high <= margin)
    return [groups[i] for i in front], groups[choice]


def break_even_sentences(ledger: Ledger, requests: int, margin: float) -> Iterator[Sentence]:
    """Break-even of each trained method against the recommended prompted method."""
    methods = ledger.methods("task")
    groups = [
        (method, ledger.sizes("task", method)[-1])
        for method in methods
        if METHODS[name_of(method)].family == "prompted"
    ]
    if not groups:
        return
    _, (prompted, _) = choose_from_front(ledger, groups, lambda cost: cost.seconds(requests), margin)
    prompted_rows, prompted_score = ledger.largest("task", prompted), ledger.score("task", prompted)
    for method in methods:
        if METHODS[name_of(method)].family in ("prompted", "baseline"):
            continue
        rows, base = ledger.largest("task", method), ledger.base_of(method)
        gap = ledger.score("task", method).minus(prompted_score).estimate
        direction = "higher" if gap.value > 0 else "lower"
        compared = f"{method} has a {abs(gap.value):.3f} {direction} share of items right."
        if gap.low <= 0 <= gap.high:
            compared = "No significant difference in the share of items right was found."
        costs = [ledger.cost("task", name, ledger.sizes("task", name)[-1]) for name in (method, prompted)]
        needed = break_even(*costs)
        if needed is None:
            when = f"never, because a request to {prompted} does not take longer"
        elif needed == 0:
            when = "from the first request"
        else:
            when = f"after {needed:,.0f} requests"
        text = f"Break-even of {method} against {prompted} in seconds, training and search included: {when}. {compared}"
        yield Sentence(text, row_ids(rows, prompted_rows, ledger.largest("text", base) if base else ()))


def front_sentences(
    ledger: Ledger, requests: int, margin: float, per_hour: float = 0.0, per_label: float = 0.0
) -> Iterator[Sentence]:
    """The Pareto front and the recommended method for `requests` requests.

    In seconds, and also in money if there is a price.
    """
    groups = [(method, size) for axis, method, size in ledger.groups if axis == "task"]
    if not groups:
        return

    def describe(unit: str, total: Callable[[Cost], float], form: str) -> Sentence:
        def describe_group(group: Group) -> str:
            with_items = f" with {group[1]:g} items" if group[1] else ""
            cost = total(ledger.cost("task", *group))
            return f"{group[0]}{with_items} ({ledger.score('task', *group).value:.3f}; {form.format(cost)})"

        front, choice = choose_from_front(ledger, groups, total, margin)
        return Sentence(
            f"Pareto front of score and cost for {requests:,} requests, {unit}: "
            f"{', '.join(map(describe_group, front))}. The cheapest of these that is at most {margin:.0%} of "
            f"the items worse than the best, by its interval, is {describe_group(choice)}.",
            row_ids(*(ledger.at("task", *g) for g in front)),
        )

    yield describe("in seconds, training and search included", lambda cost: cost.seconds(requests), "{:,.0f} s")
    if per_hour or per_label:
        unit = f"in money at {per_hour:g} per hour and {per_label:g} per label, validation labels included"
        yield describe(unit, lambda cost: cost.money(requests, per_hour, per_label), "{:,.2f}")
