"""The answer of a study in a few plain sentences, and a table to choose from."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from compare.analysis.bootstrap import Resampled
from compare.analysis.comparisons import advantage, comparisons, is_baseline, split
from compare.analysis.curves import find_crossing
from compare.analysis.ledger import Cost, Ledger, foundation_of, name_of
from compare.analysis.verdict import FROM_SCRATCH, describe_data, describe_size, distances
from configs.study_recipe import StudyRecipe

MOST_LINES, MOST_NAMED = 12, 3
CHEAPER = 0.9  # of the seconds of every better method, to be worth a lower quality
WORDS = {
    "scratch": "train a model from scratch",
    "scratch-supervised": "train a model from scratch on the text, then on the labels",
    "random-supervised": "train a small model from random weights on the labels",
    "full": "fine-tune the whole foundation model",
    "lora": "fine-tune the foundation model with LoRA",
    "lora-neighbours": "fine-tune with LoRA and show the nearest items in the prompt",
    "top-layers": "fine-tune the top layers of the foundation model",
    "soft-prompt": "train a soft prompt for the foundation model",
    "features": "put a linear classifier on the frozen foundation model's features",
    "text-then-shots": "fine-tune with LoRA on the text and show a few items in the prompt",
    "zero-shot": "use the foundation model as it is",
    "one-shot": "prompt the foundation model with one example",
    "few-shot": "prompt the foundation model with a few examples",
    "neighbour-shots": "prompt the foundation model with the nearest labelled items",
    "retrieval": "prompt the foundation model with passages of the text",
    "tfidf": "use logistic regression on character n-grams (tf-idf)",
    "majority": "answer with the most frequent label",
}
THINGS = {"text": "text", "task": "labels"}


class Option(NamedTuple):
    """A method at its largest size, in the table to choose from."""

    method: str
    quality: str
    build: str
    requests: str
    """Cost of 1,000 requests."""
    data: str
    choose_when: str


class Choice(NamedTuple):
    """What a study recommends on an axis."""

    method: str
    best: str
    """The method with the best score."""
    is_sure: bool
    """Whether `method` is significantly better than all others that could be chosen."""
    within: list[str]
    """Methods that are shown to be within the margin of the best."""


def choose(ledger: Ledger, recipe: StudyRecipe, axis: str) -> Choice | None:
    """The cheapest method at its largest size that is shown to be within the margin of the best.

    On text a method must be able to write, so compressors and n-grams are no choice; None without another.
    """
    scores = {m: ledger.score(axis, m) for m in ledger.methods(axis) if axis == "task" or not is_baseline(m)}
    if not scores:
        return None
    sign = 1 if axis == "text" else -1
    best = min(scores, key=lambda m: sign * scores[m].value)
    margin = recipe.text_margin * scores[best].value if axis == "text" else recipe.task_margin
    within = [m for m in scores if m == best or advantage(axis, scores[best], scores[m]).estimate.high <= margin]
    chosen = min(within, key=lambda m: total_seconds(ledger, axis, m, recipe.requests))
    *_, largest = (each.claims for each in comparisons(ledger, axis) if each.factor == 1)
    beats_baselines = chosen in largest.better or not any(map(is_baseline, scores))  # "best" leaves them out
    return Choice(chosen, best, largest.best == chosen and beats_baselines, within)


def total_seconds(ledger: Ledger, axis: str, method: str, requests: int) -> float:
    """Seconds of building a method at its largest size, and on the task of `requests` requests."""
    return _cost(ledger, axis, method).seconds(requests if axis == "task" else 0)


def answer(ledger: Ledger, recipe: StudyRecipe) -> list[str]:
    """At most MOST_LINES sentences: what to do, how sure it is, what it costs, what would change it."""
    lines: list[str] = []
    for axis in ("text", "task"):
        if ledger.methods(axis):
            lines += [*_advice(ledger, recipe, axis), *_changes(ledger, axis)]
    seeds = len({row["seed"] for row in ledger.rows})
    if seeds < 3:
        lines.append(
            f"This is an illustration, not a result: it has {seeds} seed{'s' * (seeds > 1)}; a result has three."
        )
    return lines[:MOST_LINES]


def _advice(ledger: Ledger, recipe: StudyRecipe, axis: str) -> Iterator[str]:
    choice = choose(ledger, recipe, axis)
    if choice is None:
        yield f"For the {THINGS[axis]}: only baselines were measured, which cannot write."
        return
    score, cost = ledger.score(axis, choice.method), _cost(ledger, axis, choice.method)
    size = ledger.sizes(axis, choice.method)[-1]
    unit = "bits per byte" if axis == "text" else "of the items right"
    with_data = (
        f", with {'all of the text' if (axis, size) == ('text', 1) else describe_size(axis, size)}" if size else ""
    )
    words = WORDS.get(name_of(choice.method), choice.method) + choice.method.removeprefix(name_of(choice.method))
    others = [m for m in ledger.methods(axis) if m != choice.method and (axis == "task" or not is_baseline(m))]
    second = min(others, key=lambda m: (1 if axis == "text" else -1) * ledger.score(axis, m).value, default="")
    if not second and axis == "text":
        yield f"For the text: {choice.method} alone was measured beside the baselines: {score.estimate} {unit}."
        return
    yield f"For the {THINGS[axis]}: {words}{with_data}: {score.estimate} {unit}."
    if choice.is_sure:
        gap = advantage(axis, score, ledger.score(axis, second)).estimate
        others_are = "every other method that can write" if axis == "text" else "every other method"
        yield f"  It is significantly better than {others_are}; the next, {second}, is {gap} behind."
    elif choice.method != choice.best:
        best = ledger.score(axis, choice.best).value
        yield f"  {choice.best} ({best:.3f}) is no more than the margin better, and costs more."
    elif is_baseline(choice.method):
        yield "  It is a baseline; no method was measured to be better."
    elif second:
        yield f"  It has the best score; {_doubt(axis, {m: ledger.score(axis, m) for m in (choice.method, *others)})}."
    threads = ledger.calibration.get("threads", 0) if "cores" in ledger.rows[0].get("device", "") else 0
    cores = f" of {'one core' if threads == 1 else f'{threads} cores'}" if threads and cost.fixed_seconds else ""
    costs = f"  It takes {cost.fixed_seconds:,.0f} s{cores} to build, search included"
    if axis == "task" and cost.request_seconds:
        costs += f", and {1000 * cost.request_seconds:,.0f} s for 1,000 requests"
    yield costs + (f"; {cost.labels:.0f} labels." if cost.labels else ".")


def _doubt(axis: str, scores: Mapping[str, Resampled]) -> str:
    # Why the method with the best score is not shown to be the best.
    best, *others = sorted(scores, key=lambda method: (1 if axis == "text" else -1) * scores[method].value)
    leads = {method: advantage(axis, scores[best], scores[method]) for method in others}
    if close := [f"{m} ({scores[m].value:.3f})" for m, lead in leads.items() if lead.estimate.low <= 0]:
        more = f" and {len(close) - MOST_NAMED} more" if len(close) > MOST_NAMED else ""
        return f"no significant difference to {', '.join(close[:MOST_NAMED])}{more} was found"
    least_sure = max(leads, key=lambda method: leads[method].p_above())
    lead = leads[least_sure].estimate
    return f"its lead over {least_sure}, {lead}, is not significant after the correction for all claims"


def _changes(ledger: Ledger, axis: str) -> Iterator[str]:
    # How far the text is from the foundation; what would change the answer: less data, more time.
    for method, baseline, ratio in distances(ledger)[:1] if axis == "text" else ():
        name = foundation_of(method) or "the foundation model"
        how = "better than" if ratio.high < 1 else "worse than" if ratio.low > 1 else "about as well as"
        yield f"  Untuned, {name} predicts the text {how} {baseline}: it needs {ratio} times as many bits per byte."
    scratch = FROM_SCRATCH[axis]
    sizes = ledger.sizes(axis, scratch)
    tuned = ledger.variants(axis, "lora", "full")
    for other in sorted(tuned, key=lambda m: (1 if axis == "text" else -1) * ledger.score(axis, m).value):
        if len(sizes) > 1 and ledger.sizes(axis, other) == sizes:
            curves = ledger.curve(axis, scratch), ledger.curve(axis, other)
            if found := find_crossing(sizes, *curves):
                value, *ends = (describe_size(axis, size) for size in found)
                low, high = (end.removesuffix(" of the text").removesuffix(" items") for end in ends)
                first, then = (
                    (other, scratch) if advantage(axis, curves[0][0], curves[1][0]).value < 0 else (scratch, other)
                )
                if (advantage(axis, curves[0][-1], curves[1][-1]).value > 0) != (then == scratch):
                    continue  # they cross again
                yield f"  Below {value} [{low}, {high}] {first} has the better mean, above it {then}."
                break
    *_, longest = comparisons(ledger, axis)
    trained, _ = split(longest.scores)
    if longest.factor > 1 and len(trained) > 1:
        sign = 1 if axis == "text" else -1
        best, second, *_ = sorted(trained, key=lambda method: sign * trained[method].value)
        lead = advantage(axis, trained[best], trained[second]).estimate
        is_best = f"has the best score, {trained[best].estimate}; {_doubt(axis, trained)}"
        if longest.claims.best:
            is_best = f"is best: {trained[best].estimate}; the next, {second}, is {lead} behind"
        yield f"  With {longest.factor:g} times the budget, {best} {is_best}."


def _cost(ledger: Ledger, axis: str, method: str) -> Cost:
    return ledger.cost(axis, method, ledger.sizes(axis, method)[-1])


def options(ledger: Ledger, recipe: StudyRecipe, axis: str) -> list[Option]:
    """Every method at its largest size, the best first, and when to choose it."""
    choice, sign = choose(ledger, recipe, axis), 1 if axis == "text" else -1
    found: list[Option] = []
    costs: dict[str, float] = {}  # of the better methods that could be chosen
    is_choice = axis == "task" or sum(not is_baseline(method) for method in ledger.methods(axis)) > 1
    for method in sorted(ledger.methods(axis), key=lambda m: sign * ledger.score(axis, m).value):
        cost = _cost(ledger, axis, method)
        seconds, least = total_seconds(ledger, axis, method, recipe.requests), min(costs.values(), default=float("inf"))
        if choice is None or (axis == "text" and is_baseline(method)):
            when = "baseline only: it writes no text"
        elif method == choice.method:
            when = "first choice" if is_choice else "measured alone"
        elif method == choice.best:
            when = "only the best score will do"
        elif method == "majority":
            when = "baseline only: the same label for every item"
        elif method in choice.within:
            when = "as good within the margin"
        elif seconds < CHEAPER * least:
            when = "cost matters more than quality"
        elif seconds >= least:
            when = f"– ({min(costs, key=costs.__getitem__)} has a better mean and costs no more)"
        else:
            when = "–"
        if not (axis == "text" and is_baseline(method)):
            costs[method] = seconds
        each = f"{1000 * cost.request_seconds:,.0f} s" if cost.request_seconds else "–"
        data = describe_data(axis, method, ledger.sizes(axis, method)[-1])
        estimate = str(ledger.score(axis, method).estimate)
        build = f"{cost.fixed_seconds:,.0f} s" if cost.fixed_seconds else "–"
        found.append(Option(method, estimate, build, each, data, when))
    return found
