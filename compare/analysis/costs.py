"""What pays: after how many requests training is cheaper than prompting, and the front."""

import math
from collections.abc import Callable, Sequence

from compare.analysis.ledger import Cost, Ledger, Sentence, cost_of, ids
from compare.methods import BASELINES, METHODS

PROMPTED = ("zero-shot", "one-shot", "few-shot", "neighbour-shots", "retrieval")
Group = tuple[str, float]


def break_even(trained: Cost, prompted: Cost) -> float | None:
    """After how many requests training has paid for itself (Liu et al. 2022, arXiv:2205.05638).

    None if its requests are not the cheaper ones; 0 if it is cheaper from the start.
    """
    each = [cost.request_seconds for cost in (trained, prompted)]
    if each[0] is None or each[1] is None or each[0] >= each[1]:
        return None
    saved = each[1] - each[0]
    return max(0.0, math.ceil((trained.once_seconds - prompted.once_seconds) / saved))


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Which (by number) are beaten by none in both cost and score (Pareto), the cheapest first."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not found or scores[i] > scores[found[-1]]:
            found.append(i)
    return found


def needed(ledger: Ledger, method: str) -> list[dict]:
    """The rows of what an method goes on from."""
    return ledger.groups.get(("text", METHODS[method].needs, 1.0), [])


def on_front(ledger: Ledger, groups: Sequence[Group], total: Callable[[Cost], float]) -> tuple[list[Group], Group]:
    """The front of methods on the task, the cheapest first, and what to choose from it.

    That is the cheapest that is not measured to be worse than the best.
    """
    scores = [ledger.score("task", *group) for group in groups]
    costs = [total(cost_of(ledger.at("task", *g), needed(ledger, g[0]))) for g in groups]
    on = front(costs, [score.value for score in scores])
    best = scores[on[-1]]
    choice = next(i for i in on if i == on[-1] or best.minus(scores[i]).estimate.low <= 0)
    return [groups[i] for i in on], groups[choice]


def what_pays(ledger: Ledger, requests: int) -> list[Sentence]:
    """After how many requests each trained method is cheaper than the prompted one to choose."""
    methods = ledger.methods("task")
    prompted = [(method, ledger.sizes("task", method)[-1]) for method in methods if method in PROMPTED]
    if not prompted:
        return []
    _, (shown, _) = on_front(ledger, prompted, lambda cost: cost.seconds(requests))
    prompts, level = ledger.largest("task", shown), ledger.score("task", shown)
    said = []
    for method in methods:
        if method in PROMPTED or method in BASELINES:
            continue
        rows, first = ledger.largest("task", method), needed(ledger, method)
        gap = ledger.score("task", method).minus(level).estimate
        how = f"gets {abs(gap.value):.3f} {'more' if gap.value > 0 else 'less'} of the items right"
        if gap.low <= 0 <= gap.high:
            how = "gets no measurably different share of the items right"
        found = break_even(cost_of(rows, first), cost_of(prompts))
        if found is None:
            text = (
                f"A request to {shown} is not dearer than one to {method}, which {how}: in "
                "seconds its training never pays for itself."
            )
        elif found == 0:
            text = f"{method}, which {how}, takes fewer seconds than {shown} from the first request."
        else:
            text = (
                f"{method}, which {how}, has paid for its training and search after {found:,.0f} "
                f"requests to {shown} ({_by_seeds(rows, first, prompts)})."
            )
        said.append(Sentence(text, ids(rows, prompts, first)))
    return said


def _by_seeds(rows: Sequence[dict], first: Sequence[dict], prompts: Sequence[dict]) -> str:
    # Each seed of the one against the same of the other, which may be the only one.
    each = []
    for row in rows:
        same = [prompt for prompt in prompts if prompt["seed"] == row["seed"]] or prompts
        each.append(break_even(cost_of([row], first, rows), cost_of(same, (), prompts)))
    known = [value for value in each if value is not None]
    if not known:
        return "never with any single seed"
    never = f", never with {len(each) - len(known)} of {len(each)}" if None in each else ""
    return f"seeds: {min(known):,.0f} to {max(known):,.0f}{never}"


def fronts(ledger: Ledger, requests: int, per_hour: float = 0.0, per_label: float = 0.0) -> list[Sentence]:
    """Who is beaten by none in both cost and score for so many requests, and what to choose.

    In seconds, and if there are prices in money.
    """
    groups = [(method, size) for axis, method, size in ledger.groups if axis == "task"]
    if not groups:
        return []

    def tell(unit: str, total: Callable[[Cost], float], show: Callable[[float], str]) -> Sentence:
        def told(group: Group) -> str:
            with_items = f" with {group[1]:g} items" if group[1] else ""
            cost = total(cost_of(ledger.at("task", *group), needed(ledger, group[0])))
            score = ledger.score("task", *group).value
            return f"{group[0]}{with_items} ({score:.3f}; {show(cost)})"

        on, choice = on_front(ledger, groups, total)
        return Sentence(
            f"For {requests:,} requests, in {unit}, none is both cheaper and better than "
            f"{', '.join(map(told, on))}; of these the cheapest that is not measured to be worse "
            f"than the best is {told(choice)}.",
            ids(*(ledger.at("task", *g) for g in on)),
        )

    said = [
        tell("seconds with training and search", lambda cost: cost.seconds(requests), lambda total: f"{total:,.0f} s")
    ]
    if per_hour or per_label:
        unit = f"money at {per_hour:g} an hour and {per_label:g} a label, those that choose too"
        said.append(tell(unit, lambda cost: cost.money(requests, per_hour, per_label), lambda total: f"{total:,.2f}"))
    return said
