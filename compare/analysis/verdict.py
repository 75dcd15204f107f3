"""The verdict in sentences, each with the ledger rows behind it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compare.analysis.costs import break_even, front
from compare.analysis.curves import SURE, crossing, scaling
from compare.analysis.ledger import Ledger, cost_of
from compare.analysis.worlds import Drawn
from compare.arms import ARMS, FLOORS
from compare.leaks import RUN, SAME

UNITS = {"text": "bits per byte", "task": "of the items right"}
PROMPTED = ("zero-shot", "one-shot", "few-shot", "neighbour-shots", "retrieval")
HANDFUL = 16  # items that a prompt may show
MORE = 10  # times as much data, for what the curves say beyond what was measured
FITTED = 200  # worlds whose curves are fitted too


class Sentence(NamedTuple):
    """A statement, and the ids of the rows that it follows from."""

    text: str
    rows: list[str]


def verdict(ledger: Ledger, requests: int = 1000) -> list[Sentence]:
    """All that can be said, from the text and the task to what so many requests cost."""
    said = []
    for axis in ("text", "task"):
        if ledger.arms(axis):
            said += [*_winners(ledger, axis), *_floors(ledger, axis), *_crossings(ledger, axis)]
    return [*said, *_worth(ledger), *_pays(ledger), *_front(ledger, requests),
            *_forgetting(ledger), *_more(ledger), *_caveats(ledger)]  # fmt: skip


def better(axis: str, a: Drawn, b: Drawn) -> Drawn:
    """By how much `a` is better than `b`: fewer bits, or more items."""
    return b.minus(a) if axis == "text" else a.minus(b)


def _ids(*groups: Sequence[dict]) -> list[str]:
    return [row["id"] for rows in groups for row in rows]


def _at(axis: str, size: float) -> str:
    if axis == "task":
        return f"With {size:g} labelled items"
    return "With all of the text" if size == 1 else f"With {100 * size:.3g} % of the text"


def size_text(axis: str, size: float) -> str:
    """What an arm learnt from, in words."""
    if size == 0:
        return "nothing"
    return f"{size:,.0f} items" if axis == "task" else f"{100 * size:.3g} % of the text"


def is_level(ledger: Ledger, axis: str, arm: str) -> bool:
    """Whether an arm learns from no share of the text, or from a handful of items: no curve."""
    sizes = ledger.sizes(axis, arm)
    return len(sizes) == 1 and sizes[0] <= (HANDFUL if axis == "task" else 0)


def fields(ledger: Ledger, axis: str) -> list[tuple[float, dict[str, float]]]:
    """At every size that arms learn from: which compete there, and at which size of their own.

    A prompt that shows fewer items than there are competes at every size from there on.
    """
    arms = ledger.arms(axis)
    level = [arm for arm in arms if is_level(ledger, axis, arm)]
    sized = [arm for arm in arms if arm not in level]
    sizes = sorted({size for arm in sized for size in ledger.sizes(axis, arm)})
    found = []
    for size in sizes or [0.0]:
        at = {arm: size for arm in sized if size in ledger.sizes(axis, arm)}
        at |= {arm: ledger.sizes(axis, arm)[0] for arm in level
               if axis == "text" or ledger.sizes(axis, arm)[0] <= size or not sizes}  # fmt: skip
        found.append((size, at))
    return found


def _winners(ledger: Ledger, axis: str) -> list[Sentence]:
    # At every size: the best of what is no floor, and whether the next is worse.
    sign = 1 if axis == "text" else -1
    said = []
    for size, at in fields(ledger, axis):
        scores = {arm: ledger.score(axis, arm, own) for arm, own in at.items() if arm not in FLOORS}
        if len(scores) < 2:
            continue
        first, second = sorted(scores, key=lambda arm: sign * scores[arm].value)[:2]
        gap = better(axis, scores[first], scores[second]).estimate
        rows = _ids(ledger.at(axis, first, at[first]), ledger.at(axis, second, at[second]))
        if gap.low > 0:
            text = (f"{_at(axis, size)} {first} is best ({scores[first].estimate} {UNITS[axis]}), "
                    f"{gap} better than {second} ({scores[second].value:.3f}).")  # fmt: skip
        else:
            text = (f"{_at(axis, size)} no difference was measured between {first} "
                    f"({scores[first].estimate} {UNITS[axis]}) and {second} "
                    f"({scores[second].estimate}).")  # fmt: skip
        said.append(Sentence(text, rows))
    return said


def _floors(ledger: Ledger, axis: str) -> list[Sentence]:
    # At every size: the best floor there, and who is not above it.
    sign = 1 if axis == "text" else -1
    said = []
    for size, at in fields(ledger, axis):
        scores = {arm: ledger.score(axis, arm, own) for arm, own in at.items()}
        floors, arms = [a for a in at if a in FLOORS], [a for a in at if a not in FLOORS]
        if not floors or not arms:
            continue
        floor = min(floors, key=lambda arm: sign * scores[arm].value)
        losers = [arm for arm in arms if better(axis, scores[arm], scores[floor]).estimate.low <= 0]
        who = f"not above it: {', '.join(losers)}" if losers else "every arm beats it"
        if len(losers) == len(arms):
            who = "no arm beats it"
        text = (f"{_at(axis, size)} the floor is {floor} ({scores[floor].estimate} {UNITS[axis]}); "
                f"{who}.")  # fmt: skip
        said.append(Sentence(text, _ids(*(ledger.at(axis, arm, own) for arm, own in at.items()))))
    if axis == "text" and "zero-shot" in ledger.arms(axis) and said:
        before, compressed = ledger.score(axis, "zero-shot"), ledger.score(axis, floor)
        ratio = before.value / compressed.value
        far = "far from" if ratio > 1 else "near to"
        rows = _ids(ledger.largest(axis, "zero-shot"), ledger.largest(axis, floor))
        said.append(Sentence(
            f"Zero-shot over the floor is {ratio:.2f}: this text is {far} what the foundation has "
            "seen.", rows))  # fmt: skip
    return said


def _crossings(ledger: Ledger, axis: str) -> list[Sentence]:
    # Where from scratch meets each way of tuning.
    own = {"text": "scratch", "task": "scratch-supervised"}[axis]
    said = []
    if own not in ledger.arms(axis):
        return []
    sizes = ledger.sizes(axis, own)
    for arm in ("lora", "full"):
        if arm not in ledger.arms(axis) or ledger.sizes(axis, arm) != sizes or len(sizes) < 2:
            continue
        curves = [[ledger.score(axis, name, size) for size in sizes] for name in (own, arm)]
        rows = _ids(*(ledger.at(axis, name, size) for name in (own, arm) for size in sizes))
        found = crossing(sizes, *curves)
        if found is None:
            said.append(Sentence(
                f"Between {size_text(axis, sizes[0])} and {size_text(axis, sizes[-1])} the curves "
                f"of {own} and {arm} are not seen to cross.", rows))  # fmt: skip
        else:
            said.append(Sentence(
                f"{own} and {arm} cross at {size_text(axis, found.value)} "
                f"[{size_text(axis, found.low)}, {size_text(axis, found.high)}].",
                rows))  # fmt: skip
    return said


def _worth(ledger: Ledger) -> list[Sentence]:
    # How many labelled items a prompt is worth (Le Scao & Rush 2021, arXiv:2103.08493).
    said = []
    for prompt in ("zero-shot", "few-shot"):
        if prompt not in ledger.arms("task"):
            continue
        level = ledger.score("task", prompt)
        for arm in ("lora", "full", "scratch-supervised", "features"):
            if arm not in ledger.arms("task") or len(ledger.sizes("task", arm)) < 2:
                continue
            sizes = ledger.sizes("task", arm)
            curve = [ledger.score("task", arm, size) for size in sizes]
            rows = _ids(ledger.largest("task", prompt),
                        *(ledger.at("task", arm, size) for size in sizes))  # fmt: skip
            found = crossing(sizes, curve, level)
            if found:
                text = (f"{prompt} is worth {found.value:.0f} [{found.low:.0f}, {found.high:.0f}] "
                        f"labelled items of {arm}.")  # fmt: skip
            elif curve[0].minus(level).estimate.low > 0:
                text = f"{prompt} is worth fewer than {sizes[0]:g} labelled items of {arm}."
            elif level.minus(curve[-1]).estimate.low > 0:
                text = f"{prompt} is worth more than {sizes[-1]:g} labelled items of {arm}."
            else:
                text = f"How many items of {arm} {prompt} is worth cannot be told apart."
            said.append(Sentence(text, rows))
    return said


def _pays(ledger: Ledger) -> list[Sentence]:
    # After how many requests each trained arm is cheaper than the best prompted one.
    arms = ledger.arms("task")
    prompted = [arm for arm in arms if arm in PROMPTED]
    trained = [arm for arm in arms if arm not in PROMPTED and arm not in FLOORS]
    if not prompted:
        return []
    shown = max(prompted, key=lambda arm: ledger.score("task", arm).value)
    level, price = ledger.score("task", shown), cost_of(ledger.largest("task", shown))
    said = []
    for arm in trained:
        rows, first = ledger.largest("task", arm), needed(ledger, arm)
        gap = ledger.score("task", arm).minus(level).estimate
        how = f"gets {abs(gap.value):.3f} {'more' if gap.value > 0 else 'less'} of the items right"
        if gap.low <= 0 <= gap.high:
            how = "gets no measurably other share of the items right"
        found = break_even(cost_of(rows, first), price)
        if found is None:
            text = (f"A request to {shown} is not dearer than one to {arm}, which {how}: in "
                    "seconds its training never pays for itself.")  # fmt: skip
        else:
            each = [break_even(cost_of([row], first, rows), price) for row in rows]
            known = [x for x in each if x is not None] or [found]
            text = (
                f"{arm}, which {how}, has paid for its training and search after {found:,.0f} "
                f"requests to {shown} (seeds: {min(known):,.0f} to {max(known):,.0f})."
            )
        said.append(Sentence(text, _ids(rows, ledger.largest("task", shown), first)))
    return said


def _front(ledger: Ledger, requests: int) -> list[Sentence]:
    # Who is beaten by none in both, and the cheapest that is not measurably worse than the best.
    groups = [(arm, size) for axis, arm, size in ledger.groups if axis == "task"]
    if not groups:
        return []
    scores = [ledger.score("task", *group) for group in groups]
    costs = [cost_of(ledger.at("task", *group), needed(ledger, group[0])).seconds(requests)
             for group in groups]  # fmt: skip
    on = front(costs, [score.value for score in scores])
    best = scores[on[-1]]
    as_good = [i for i in range(len(groups)) if best.minus(scores[i]).estimate.low <= 0]
    choice = min(as_good, key=lambda i: costs[i])

    def told(i: int) -> str:
        arm, size = groups[i]
        with_items = f" with {size:g} items" if size else ""
        return f"{arm}{with_items} ({scores[i].value:.3f}; {costs[i]:,.0f} s)"

    rows = _ids(*(ledger.at("task", *groups[i]) for i in (*on, choice)))
    return [Sentence(
        f"For {requests:,} requests, in seconds with training and search, none is both cheaper and "
        f"better than {', '.join(map(told, on))}; the cheapest that is not measured to be worse "
        f"than the best is {told(choice)}.", rows)]  # fmt: skip


def needed(ledger: Ledger, arm: str) -> list[dict]:
    """The rows of what an arm goes on from."""
    first = ARMS[arm].needs
    return ledger.groups.get(("text", first, 1.0), [])


def general_bits(rows: Sequence[dict]) -> list[float]:
    """Bits per byte of general text, by seed; empty where it was not measured."""
    return [row["general_bits"] / row["general_bytes"] for row in rows if "general_bits" in row]


def _forgetting(ledger: Ledger) -> list[Sentence]:
    said = []
    for axis in ("text", "task"):
        if "zero-shot" not in ledger.arms(axis):
            continue
        before = general_bits(ledger.largest(axis, "zero-shot"))
        shown, rows = [], ledger.largest(axis, "zero-shot")
        for arm in ("full", "top-layers", "lora", "soft-prompt"):
            if before and arm in ledger.arms(axis):
                more = [value - before[0] for value in general_bits(ledger.largest(axis, arm))]
                shown.append(f"{arm} {np.mean(more):+.3f} ({min(more):+.3f} to {max(more):+.3f})")
                rows = [*rows, *ledger.largest(axis, arm)]
        if shown:
            said.append(Sentence(
                f"Learning the {axis} costs bits per byte on general text, by seeds: "
                f"{', '.join(shown)} (from {before[0]:.3f}).", _ids(rows)))  # fmt: skip
    return said


def _more(ledger: Ledger) -> list[Sentence]:
    # What more text would buy, as far as a fitted curve can be trusted beyond its data.
    said = []
    for arm in ("scratch", "lora", "full"):
        if arm not in ledger.arms("text"):
            continue
        sizes = ledger.sizes("text", arm)
        curve = [ledger.score("text", arm, size) for size in sizes]
        fitted = scaling(sizes, [point.value for point in curve])
        worlds = np.stack([point.worlds[:FITTED] for point in curve], 1)
        fits = [fit.at(MORE * sizes[-1]) for world in worlds if (fit := scaling(sizes, world))]
        if fitted and len(fits) >= SURE * FITTED:
            rows = _ids(*(ledger.at("text", arm, size) for size in sizes))
            low, high = np.quantile(fits, (0.025, 0.975))
            said.append(Sentence(
                f"Extrapolated, not measured: with {MORE} times the text and the same budget {arm} "
                f"would need {fitted.at(MORE * sizes[-1]):.3f} [{low:.3f}, {high:.3f}] bits per "
                f"byte, by a power law with a floor through {len(sizes)} sizes.",
                rows))  # fmt: skip
    return said


def _caveats(ledger: Ledger) -> list[Sentence]:
    said = []
    trained = [row for row in ledger.rows if "training_steps" in row]
    seeds = {len(g) for (_, _, _), g in ledger.groups.items() if g[0] in trained}
    if seeds and min(seeds) < 3:
        said.append(Sentence(
            f"This is {min(seeds)} seed(s): the intervals cover the choice of held-out documents "
            "and items, not of the training seed, so none of it is a result before 3 seeds.",
            _ids(trained)))  # fmt: skip
    if ledger.rows:
        most = max(ledger.rows, key=lambda row: row.get("overlap") or 0.0)
        left = max(row.get("left_out", 0) for row in ledger.rows)
        said.append(Sentence(
            f"Of the held-out texts' runs of {RUN} characters at most {most.get('overlap', 0):.1%} "
            f"stand in what an arm saw ({most['arm']}); {left} held-out texts of which {SAME:.0%} "
            "stood in one training document were left out before.", [most["id"]]))  # fmt: skip
    return said
