"""What the report's pictures show, from the ledger: curves, costs, forgetting, calibration; and curves.png."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from cli.errors import UserError
from compare.analysis.bootstrap import calibration_error
from compare.analysis.comparisons import is_baseline, is_constant
from compare.analysis.forgetting import general_bits
from compare.analysis.ledger import Ledger, name_of
from compare.methods import METHODS

Point = dict[str, Any]
"""A mark of a picture: x, value, and where they are known low and high."""

AXES = ("text", "task")
CAPTIONS = {
    "text": "Held-out text: bits per byte, comparable across tokenizers.",
    "task": "Held-out items: share answered correctly, by label likelihood or exact match.",
}
# One colour per family, of the palette of Okabe and Ito, which colour-blind people can tell apart.
COLOURS = {"scratch": "#D55E00", "tuned": "#0072B2", "prompted": "#009E73", "baseline": "#767C85"}


def data_curves(ledger: Ledger, axis: str) -> dict[str, list[Point]]:
    """The score of every method at all of its sizes."""
    return {
        method: [
            {"x": size, **ledger.score(axis, method, size).estimate._asdict(), "constant": is_constant(axis, method)}
            for size in ledger.sizes(axis, method)
        ]
        for method in ledger.methods(axis)
    }


def compute_curves(ledger: Ledger) -> dict[str, list[Point]]:
    """The score on all of the text against the seconds of one training, for methods with several budgets."""
    found = {}
    for method in ledger.methods("text"):
        factors = sorted({1.0, *(factor for axis, name, factor in ledger.budgets if (axis, name) == ("text", method))})
        if len(factors) > 1:
            largest = ledger.largest("text", method)
            groups = [ledger.budgets["text", method, f] if f != 1 else largest for f in factors]
            found[method] = [
                {
                    "x": statistics.mean(row["training_seconds"] for row in rows),
                    **ledger.budget_score("text", method, factor).estimate._asdict(),
                }
                for factor, rows in zip(factors, groups, strict=True)
            ]
    return found


def text_costs(ledger: Ledger) -> dict[str, list[Point]]:
    """The score of every method on its largest text against the seconds to build it, search included."""
    return {
        method: [
            {
                "x": ledger.cost("text", method, ledger.sizes("text", method)[-1]).fixed_seconds,
                **ledger.score("text", method).estimate._asdict(),
            }
        ]
        for method in ledger.methods("text")
    }


def forgetting(ledger: Ledger) -> list[Point]:
    """Bits per byte of general text after tuning on all of the domain's text, and of the untuned model."""
    found = []
    for method in ledger.methods("text"):
        if values := general_bits(ledger.largest("text", method)):
            found.append({"method": method, "value": statistics.mean(values), "low": min(values), "high": max(values)})
    return sorted(found, key=lambda point: point["value"])


def calibration(ledger: Ledger) -> list[Point]:
    """The calibration error of every method on the task at its largest size."""
    errors = {m: calibration_error(ledger.largest("task", m)) for m in ledger.methods("task")}
    found = [{"method": method, "value": error} for method, error in errors.items() if error is not None]
    return sorted(found, key=lambda point: point["value"])


def decision_rows(ledger: Ledger, margin: float) -> list[dict]:
    """The rows of the decision table: every method on the task, at every number of labelled items.

    "better" has the indices of the rows than which it may be worse by more than `margin`.
    """
    groups = [(method, size) for axis, method, size in ledger.groups if axis == "task"]
    scores = [ledger.score("task", *group) for group in groups]
    found = []
    for (method, size), score in zip(groups, scores, strict=True):
        rows, estimate = ledger.at("task", method, size), score.estimate
        found.append(
            {
                "method": method,
                "size": size,
                "score": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "better": [
                    i
                    for i, other in enumerate(scores)
                    if other is not score and other.minus(score).estimate.high > margin
                ],
                "calibration_error": calibration_error(rows),
                **ledger.cost("task", method, size)._asdict(),
            }
        )
    return found


def collect_samples(ledger: Ledger, axis: str) -> list[dict]:
    """The held-out prompts, each with the samples of all methods under "by_method"."""
    prompts: dict[str, dict] = {}
    for method in ledger.methods(axis):
        for sample in ledger.largest(axis, method)[0].get("written", []):
            prompt = prompts.setdefault(sample["prompt"], {**sample, "by_method": []})
            prompt["by_method"].append({"method": method, "text": sample["text"]})
    return list(prompts.values())


def plot_curves(ledger: Ledger, path: Path) -> None:
    """Plot the learning curves of both axes with intervals; constant scores as horizontal lines."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plotting needs: pip install -e '.[compare]'") from None
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for panel, axis in zip(figure.subplots(1, 2), AXES, strict=True):
        methods, ticks, ends = ledger.methods(axis), set(), {}
        for number, method in enumerate(methods):
            colour = COLOURS[METHODS[name_of(method)].family]
            sizes = np.array(ledger.sizes(axis, method))
            values, low, high = np.array([score.estimate for score in ledger.curve(axis, method)]).T
            ends[method] = float(values[-1])
            if is_constant(axis, method):
                panel.axhline(values[0], color=colour, linestyle=":")
                continue
            ticks |= set(sizes.tolist())
            panel.errorbar(
                sizes * 1.03 ** (number - len(methods) / 2),  # so that error bars do not overlap
                values,
                [values - low, high - values],
                color=colour,
                linestyle="--" if is_baseline(method) else "-",
                elinewidth=1,
                marker="os^Dv<>pX*"[number % 10],
                markersize=4,
            )
        panel.set_xscale("log")
        panel.set_xticks(sorted(ticks), [f"{100 * s:g} %" if axis == "text" else f"{s:g}" for s in sorted(ticks)])
        panel.minorticks_off()
        panel.set_title(CAPTIONS[axis], fontsize=10)
        panel.set_xlabel({"text": "share of the training documents", "task": "labelled items"}[axis])
        panel.grid(alpha=0.3)
        _label_ends(panel, ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _label_ends(panel: Any, ends: dict[str, float]) -> None:
    # The names beside the panel, at the height of their last score, or a line above the one below.
    bottom, top = panel.get_ylim()
    height = bottom
    for method, value in sorted(ends.items(), key=lambda end: end[1]):
        height = max(height, value)
        panel.annotate(
            method,
            (1.01, height),
            xycoords=("axes fraction", "data"),
            color=COLOURS[METHODS[name_of(method)].family],
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
        height += (top - bottom) / 26
