"""The verdict in sentences, each with the ledger rows behind it."""

from collections.abc import Sequence

import numpy as np

from compare.analysis.bootstrap import Estimate, Resampled
from compare.analysis.costs import fronts, what_pays
from compare.analysis.curves import SURE, crossing, scaling
from compare.analysis.ledger import Ledger, Sentence, ids
from compare.context import LEAST
from compare.leaks import RUN, SAME
from compare.methods import BASELINES, METHODS

OWN = {"text": "scratch", "task": "scratch-supervised"}
UNITS = {"text": "bits per byte", "task": "of the items right"}
MORE = 10  # times as much data, for what the curves say beyond what was measured
FITTED = 200  # resamples whose curves are fitted too


def verdict(ledger: Ledger, requests: int = 1000, per_hour: float = 0.0, per_label: float = 0.0) -> list[Sentence]:
    """All that can be said, from the text and the task to what so many requests cost."""
    said = []
    for axis in ("text", "task"):
        if ledger.methods(axis):
            said += [*_winners(ledger, axis), *_baselines(ledger, axis)]
            said += [*_distance(ledger)] if axis == "text" else []
            said += [*_crossings(ledger, axis), *_more(ledger, axis)]
    return [
        *said,
        *_worth(ledger),
        *what_pays(ledger, requests),
        *fronts(ledger, requests, per_hour, per_label),
        *_forgetting(ledger),
        *_caveats(ledger),
    ]


def better(axis: str, a: Resampled, b: Resampled) -> Resampled:
    """By how much `a` is better than `b`: fewer bits, or more items."""
    return b.minus(a) if axis == "text" else a.minus(b)


def _at(axis: str, size: float) -> str:
    if axis == "task":
        return f"With {size:g} labelled items"
    return "With all of the text" if size == 1 else f"With {100 * size:.3g} % of the text"


def size_text(axis: str, size: float) -> str:
    """What an method learnt from, in words."""
    if size == 0:
        return "nothing"
    return f"{size:,.0f} items" if axis == "task" else f"{100 * size:.3g} % of the text"


def is_level(axis: str, method: str) -> bool:
    """Whether an method learns from no share of the text, or shows a handful of items: no curve."""
    return METHODS[method].sizes[axis] not in ("share", "labels")


def fields(ledger: Ledger, axis: str) -> list[tuple[float, dict[str, float]]]:
    """At every size that methods learn from: which compete there, and at which size of their own.

    A prompt that shows fewer items than there are competes at every size from there on.
    """
    methods = ledger.methods(axis)
    level = [method for method in methods if is_level(axis, method)]
    sized = [method for method in methods if method not in level]
    sizes = sorted({size for method in sized for size in ledger.sizes(axis, method)})
    found = []
    for size in sizes or [0.0]:
        at = {method: size for method in sized if size in ledger.sizes(axis, method)}
        at |= {
            method: ledger.sizes(axis, method)[0]
            for method in level
            if axis == "text" or ledger.sizes(axis, method)[0] <= size or not sizes
        }
        found.append((size, at))
    return found


def _winners(ledger: Ledger, axis: str) -> list[Sentence]:
    # At every size: the best of what is no baseline, and which others are not measured to be worse.
    sign = 1 if axis == "text" else -1
    said = []
    for size, at in fields(ledger, axis):
        scores = {method: ledger.score(axis, method, own) for method, own in at.items() if method not in BASELINES}
        if len(scores) < 2:
            continue
        first, *others = sorted(scores, key=lambda method: sign * scores[method].value)
        gaps = {method: better(axis, scores[first], scores[method]).estimate for method in others}
        alike = [method for method in others if gaps[method].low <= 0]
        its = f"({scores[first].estimate} {UNITS[axis]})"
        if alike:
            shown = ", ".join(f"{method} ({scores[method].value:.3f})" for method in alike)
            text = f"no difference was measured between {first} {its} and {shown}."
        else:
            second = others[0]
            text = f"{first} is best {its}, {gaps[second]} better than {second} ({scores[second].value:.3f})."
        rows = ids(*(ledger.at(axis, method, at[method]) for method in (first, *others)))
        said.append(Sentence(f"{_at(axis, size)} {text}", rows))
    return said


def _baselines(ledger: Ledger, axis: str) -> list[Sentence]:
    # At every size: the best baseline there, and who is measured to be better or worse than it.
    sign = 1 if axis == "text" else -1
    said = []
    for size, at in fields(ledger, axis):
        scores = {method: ledger.score(axis, method, own) for method, own in at.items()}
        baselines, methods = [a for a in at if a in BASELINES], [a for a in at if a not in BASELINES]
        if not baselines or not methods:
            continue
        baseline = min(baselines, key=lambda method: sign * scores[method].value)
        gaps = {method: better(axis, scores[method], scores[baseline]).estimate for method in methods}
        lists = {
            "better": [method for method in methods if gaps[method].low > 0],
            "worse": [method for method in methods if gaps[method].high < 0],
            "no difference measured": [a for a in methods if gaps[a].low <= 0 <= gaps[a].high],
        }
        shown = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)
        text = f"{_at(axis, size)} the baseline is {baseline} ({scores[baseline].estimate} {UNITS[axis]}); {shown}."
        said.append(Sentence(text, ids(*(ledger.at(axis, method, own) for method, own in at.items()))))
    return said


def _distance(ledger: Ledger) -> list[Sentence]:
    # How far the text is from what the foundation has seen.
    baselines = [method for method in ledger.methods("text") if method in BASELINES]
    if "zero-shot" not in ledger.methods("text") or not baselines:
        return []
    baseline = min(baselines, key=lambda method: ledger.score("text", method).value)
    before, learnt = ledger.score("text", "zero-shot"), ledger.score("text", baseline)
    low, high = np.quantile(before.resamples / learnt.resamples, (0.025, 0.975))
    ratio = Estimate(before.value / learnt.value, float(low), float(high))
    rows = ledger.largest("text", "zero-shot")
    beside = ""
    if general := general_bits(rows):
        beside = f", and {before.value / general[0]:.2f} times its own on general text"
    return [
        Sentence(
            f"As it is, the foundation needs {ratio} times the bits that {baseline} needs after "
            f"{size_text('text', ledger.sizes('text', baseline)[-1])}{beside}.",
            ids(rows, ledger.largest("text", baseline)),
        )
    ]


def _crossings(ledger: Ledger, axis: str) -> list[Sentence]:
    # Where from scratch meets each way of tuning.
    own, said = OWN[axis], []
    if own not in ledger.methods(axis):
        return []
    sizes = ledger.sizes(axis, own)
    for method in ("lora", "full"):
        if method not in ledger.methods(axis) or ledger.sizes(axis, method) != sizes or len(sizes) < 2:
            continue
        a, b = ([ledger.score(axis, name, size) for size in sizes] for name in (own, method))
        rows = ids(*(ledger.at(axis, name, size) for name in (own, method) for size in sizes))
        gaps = [better(axis, x, y).estimate for x, y in zip(a, b, strict=True)]
        reach = f"from {size_text(axis, sizes[0])} to {size_text(axis, sizes[-1])}"
        if found := crossing(sizes, a, b):
            below = max(size for size in sizes if size <= found.value)
            above = min(size for size in sizes if size >= found.value)
            text = (
                f"{own} and {method} cross at {size_text(axis, found.value)} "
                f"[{size_text(axis, found.low)}, {size_text(axis, found.high)}], if their "
                f"curves are straight (by the logarithm of the size) between "
                f"{size_text(axis, below)} and {size_text(axis, above)}."
            )
        elif all(gap.low > 0 for gap in gaps) or all(gap.high < 0 for gap in gaps):
            best, other = (own, method) if gaps[0].low > 0 else (method, own)
            text = f"{best} is better than {other} at every size {reach}."
        else:
            text = f"Whether and where {own} and {method} cross {reach} cannot be told."
        said.append(Sentence(text, rows))
    return said


def _more(ledger: Ledger, axis: str) -> list[Sentence]:
    # What more text or labels would buy, as far as a fitted curve can be trusted beyond its data.
    said, bound, behind = [], [], []
    for method in (OWN[axis], "lora", "full", "features"):
        if method not in ledger.methods(axis):
            continue
        sizes = ledger.sizes(axis, method)
        rows = ids(*(ledger.at(axis, method, size) for size in sizes))
        times = np.mean([row.get("epochs", 1.0) for row in ledger.largest(axis, method)])
        if axis == "text" and times < 1:
            bound.append(f"{method} {times:.2f}")
            behind += rows
            continue
        curve = [ledger.score(axis, method, size) for size in sizes]
        lost = [point.value if axis == "text" else 1 - point.value for point in curve]
        fitted = scaling(sizes, lost)
        resamples = np.stack([point.resamples[:FITTED] for point in curve], 1)
        resamples = resamples if axis == "text" else 1 - resamples
        fits = [fit.at(MORE * sizes[-1]) for resample in resamples if (fit := scaling(sizes, resample))]
        if fitted and len(fits) >= SURE * FITTED:
            low, high = np.quantile(fits, (0.025, 0.975))
            found = Estimate(fitted.at(MORE * sizes[-1]), float(low), float(high))
            if axis == "task":
                found = Estimate(1 - found.value, 1 - found.high, 1 - found.low)
            what = {"text": "text", "task": "labels"}[axis]
            said.append(
                Sentence(
                    f"Extrapolated, not measured: with {MORE} times the {what} and the same budget "
                    f"{method} would have {found} {UNITS[axis]}, by a power law with a baseline through "
                    f"{len(sizes)} sizes, if its form holds.",
                    rows,
                )
            )
    if bound:
        said.append(
            Sentence(
                "More text would buy nothing at this budget where not all of it was read; times that "
                f"it was: {', '.join(bound)}.",
                behind,
            )
        )
    return said


def _worth(ledger: Ledger) -> list[Sentence]:
    # How many labelled items a prompt is worth (Le Scao & Rush 2021, arXiv:2103.08493).
    said = []
    for prompt in ("zero-shot", "few-shot"):
        if prompt not in ledger.methods("task"):
            continue
        level = ledger.score("task", prompt)
        for method in ("lora", "full", "scratch-supervised", "features"):
            if method not in ledger.methods("task") or len(ledger.sizes("task", method)) < 2:
                continue
            sizes = ledger.sizes("task", method)
            curve = [ledger.score("task", method, size) for size in sizes]
            gaps = {s: point.minus(level).estimate for s, point in zip(sizes, curve, strict=True)}
            least = [f"more than {s:g}" for s in sizes if gaps[s].high < 0][-1:]
            most = [f"fewer than {s:g}" for s in sizes if gaps[s].low > 0][:1]
            bounds = " and ".join([*least, *most])
            if found := crossing(sizes, curve, level):
                bounds = f"{found.value:.0f} [{found.low:.0f}, {found.high:.0f}]"
            text = f"{prompt} is worth {bounds} labelled items of {method}."
            if not bounds:
                text = f"How many labelled items of {method} {prompt} is worth cannot be told."
            rows = [ledger.at("task", method, size) for size in sizes]
            said.append(Sentence(text, ids(ledger.largest("task", prompt), *rows)))
    return said


def general_bits(rows: Sequence[dict]) -> list[float]:
    """Bits per byte of general text, by seed; empty where it was not measured."""
    return [row["general_bits"] / row["general_bytes"] for row in rows if "general_bits" in row]


def _forgetting(ledger: Ledger) -> list[Sentence]:
    said = []
    for axis in ("text", "task"):
        if "zero-shot" not in ledger.methods(axis):
            continue
        before = general_bits(ledger.largest(axis, "zero-shot"))
        shown, rows = [], ledger.largest(axis, "zero-shot")
        for method in ("full", "top-layers", "lora", "soft-prompt"):
            if before and method in ledger.methods(axis):
                more = [value - before[0] for value in general_bits(ledger.largest(axis, method))]
                shown.append(f"{method} {np.mean(more):+.3f} ({min(more):+.3f} to {max(more):+.3f})")
                rows = [*rows, *ledger.largest(axis, method)]
        if shown:
            said.append(
                Sentence(
                    f"Learning the {axis} costs bits per byte on general text, by seeds: "
                    f"{', '.join(shown)} (from {before[0]:.3f}).",
                    ids(rows),
                )
            )
    return said


def _caveats(ledger: Ledger) -> list[Sentence]:
    said = []
    trained = [rows for rows in ledger.groups.values() if "training_steps" in rows[0]]
    seeds = min(map(len, trained), default=3)
    if seeds < 3:
        left = "one seed, which the intervals leave out"
        few = "two seeds, few for an interval"
        said.append(
            Sentence(
                f"Trained with {few if seeds == 2 else left}: none of this is a result before 3 seeds.", ids(*trained)
            )
        )
    vain = [row for row in ledger.rows if row.get("kept_step") == 0]
    if vain:
        named = {f"{row['arm']} with {size_text(row['axis'], row['size'])}": None for row in vain}
        said.append(
            Sentence(
                "Validation kept the start and nothing of the training, with some seed or other, of "
                f"{', '.join(named)}.",
                ids(vain),
            )
        )
    chose = [row for row in ledger.rows if row.get("labels", 0) > row["size"]]
    if chose:
        said.append(
            Sentence(
                "Sizes are the labelled items that are learnt from; whatever had a setting or a "
                f"checkpoint to choose chose by as many others, {LEAST} at least, as far as there "
                "are.",
                ids(chose),
            )
        )
    if ledger.rows:
        most = max(ledger.rows, key=lambda row: row.get("overlap") or 0.0)
        left = max(row.get("left_out", 0) for row in ledger.rows)
        said.append(
            Sentence(
                f"Of the held-out texts' runs of {RUN} characters at most {most.get('overlap', 0):.2%} "
                f"stand in what an method saw; {left} held-out texts of which {SAME:.0%} stood in one "
                "training document were left out before.",
                [most["id"]],
            )
        )
    return said
