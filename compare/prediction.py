"""What the atlas predicts for one corpus, in sentences."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compare.analysis.ledger import Ledger
from compare.domains import ATLAS, Domain, View, measure_view, read_atlas
from compare.own_corpus import minutes_for
from compare.predict import LEVEL, POINTS, Predictor, describe_advantage, megabytes, pairs, side

NAMES = {
    "ratio": "the distance from the foundation",
    "early": "the difference after the short runs",
    "fertility": "the foundation's tokens per byte",
    "overlap": "the overlap of held-out and training text",
    "pace": "the bytes that training from scratch reads in a second",
}


def describe_prediction(folder: Path, corpus: str, atlas: Path = ATLAS) -> list[str]:
    """What the atlas predicts for a corpus; `folder` is a study of `own_corpus.short_recipe`.

    Raises UserError if the atlas has too few domains, or as `recipe_for`.
    """
    domains, view = read_atlas(atlas), measure_view(Ledger.read(folder), 1.0)
    predictor = Predictor(domains)
    seconds = predictor.seconds

    def winner(size: float, for_seconds: float) -> str:
        found = predictor.predict(view, size, for_seconds)
        chance = found.chance if found.advantage > 0 else 1 - found.chance
        return f"{side(found.advantage)}, with a chance of {chance:.0%}: {describe_advantage(found)}"

    lines = [
        f"With {seconds:.0f} s of training (of one core of the atlas's machine) on all of the text "
        f"({megabytes(view.bytes)}): {winner(view.bytes, seconds)}."
    ]
    read, more = view.features.pace * seconds, 10 * view.bytes
    lines.append(f"  Ten times the training: {winner(view.bytes, 10 * seconds)}.")
    if view.bytes < read:
        lines.append(f"  Ten times the text: {winner(more, seconds)}.")
    else:
        lines.append(
            f"  Ten times the text: the same; in {seconds:.0f} s a model from scratch reads {megabytes(read)}."
        )
    lines.append(f"  Ten times both: {winner(more, 10 * seconds)}.")
    lines += describe_ties(predictor, view)
    nearest = ", ".join(domain.name for domain in predictor.nearest(view))
    lines.append(f"  The corpus resembles {nearest} most.")
    if unlike := predictor.unlike(view):
        names = ", ".join(NAMES[feature] for feature in unlike)
        lines.append(f"  Outside the range of the atlas: {names}. So the prediction is extrapolated.")
    lines.append("  " + describe_record(predictor, domains, view))
    longest = max(domain.longest.seconds for domain in domains)
    lines.append(f"  The atlas has trainings of at most {longest:.0f} s: ten times the training is extrapolated.")
    command = f"python -m compare.run --corpus {shlex.quote(corpus)} --minutes {minutes_for(corpus, seconds)}"
    lines.append(f"  To be sure, measure it: {command}")
    return lines


def describe_ties(predictor: Predictor, view: View) -> list[str]:
    """At which size, with the atlas's own budget, and at which budget, with all of the text, both are as good."""
    seconds = predictor.seconds
    sizes = predictor.sizes(view, seconds)
    longest = 10 * seconds
    budgets = [(view.bytes, float(each)) for each in np.geomspace(seconds / 2, longest, POINTS)]
    size_tie = _ends(predictor.tie(view, sizes), [megabytes(size) for size, _ in sizes])
    time_tie = _ends(predictor.tie(view, budgets), [f"{each:.0f} s" for _, each in budgets])
    return [
        f"  Text from which training from scratch is better, in {seconds:.0f} s: {size_tie}.",
        f"  Seconds from which it is better, with all of the text: {time_tie}. Intervals: {LEVEL:.0%}.",
    ]


def _ends(found: Sequence[int | None], names: list[str]) -> str:
    value, low, high = (
        f"never up to {names[-1]}" if at is None else f"below {names[0]}" if at == 0 else names[at] for at in found
    )
    return f"{value} [{low}, {high}]"


def describe_record(predictor: Predictor, domains: Sequence[Domain], view: View) -> str:
    """How often predictions for unseen domains were right that were as sure as the one for `view`."""
    kind = predictor.kind(view, view.bytes, predictor.seconds)
    size = abs(predictor.predict(view, view.bytes, predictor.seconds).advantage)
    right, as_sure = [], []
    for domain, errors in zip(domains, predictor.left_out, strict=True):
        for (known, outcome), error in zip(pairs(domain), errors, strict=True):
            if predictor.kind(known, outcome.bytes, outcome.seconds) == kind:
                predicted = outcome.advantage - error
                right.append(predicted * outcome.advantage > 0)
                as_sure.append(abs(predicted) >= size)
    sure = [is_right for is_right, is_sure in zip(right, as_sure, strict=True) if is_sure]
    return (
        f"Such predictions for domains that it had not seen named the winner {sum(right)} of {len(right)} times, and "
        f"{sum(sure)} of {len(sure)} times where they were at least as sure as this one."
    )
