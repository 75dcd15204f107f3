"""Draw the atlas: every domain on a plane of distance and size, coloured by the winner, with the fitted border.

    python -m compare.atlas_picture [benchmarks/studies/atlas] [--out docs/atlas.png]

The border is where a model of these two axes alone (`compare.predict.Model`, at the study's own budget)
predicts a tie; in its band, the 80 % interval holds a tie.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cli.console import show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from compare.domains import ATLAS, Domain, Features, View, read_atlas
from compare.pictures import COLOURS
from compare.predict import Predictor

POINTS = 120  # of the grid, each way
MARGIN = 0.25  # of the axes beside the outermost points, in decades
WINNERS = {True: ("from scratch", COLOURS["scratch"], "o"), False: ("tuned", COLOURS["tuned"], "s")}


def border(domains: Sequence[Domain], ratios: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted advantage of training from scratch, and whether its interval holds a tie: (sizes, ratios) each.

    `ratios` are log2 as in Features, `sizes` are bytes; the budget is the median of the domains' own.
    """
    pace = float(np.median([domain.features.pace for domain in domains]))
    seconds = float(np.median([domain.decisive.seconds for domain in domains]))

    most = max(domain.decisive.bytes for domain in domains)

    def known(ratio: float) -> View:
        return View(most, Features(ratio, 0, 0, 0, pace))  # nothing else

    predictor = Predictor([domain._replace(views=[known(domain.features.ratio)]) for domain in domains])
    found = [[predictor.predict(known(ratio), size, seconds) for ratio in ratios] for size in sizes]
    advantage = np.array([[each.advantage for each in row] for row in found])
    return advantage, np.array([[each.low <= 0 <= each.high for each in row] for row in found])


def draw(domains: Sequence[Domain], path: Path) -> None:
    """Write the picture. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the picture needs: pip install -e '.[compare]'") from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    panel = figure.subplots()
    ends = np.log10([o.bytes for d in domains for o in d.outcomes])
    ratios = np.array([d.features.ratio for d in domains])
    xs = np.linspace(ratios.min() - 3 * MARGIN, ratios.max() + 3 * MARGIN, POINTS)
    ys = np.logspace(ends.min() - MARGIN, ends.max() + MARGIN, POINTS)
    advantage, undecided = border(domains, xs, ys)
    panel.contourf(2**xs, ys, undecided, levels=[0.5, 1.5], colors=["#888888"], alpha=0.15)
    panel.contour(2**xs, ys, advantage, levels=[0.0], colors=["#555555"], linestyles="--")
    for domain in domains:
        x, middle = 2**domain.features.ratio, domain.decisive.seconds
        curve = [o for o in domain.outcomes if o.seconds == middle]
        panel.plot([x] * len(curve), [o.bytes for o in curve], color="#bbbbbb", linewidth=0.8, zorder=1)
        for outcome in curve:
            _, colour, marker = WINNERS[outcome.advantage > 0]
            size = 60 if outcome is domain.decisive else 20
            panel.scatter(x, outcome.bytes, s=size, color=colour, marker=marker, zorder=2)
        panel.annotate(
            domain.name, (x, domain.decisive.bytes), xytext=(3, 5), textcoords="offset points", rotation=35, fontsize=9
        )
    for name, colour, marker in WINNERS.values():
        panel.scatter([], [], s=60, color=colour, marker=marker, label=f"{name} has fewer bits per byte")
    panel.plot([], [], color="#555555", linestyle="--", label="predicted tie, and where its 80 % interval holds one")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("distance: the foundation's bits per byte without tuning, over those of xz")
    panel.set_ylabel("bytes of training text; the largest marker has all of it")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, fontsize=9)
    panel.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point of `python -m compare.atlas_picture`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ATLAS)
    parser.add_argument("--out", type=Path, default=Path("docs/atlas.png"))
    args = parser.parse_args()
    draw(read_atlas(args.folder), args.out)
    show(f"written: {args.out}")


if __name__ == "__main__":
    run_command(main)
