"""The verdict: plain sentences, each with the ledger rows that support it."""

from collections.abc import Iterator

import numpy as np

from compare.analysis.bootstrap import Estimate
from compare.analysis.comparisons import Comparison, advantage, comparisons, is_baseline, split
from compare.analysis.costs import break_even_sentences, front_sentences
from compare.analysis.curves import MIN_RESAMPLES, find_crossing, fit_power_law
from compare.analysis.forgetting import forgetting_sentences, general_bits
from compare.analysis.ledger import Ledger, Sentence, foundation_of, name_of, row_ids
from compare.context import MIN_VALIDATION
from compare.leaks import COPY_SHARE, NGRAM
from compare.methods import METHODS

FROM_SCRATCH = {"text": "scratch", "task": "scratch-supervised"}
UNITS = {"text": "bits per byte", "task": "of the items right"}
EXTRAPOLATED = 10  # times the largest measured size
FITTED_RESAMPLES = 200


def verdict(
    ledger: Ledger, requests: int = 1000, per_hour: float = 0.0, per_label: float = 0.0, margin: float = 0.03
) -> list[Sentence]:
    """All sentences: scores on text and task, then costs, forgetting and caveats."""
    sentences = []
    for axis in ("text", "task"):
        if ledger.methods(axis):
            sentences += [*_best_methods(ledger, axis), *_baselines(ledger, axis)]
            sentences += [*_distance(ledger)] if axis == "text" else []
            sentences += [*_crossings(ledger, axis), *_extrapolations(ledger, axis)]
    return [
        *sentences,
        *_prompt_worth(ledger),
        *break_even_sentences(ledger, requests, margin),
        *front_sentences(ledger, requests, margin, per_hour, per_label),
        *forgetting_sentences(ledger),
        *_caveats(ledger),
    ]


def _describe(axis: str, comparison: Comparison) -> str:
    size, factor = comparison[:2]
    if axis == "task":
        data = f"With {size:g} labelled items"
    else:
        data = "With all of the text" if size == 1 else f"With {100 * size:.3g} % of the text"
    return data if factor == 1 else f"{data} and {factor:g} times the budget"


def describe_size(axis: str, size: float) -> str:
    """A size in words, such as "10 % of the text" or "64 items"."""
    if size == 0:
        return "nothing"
    return f"{size:,.0f} items" if axis == "task" else f"{100 * size:.3g} % of the text"


def describe_data(axis: str, method: str, size: float) -> str:
    """The data of a method at a size, in words, such as "the text, then 64 items"."""
    base = "the text, then " if METHODS[name_of(method)].base_method else ""
    if name_of(method) == "retrieval":
        return "passages of the text"
    if not size and name_of(method) != "zero-shot":
        return "documents in the prompt"
    return base + describe_size(axis, size)


def _best_methods(ledger: Ledger, axis: str) -> Iterator[Sentence]:
    # In every comparison: the best method that is no baseline, and those not significantly worse.
    sign = 1 if axis == "text" else -1
    for each in comparisons(ledger, axis):
        scores, _ = split(each.scores)
        if len(scores) < 2:
            continue
        best, *others = sorted(scores, key=lambda method: sign * scores[method].value)
        gaps = {method: advantage(axis, scores[best], scores[method]).estimate for method in others}
        value = f"({scores[best].estimate} {UNITS[axis]})"
        if each.claims.best:
            second = others[0]
            text = f"{best} is best {value}, {gaps[second]} better than {second} ({scores[second].value:.3f})."
        else:
            close = [method for method in others if gaps[method].low <= 0] or others[:1]
            listed = ", ".join(f"{method} ({scores[method].value:.3f})" for method in close)
            text = f"no significant difference was found between {best} {value} and {listed}."
        yield Sentence(f"{_describe(axis, each)}, {text}", row_ids(*(each.rows[method] for method in (best, *others))))


def _baselines(ledger: Ledger, axis: str) -> Iterator[Sentence]:
    # In every comparison: the best baseline, and the methods significantly better or worse than it.
    sign = 1 if axis == "text" else -1
    for each in comparisons(ledger, axis):
        methods, baselines = split(each.scores)
        if not baselines or not methods:
            continue
        baseline = min(baselines, key=lambda method: sign * baselines[method].value)
        better, worse, _ = each.claims
        lists = {
            "significantly better": [method for method in methods if method in better],
            "significantly worse": [method for method in methods if method in worse],
            "no significant difference": [method for method in methods if method not in better | worse],
        }
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)
        value = f"({baselines[baseline].estimate} {UNITS[axis]})"
        text = f"{_describe(axis, each)}, the best baseline is {baseline} {value}; {listed}."
        yield Sentence(text, row_ids(*each.rows.values()))


def distances(ledger: Ledger) -> list[tuple[str, str, Estimate]]:
    """How far the text is from the pretraining data of every foundation model, the nearest first.

    Its untuned method, the best baseline, and its bits per byte over the baseline's. Empty if either was not measured.
    """
    baselines = [method for method in ledger.methods("text") if is_baseline(method)]
    if not baselines:
        return []
    baseline = min(baselines, key=lambda method: ledger.score("text", method).value)
    trained, found = ledger.score("text", baseline), []
    for method in ledger.variants("text", "zero-shot"):
        untuned = ledger.score("text", method)
        ratio = Estimate.of(untuned.value / trained.value, untuned.resamples / trained.resamples)
        found.append((method, baseline, ratio))
    return sorted(found, key=lambda each: each[2].value)


def _distance(ledger: Ledger) -> Iterator[Sentence]:
    for method, baseline, ratio in distances(ledger):
        rows, on_general = ledger.largest("text", method), ""
        if general := general_bits(rows):
            times = ledger.score("text", method).value / general[0]
            on_general = f", and {times:.2f} times its own bits per byte on general text"
        yield Sentence(
            f"Without tuning, {foundation_of(method) or 'the foundation model'} needs {ratio} "
            f"times the bits per byte of {baseline} with "
            f"{describe_size('text', ledger.sizes('text', baseline)[-1])}{on_general}.",
            row_ids(rows, ledger.largest("text", baseline)),
        )


def _crossings(ledger: Ledger, axis: str) -> Iterator[Sentence]:
    # Where the curve of training from scratch crosses those of LoRA and full fine-tuning.
    scratch, sizes = FROM_SCRATCH[axis], ledger.sizes(axis, FROM_SCRATCH[axis])
    for method in ledger.variants(axis, "lora", "full"):
        if ledger.sizes(axis, method) != sizes or len(sizes) < 2:
            continue
        a, b = ledger.curve(axis, scratch), ledger.curve(axis, method)
        gaps = [advantage(axis, x, y).estimate for x, y in zip(a, b, strict=True)]
        measured = f"from {describe_size(axis, sizes[0])} to {describe_size(axis, sizes[-1])}"
        if found := find_crossing(sizes, a, b):
            value, low, high = (describe_size(axis, size) for size in found)
            below = describe_size(axis, max(size for size in sizes if size <= found.value))
            above = describe_size(axis, min(size for size in sizes if size >= found.value))
            text = (
                f"The curves of {scratch} and {method} cross at {value} [{low}, {high}], if they are "
                f"linear in the logarithm of the size between {below} and {above}."
            )
        elif all(gap.low > 0 for gap in gaps) or all(gap.high < 0 for gap in gaps):
            best, other = (scratch, method) if gaps[0].low > 0 else (method, scratch)
            text = f"{best} is significantly better than {other} at every size {measured}."
        else:
            continue  # undecided
        yield Sentence(text, ledger.row_ids(axis, scratch, method))


def _extrapolations(ledger: Ledger, axis: str) -> Iterator[Sentence]:
    # The effect of more text or labels, by a power law where one fits the measured sizes.
    under_one_epoch, under_one_epoch_rows = [], []
    for method in ledger.variants(axis, FROM_SCRATCH[axis], "lora", "full", "features"):
        sizes, rows = ledger.sizes(axis, method), ledger.row_ids(axis, method)
        epochs = np.mean([row.get("epochs", 1.0) for row in ledger.largest(axis, method)])
        if axis == "text" and epochs < 1:
            under_one_epoch.append(f"{method} {epochs:.2f}")
            under_one_epoch_rows += rows
            continue
        curve = ledger.curve(axis, method)
        losses = np.array([point.value for point in curve])
        resamples = np.stack([point.resamples[:FITTED_RESAMPLES] for point in curve], 1)
        if axis == "task":
            losses, resamples = 1 - losses, 1 - resamples
        fitted, size = fit_power_law(sizes, losses), EXTRAPOLATED * sizes[-1]
        predictions = [fit.predict(size) for resample in resamples if (fit := fit_power_law(sizes, resample))]
        if fitted and len(predictions) >= MIN_RESAMPLES * FITTED_RESAMPLES:
            found = Estimate.of(fitted.predict(size), predictions)
            if axis == "task":
                found = Estimate(1 - found.value, 1 - found.high, 1 - found.low)
            what = {"text": "text", "task": "labels"}[axis]
            yield Sentence(
                f"Extrapolated, not measured: with {EXTRAPOLATED} times the {what} and the same budget, "
                f"{method} would reach {found} {UNITS[axis]}, if a power law with an irreducible loss, "
                f"fitted to {len(sizes)} sizes, still holds there.",
                rows,
            )
    if under_one_epoch:
        yield Sentence(
            "More text would not help a method that trains for less than one epoch within this budget; "
            f"epochs on all of the text: {', '.join(under_one_epoch)}.",
            under_one_epoch_rows,
        )


def _prompt_worth(ledger: Ledger) -> Iterator[Sentence]:
    # How many labels a prompt is worth (Le Scao & Rush 2021, arXiv:2103.08493); those that choose settings count.
    for prompt in ledger.variants("task", "zero-shot", "few-shot"):
        prompted, rows = ledger.score("task", prompt), ledger.largest("task", prompt)
        for method in ledger.variants("task", "lora", "full", "scratch-supervised", "features"):
            sizes, curve = ledger.sizes("task", method), ledger.curve("task", method)
            if len(sizes) < 2 or (foundation_of(method) and foundation_of(method) != foundation_of(prompt)):
                continue
            used = [ledger.cost("task", method, size).labels for size in sizes]
            gaps = [point.minus(prompted).estimate for point in curve]
            worse = [count for count, gap in zip(used, gaps, strict=True) if gap.high < 0]
            better = [count for count, gap in zip(used, gaps, strict=True) if gap.low > 0]
            if found := find_crossing(used, curve, prompted):
                text = f"{method} reaches its score with {found.value:.0f} [{found.low:.0f}, {found.high:.0f}] labels."
            elif worse or better:
                parts = [f"significantly worse with {worse[-1]:.0f}"] if worse else []
                parts += [f"significantly better with {better[0]:.0f}"] if better else []
                text = f"{method} is {' and '.join(parts)} labels."
            else:
                continue  # undecided
            own = np.mean([row.get("labels", 0.0) for row in rows])
            yield Sentence(f"{prompt} uses {own:.0f} labels; {text}", row_ids(rows) + ledger.row_ids("task", method))


def _caveats(ledger: Ledger) -> Iterator[Sentence]:
    trained = [rows for rows in ledger.groups.values() if "training_steps" in rows[0]]
    seeds = min(map(len, trained), default=3)
    if seeds < 3:
        one = "one seed, so the confidence intervals do not include the variation between seeds"
        two = "two seeds, which are few for a confidence interval"
        text = f"Training used {two if seeds == 2 else one}: do not take this as a result before 3 seeds."
        yield Sentence(text, row_ids(*trained))
    if untrained := [row for row in ledger.rows if row.get("kept_step") == 0]:
        names = dict.fromkeys(f"{row['method']} with {describe_size(row['axis'], row['size'])}" for row in untrained)
        yield Sentence(
            "Training did not improve validation with at least one seed, so the initial weights were kept: "
            f"{', '.join(names)}.",
            row_ids(untrained),
        )
    if validated := [row for row in ledger.rows if row.get("labels", 0) > row["size"]]:
        yield Sentence(
            "Sizes count the labelled items for training only; a method that chooses a setting or a "
            f"checkpoint validates on as many others, at least {MIN_VALIDATION}, as far as there are enough.",
            row_ids(validated),
        )
    if ledger.rows:
        most = max(ledger.rows, key=lambda row: row.get("overlap") or 0.0)
        removed = max(row.get("left_out", 0) for row in ledger.rows)
        yield Sentence(
            f"Leak check: at most {most.get('overlap', 0):.2%} of the {NGRAM}-character n-grams of the held-out "
            f"texts occur in the data of any method; {removed} held-out texts with {COPY_SHARE:.0%} or more of "
            "their n-grams in one training document were removed beforehand.",
            [most["id"]],
        )
