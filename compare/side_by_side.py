"""Draw the text curves of several studies beside each other.

    python -m compare.side_by_side STUDY-DIR … [--out docs/studies.png]

A panel per study, far from the foundation's pretraining data first: bits per byte against the share of the
training text, with 95 % intervals. A hollow mark is the same method with the study's longest budget. Also prints how
much text was held out, and how much a training reads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.console import show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from compare.analysis.comparisons import is_baseline, is_constant
from compare.analysis.ledger import Ledger, name_of
from compare.analysis.verdict import distances
from compare.methods import METHODS
from compare.pictures import COLOURS

SHOWN = ("zero-shot", "xz", "full", "lora", "scratch")
MARKS = dict(zip(SHOWN, "_s^ov", strict=True))


def _panel(panel: Any, ledger: Ledger) -> None:
    shares: set[float] = set()
    for method in (m for m in ledger.methods("text") if name_of(m) in SHOWN):
        colour = COLOURS[METHODS[name_of(method)].family]
        values, low, high = np.array([score.estimate for score in ledger.curve("text", method)]).T
        if is_constant("text", method):
            panel.axhline(values[0], color=colour, linestyle=":", label=method)
            continue
        sizes = np.array(ledger.sizes("text", method))
        shares |= set(sizes.tolist())
        style = {"color": colour, "marker": MARKS[name_of(method)], "markersize": 5, "elinewidth": 1}
        line = "--" if is_baseline(method) else "-"
        panel.errorbar(sizes, values, [values - low, high - values], linestyle=line, label=method, **style)
        factors = [factor for axis, name, factor in ledger.budgets if (axis, name) == ("text", method) and factor > 1]
        if factors:
            longest = ledger.budget_score("text", method, max(factors)).estimate
            error = [[longest.value - longest.low], [longest.high - longest.value]]
            panel.errorbar(1.35, longest.value, error, markerfacecolor="none", linestyle="", **style)
            panel.plot([1, 1.35], [values[-1], longest.value], color=colour, linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.set_xticks(sorted(shares), [f"{100 * share:g} %" for share in sorted(shares)])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.set_ylim(bottom=0)


def draw(folders: Sequence[Path], path: Path) -> None:
    """Write the picture. Raises UserError without matplotlib, or if a study has no ledger or did not measure text."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the picture needs: pip install -e '.[compare]'") from None
    studies = []
    for folder in folders:
        ledger = Ledger.read(folder)
        if not (far := distances(ledger)):
            raise UserError(f"{folder}: holds no zero-shot and no baseline on text, which the picture compares")
        studies.append((folder.name, ledger, *far[0][1:]))
    studies.sort(key=lambda study: -study[3].value)
    figure = Figure(figsize=(5 * len(studies), 4.6), layout="constrained")
    panels = figure.subplots(1, len(studies), sharey=True, squeeze=False)[0]
    for panel, (name, ledger, baseline, far_by) in zip(panels, studies, strict=True):
        _panel(panel, ledger)
        panel.set_title(f"{name}: the foundation needs {far_by.value:.2f} times the bits of {baseline}", fontsize=10)
        panel.set_xlabel("share of the training text")
    panels[0].set_ylabel("bits per byte of held-out text")
    panels[0].plot([], [], "o", color="#555555", markerfacecolor="none", label="the longest budget")
    panels[0].legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def describe_amounts(name: str, ledger: Ledger) -> str:
    """The held-out text of a study, and what a training on all of the text reads within the budget, in kB."""
    read = {
        m: ledger.largest("text", m)[0] for m in ledger.methods("text") if name_of(m) in ("scratch", "lora", "full")
    }
    amounts = [f"{method} {row['epochs'] * row['seen_bytes'] / 1e3:,.0f} kB" for method, row in read.items()]
    held_out = ledger.rows[0]["document_bytes"]
    return f"{name}: {len(held_out)} documents held out, {sum(held_out) / 1e3:.0f} kB; read: {', '.join(amounts)}"


def main() -> None:
    """Entry point of `python -m compare.side_by_side`."""
    parser = Parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="STUDY-DIR")
    parser.add_argument("--out", type=Path, default=Path("docs/studies.png"))
    args = parser.parse_args()
    draw(args.folders, args.out)
    for folder in args.folders:
        show(describe_amounts(folder.name, Ledger.read(folder)))
    show(f"written: {args.out}")


if __name__ == "__main__":
    run_command(main)
