"""Table, curves, verdict and a page for any browser, drawn from a study's ledger alone.

    python -m compare.report STUDY-DIR

Reads STUDY-DIR/ledger.jsonl (which may also be named itself) and config.toml; writes beside them
report.html (one file, works without a network), table.md, verdict.md and plots/curves.png.
"""

import json
import statistics
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.atomic import to_json, write_atomically
from cli.console import printable, show
from cli.errors import UserError, run_command
from cli.recipes import Parser, load
from compare.analysis.bootstrap import calibration_error
from compare.analysis.costs import needed
from compare.analysis.ledger import Ledger, Sentence, cost_of
from compare.analysis.verdict import general_bits, is_level, size_text, verdict
from compare.context import LEAST
from compare.leaks import RUN, SAME
from compare.methods import BASELINES, METHODS
from configs.study_recipe import StudyRecipe

COLUMNS = (
    "method",
    "learns from",
    "bits/byte",
    "task score",
    "ECE",
    "training s",
    "training FLOPs",
    "stored MiB",
    "tokens/request",
    "s/request",
    "peak memory",
    "general bits",
    "overlap",
)
CAPTIONS = {
    "text": "Held-out text: bits per byte, comparable across tokenizers.",
    "task": "Held-out items: labels ranked by likelihood, or answers met exactly.",
}


def learns_from(axis: str, method: str, size: float) -> str:
    """What an method learnt from, in words."""
    first = "the text, then " if METHODS[method].needs else ""
    if not size and METHODS[method].looks_up:
        return "the text, looked up"
    if not size and method != "zero-shot":
        return "documents shown"
    return first + size_text(axis, size)


def table_rows(ledger: Ledger) -> list[tuple[str, ...]]:
    """One row of COLUMNS per method, axis and size; the mean over seeds, quality with intervals."""

    def show(value: float | None, form: str, empty: float | None = None) -> str:
        return "–" if value is None or value == empty else format(value, form)

    found: list[tuple[str, ...]] = []
    for axis, method, size in ledger.groups:
        rows = ledger.at(axis, method, size)
        score = str(ledger.score(axis, method, size).estimate)
        cost, general = cost_of(rows, needed(ledger, method)), general_bits(rows)
        found.append(
            (
                method,
                learns_from(axis, method, size),
                score if axis == "text" else "–",
                score if axis == "task" else "–",
                show(calibration_error(rows), ".2f"),
                show(cost.once_seconds, ".0f", 0.0),
                show(cost.once_flops, ".2g", 0.0),
                show(cost.stored_bytes / 2**20, ".1f", 0.0),
                show(cost.prompt_tokens, ",.0f"),
                show(cost.request_seconds, ".3f"),
                f"{cost.peak_bytes / 2**30:.2f} GiB",
                show(statistics.mean(general) if general else None, ".3f"),
                show(max(row.get("overlap", 0.0) for row in rows), ".2%"),
            )
        )
    return found


def markdown(ledger: Ledger) -> str:
    """The table as Markdown, with what it was measured on."""
    rule = ["---", "---"] + ["---:"] * (len(COLUMNS) - 2)
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, rule, *table_rows(ledger))]
    return "\n".join([*lines, "", about(ledger)]) + "\n"


def about(ledger: Ledger) -> str:
    """What was measured, where and how, in a line."""
    row = ledger.rows[0]
    documents = max((len(r["document_bytes"]) for r in ledger.rows if "document_bytes" in r), default=0)
    items = max((len(r["correct"]) for r in ledger.rows if "correct" in r), default=0)
    task = f"task {row['task']}" if row["task"] else "no task"
    seeds = len({r["seed"] for r in ledger.rows})
    commits = ", ".join(dict.fromkeys(r["commit"][:10] for r in ledger.rows))
    return (
        f"{row['corpus']}, {task}; {documents} held-out documents, {items} held-out "
        f"items; {seeds} seed(s); {row['device']}; commit {commits}; `{row['command']}`."
    )


def protocol(recipe: StudyRecipe) -> list[str]:
    """The rules of the experiment, in sentences."""
    budget = f"{recipe.budget_seconds:g} s"
    if recipe.budget_flops:
        budget = f"{recipe.budget_flops:.3g} FLOPs"
    return [
        "Every method answers the same held-out documents and items, drawn once, one request at a time.",
        f"Training gets {budget} on the text and as much on the task, per size, seed and try.",
        f"Every method with something to set tries {recipe.tries} settings on the first seed; the "
        "validation split chooses (also the checkpoint), and the test split is read once.",
        f"An method with so many labelled items has as many to validate on, {LEAST} at least, as far "
        "as there are; they are paid for as labels.",
        f"Whatever an method learns, retrieves or shows is refused if a held-out text stands in it: "
        f"{SAME:.0%} of its runs of {RUN} characters. Overlap is the share of all held-out runs "
        "that stand anywhere in what an method saw.",
        "Intervals: 95 %, bootstrapped over held-out documents or items, the same for every method, "
        "with Student's t over seeds.",
        "Seconds are the machine's, one cell at a time: steps of training, and of the search also "
        "the answers that chose. Loading, checkpoints, the evaluations that choose one, and the "
        "test's answers are not training.",
        "FLOPs are those of products of matrices, the optimiser's included; on text, those of "
        "the validation that chooses a setting are not in them.",
        "The same seeds give the same numbers again on the same kind of CPU where the budget is in "
        "FLOPs; seconds end a training where the machine is by then.",
        "Tokens, FLOPs and seconds of a request hold its share of what is read once for all.",
        *(f"{name} sees {method.sees}." for name, method in METHODS.items()),
    ]


def page(ledger: Ledger, recipe: StudyRecipe, said: list[Sentence]) -> str:
    """The report as one HTML file."""
    row = ledger.rows[0]
    curves: dict[str, dict] = {"text": {}, "task": {}}
    for axis, method, size in ledger.groups:
        value, low, high = ledger.score(axis, method, size).estimate
        alone = is_level(axis, method)
        curves[axis].setdefault(method, []).append(
            {"size": size, "value": value, "low": low, "high": high, "level": alone}
        )
    for its in curves.values():
        for points in its.values():
            points.sort(key=lambda point: point["size"])
    content = {
        "corpus": row["corpus"],
        "about": about(ledger).replace("`", ""),
        "methods": [{"name": name} for name in METHODS if any(key[1] == name for key in ledger.groups)],
        "verdict": [sentence._asdict() for sentence in said],
        "curves": curves,
        "captions": CAPTIONS,
        "decision": decisions(ledger),
        "written": {axis: written(ledger, axis) for axis in ("text", "task")},
        "protocol": protocol(recipe),
        "environment": f"{row['device']}; "
        + ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        + f"; commit {row['commit']}; {row['command']}",
        "price": recipe.price_per_hour,
        "labelPrice": recipe.price_per_label,
        "requests": recipe.requests,
        "rows": flat([shown(row) for row in ledger.rows]),
    }
    template = files("compare").joinpath("report.html").read_text(encoding="utf-8")
    text = to_json(content).replace("<", "\\u003c")
    return template.replace("__DATA__", text)


def flat(rows: list[dict]) -> list[dict]:
    """Rows that all have the same keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "command"))
    return [{key: row.get(key) for key in keys} for row in rows]


def shown(row: dict) -> dict:
    """What of a row fits into a table: no lists of single items, but how the setting was found."""
    plain = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
    return plain | {key: json.dumps(row[key]) for key in ("setting", "search") if row.get(key)}


def decisions(ledger: Ledger) -> list[dict]:
    """What the decision table needs: every method on the task, with every number of labelled items.

    "beaten" names those that are measurably better than it.
    """
    groups = [(method, size) for axis, method, size in ledger.groups if axis == "task"]
    scores = [ledger.score("task", method, size) for method, size in groups]
    found = []
    for (method, size), score in zip(groups, scores, strict=True):
        rows = ledger.at("task", method, size)
        value, low, high = score.estimate
        better = [i for i, other in enumerate(scores) if other.minus(score).estimate.low > 0]
        found.append(
            {
                "method": method,
                "size": size,
                "score": value,
                "low": low,
                "high": high,
                "beaten": better,
                "ece": calibration_error(rows),
                **cost_of(rows, needed(ledger, method))._asdict(),
            }
        )
    return found


def written(ledger: Ledger, axis: str) -> list[dict]:
    """What every method wrote after the same held-out prompts, side by side."""
    found: dict[str, dict] = {}
    for method in ledger.methods(axis):
        for each in ledger.largest(axis, method)[0].get("written", []):
            prompt = found.setdefault(each["prompt"], {**each, "by": []})
            prompt["by"].append({"method": method, "text": each["text"]})
    return list(found.values())


def plot(ledger: Ledger, path: Path) -> None:
    """Curves of both axes with intervals; what learns nothing of that size as level lines."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs: pip install -e '.[compare]'") from None
    dark_and_pale = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = dict(zip(reversed(METHODS), dark_and_pale[::2] + dark_and_pale[1::2], strict=True))
    figure = Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, axis in zip(panels, ("text", "task"), strict=True):
        methods = ledger.methods(axis)
        for number, method in enumerate(methods):
            sizes = ledger.sizes(axis, method)
            scores = [ledger.score(axis, method, size).estimate for size in sizes]
            colour, style = colours[method], "--" if method in BASELINES else "-"
            if is_level(axis, method):
                panel.axhline(scores[0].value, color=colour, linestyle=":", label=method)
                continue
            reach = [[s.value - s.low for s in scores], [s.high - s.value for s in scores]]
            beside = [size * 1.03 ** (number - len(methods) / 2) for size in sizes]  # not on another
            panel.errorbar(
                beside,
                [s.value for s in scores],
                reach,
                color=colour,
                linestyle=style,
                elinewidth=1,
                marker="os^"[number % 3],
                markersize=4,
                label=method,
            )
        panel.set_xscale("log")
        known = sorted(
            {size for method in methods if not is_level(axis, method) for size in ledger.sizes(axis, method)}
        )
        panel.set_xticks(known, [f"{100 * s:g} %" if axis == "text" else f"{s:g}" for s in known])
        panel.minorticks_off()
        panel.set_title(CAPTIONS[axis], fontsize=10)
        panel.set_xlabel({"text": "share of the training documents", "task": "labelled items"}[axis])
        panel.grid(alpha=0.3)
        if methods:
            panel.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.11))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def report(folder: Path) -> None:
    """Write report.html, table.md, verdict.md and plots/curves.png; print table and verdict."""
    ledger = Ledger.read(folder)
    recipe = load(StudyRecipe, folder / "config.toml")
    said = verdict(ledger, recipe.requests, recipe.price_per_hour, recipe.price_per_label)
    write_atomically(folder / "table.md", markdown(ledger))
    text = "".join(f"{number}. {s.text}\n" for number, s in enumerate(said, 1))
    write_atomically(folder / "verdict.md", text)
    write_atomically(folder / "report.html", page(ledger, recipe, said))
    plot(ledger, folder / "plots" / "curves.png")
    row = ledger.rows[0]
    table = Table(title=f"{escape(printable(row['corpus']))}: from scratch, fine-tune or prompt?")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number > 1 else "left", no_wrap=number == 0)
    for cells in table_rows(ledger):
        table.add_row(*(escape(printable(cell)) for cell in cells))
    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=180)
    screen.print(table)
    screen.print(printable(text), markup=False, highlight=False)


def main() -> None:
    """Entry point of `python -m compare.report`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="STUDY-DIR")
    named = parser.parse_args().folder
    folder = named.parent if named.is_file() else named
    report(folder)
    show(f"written: {folder / 'report.html'}, table.md, verdict.md, plots/curves.png")


if __name__ == "__main__":
    run_command(main)
