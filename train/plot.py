"""Plot the training curves of one or more runs.

    python -m train.plot RUN [RUN …] [--out report.html]

Writes one self-contained page: a table of the runs and a figure of loss, validation, learning rate,
gradient norm, speed and memory against tokens. With --out FILE.png it writes only the figure.
"""

import argparse
import base64
import html
import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from cli.atomic import write_atomically
from cli.console import say, show
from cli.errors import UserError, run_command
from train.metrics import read_metrics

PANELS = {
    "loss": "training loss (nats per token)",
    "bits_per_byte": "validation (bits per byte)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "memory_bytes": "peak memory (GiB)",
}


@dataclass
class Curves:
    """The metrics of one run."""

    name: str
    rows: list[dict]

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """The points (tokens seen, `key`) of all rows that have the key."""
        tokens, xs, ys = 0, [], []
        for row in self.rows:
            tokens = row.get("tokens", tokens)
            if row.get(key) is not None:
                xs.append(tokens)
                ys.append(row[key] / 2**30 if key == "memory_bytes" else row[key])
        return xs, ys

    def summary(self) -> dict[str, str]:
        """One row of the table, as column: text."""
        steps = [row for row in self.rows if row.get("loss") is not None]
        scores = self.points("bits_per_byte")[1]
        return {
            "run": self.name,
            "steps": f"{steps[-1]['step']:,}",
            "tokens": f"{steps[-1]['tokens']:,}",
            "epochs": f"{steps[-1]['epoch']:.2f}",
            "training s": f"{steps[-1]['seconds']:,.0f}",
            "last loss": f"{steps[-1]['loss']:.4f}",
            "best bits/byte": f"{min(scores):.4f}" if scores else "–",
            "tokens/s (median)": f"{statistics.median(self.points('tokens_per_second')[1]):,.0f}",
        }


def load_curves(run: Path) -> Curves:
    """The metrics of a run. Raises UserError if it has no recorded training step."""
    rows = read_metrics(run)
    if not any(row.get("loss") is not None for row in rows):
        raise UserError(f"{run}: holds no metrics.jsonl with a training step")
    return Curves(run.name, rows)


def smooth(values: list[float], width: int) -> list[float]:
    """The moving average over the last `width` values."""
    return [statistics.fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def draw_figure(runs: list[Curves]) -> bytes:
    """The figure as PNG bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(3, 2).flat, PANELS.items(), strict=True):
        for i, run in enumerate(runs):
            color = f"C{i}"
            xs, ys = run.points(key)
            many = len(ys) > 50
            axes.plot(
                xs, ys, "" if many else ".-", color=color, alpha=0.3 if many else 1, label=None if many else run.name
            )
            if many:
                axes.plot(xs, smooth(ys, len(ys) // 50), color=color, label=run.name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("tokens", fontsize=8)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def render_html(runs: list[Curves], picture: bytes) -> str:
    """The report as HTML, with the PNG `picture` embedded."""
    table = [run.summary() for run in runs]
    head = "".join(f"<th>{html.escape(key)}</th>" for key in table[0])
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row.values()) + "</tr>" for row in table
    )
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<meta charset="utf-8">
<title>{html.escape(", ".join(run.name for run in runs))}</title>
<style>
body {{ font-family: sans-serif; margin: 2em; }}
td, th {{ padding: 0.2em 1em; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }}
img {{ max-width: 100%; margin-top: 2em; }}
</style>
<table>
<tr>{head}</tr>
{body}
</table>
<img alt="curves against tokens" src="data:image/png;base64,{image}">
"""


def plot_run(run: Path) -> Path | None:
    """Draw loss and validation bits per byte against tokens into plots/loss.png."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no plots/loss.png: plotting needs pip install -e '.[compare]'")
        return None
    rows = read_metrics(run)
    steps = [row for row in rows if row.get("loss") is not None]
    tokens = {0: 0} | {row["step"]: row["tokens"] for row in steps}
    scores = [row for row in rows if row.get("bits_per_byte") is not None and row["step"] in tokens]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    left.plot(
        [row["tokens"] for row in steps],
        [row["loss"] for row in steps],
        color="tab:blue",
        alpha=0.4,
        linewidth=1,
        label="training loss",
    )
    left.set_xlabel("tokens")
    left.set_ylabel("training loss (nats per token)", color="tab:blue")
    right = left.twinx()
    right.plot([tokens[row["step"]] for row in scores], [row["bits_per_byte"] for row in scores], "o-", color="tab:red")
    right.set_ylabel("validation (bits per byte)", color="tab:red")
    best = min((row["bits_per_byte"] for row in scores), default=float("nan"))
    whole = [row["whole_bits_per_byte"] for row in rows if row.get("whole_bits_per_byte")]
    final = f", {whole[-1]:.3f} on the whole split at the end" if whole else ""
    left.set_title(f"{run.name}: best validation {best:.3f} bits per byte{final}")
    path = run / "plots" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    """Entry point of `python -m train.plot`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    args = parser.parse_args()
    if args.out.suffix not in (".html", ".png"):
        raise UserError(f"--out {args.out}: must end in .html or .png")
    runs = [load_curves(run) for run in args.runs]
    try:
        picture = draw_figure(runs)
    except ImportError:
        raise UserError("plotting needs: pip install -e '.[compare]'") from None
    content = picture if args.out.suffix == ".png" else render_html(runs, picture).encode()
    write_atomically(args.out, content)
    for run in runs:
        show("  ".join(f"{key} {value}" for key, value in run.summary().items()))
    say(f"written: {args.out}")


if __name__ == "__main__":
    run_command(main)
