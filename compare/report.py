"""Report of a study from its ledger alone: table, learning curves, verdict and an HTML page.

    python -m compare.report STUDY-DIR

Reads STUDY-DIR/ledger.jsonl (its path may be given instead) and config.toml; writes to the same
folder answer.md, report.html (one file, works without a network), table.md, verdict.md and
plots/curves.png.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.atomic import to_json, write_atomically
from cli.console import printable, show
from cli.errors import run_command
from cli.recipes import Parser, load
from compare.analysis.answer import answer, options
from compare.analysis.bootstrap import calibration_error
from compare.analysis.forgetting import general_bits
from compare.analysis.ledger import Ledger, Sentence, name_of
from compare.analysis.verdict import describe_data, verdict
from compare.context import MAX_VALIDATION, MIN_VALIDATION
from compare.leaks import COPY_SHARE, NGRAM
from compare.methods import METHODS
from compare.methods.train import EVALUATIONS
from compare.pictures import (
    AXES,
    CAPTIONS,
    calibration,
    collect_samples,
    compute_curves,
    data_curves,
    decision_rows,
    forgetting,
    plot_curves,
    text_costs,
)
from configs.study_recipe import RATE_STEP, StudyRecipe

COLUMNS = (
    "method",
    "data",
    "bits/byte",
    "task score",
    "calibration error",
    "training and search s",
    "training and search FLOPs",
    "stored MiB",
    "prompt tokens/request",
    "s/request",
    "peak memory",
    "general bits/byte",
    "held-out overlap",
)
OPTION_COLUMNS = ("method", "quality", "to build", "1,000 requests", "data it needs", "choose it when")


def measured_at(ledger: Ledger) -> Iterator[tuple[str, str, float, float]]:
    """Axis, method, size and budget of everything measured: by size, then at the largest one by budget."""
    for axis, method, size in ledger.groups:
        yield axis, method, size, 1.0
        if size == ledger.sizes(axis, method)[-1]:
            for factor in sorted(f for at, name, f in ledger.budgets if (at, name) == (axis, method)):
                yield axis, method, size, factor


def table_rows(ledger: Ledger) -> list[tuple[str, ...]]:
    """One row of COLUMNS per method, axis, size and budget: means over seeds, scores with intervals."""

    def show(value: float | None, form: str, empty: float | None = None) -> str:
        return "–" if value is None or value == empty else format(value, form)

    table: list[tuple[str, ...]] = []
    for axis, method, size, factor in measured_at(ledger):
        rows = ledger.measured(axis, method, size, factor)
        score = str(
            (ledger.score(axis, method, size) if factor == 1 else ledger.budget_score(axis, method, factor)).estimate
        )
        cost, general = ledger.cost(axis, method, size, factor), general_bits(rows)
        table.append(
            (
                method,
                describe_data(axis, method, size) + (f", {factor:g} times the budget" if factor != 1 else ""),
                score if axis == "text" else "–",
                score if axis == "task" else "–",
                show(calibration_error(rows), ".2f"),
                show(cost.fixed_seconds, ".0f", 0.0),
                show(cost.fixed_flops, ".2g", 0.0),
                show(cost.stored_bytes / 2**20, ".1f", 0.0),
                show(cost.prompt_tokens, ",.0f"),
                show(cost.request_seconds, ".3f"),
                f"{cost.peak_bytes / 2**30:.2f} GiB",
                show(statistics.mean(general) if general else None, ".3f"),
                show(max(row.get("overlap", 0.0) for row in rows), ".2%"),
            )
        )
    return table


def markdown(ledger: Ledger) -> str:
    """The table as Markdown, with a line that describes the study."""
    rule = ["---", "---"] + ["---:"] * (len(COLUMNS) - 2)
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, rule, *table_rows(ledger))]
    return "\n".join([*lines, "", describe_study(ledger)]) + "\n"


def describe_study(ledger: Ledger) -> str:
    """Corpus, task, held-out data, seeds, device, commits and command, in one line."""
    row = ledger.rows[0]
    documents = max((len(r["document_bytes"]) for r in ledger.rows if "document_bytes" in r), default=0)
    items = max((len(r["correct"]) for r in ledger.rows if "correct" in r), default=0)
    task = f"task {row['task']}" if row["task"] else "no task"
    seeds = len({r["seed"] for r in ledger.rows})
    commits = ", ".join(dict.fromkeys(r["commit"][:10] for r in ledger.rows))
    commands = {r["command"] for r in ledger.rows}
    command = f"`{row['command']}`" if len(commands) == 1 else f"{len(commands)} commands (in ledger.jsonl)"
    return (
        f"{row['corpus']}, {task}; {documents} held-out documents, {items} held-out "
        f"items; {seeds} seed(s); {row['device']}; commit {commits}; {command}."
    )


def option_rows(ledger: Ledger, recipe: StudyRecipe, axis: str) -> list[list[str]]:
    """The table to choose from, with its header; without columns that are empty."""
    found = options(ledger, recipe, axis)
    filled = [number for number in range(len(OPTION_COLUMNS)) if any(option[number] != "–" for option in found)]
    return [[row[number] for number in filled] for row in (OPTION_COLUMNS, *found)]


def protocol(recipe: StudyRecipe) -> list[str]:
    """The protocol of the experiment, in sentences."""
    factors = " and ".join(f"{factor:g}" for factor in recipe.budget_factors)
    return [
        "All methods are scored on the same held-out documents and items, sampled once, one request at a time.",
        f"Training budget: {recipe.budget_seconds:g} s on the text and the same on the task, for every size, seed and "
        "tried setting. They are spent as steps: a calibration on the idle machine measured each method's speed once.",
        *([f"On all of the text also {factors} times this budget."] if factors else []),
        f"Every training is evaluated at its start and at {EVALUATIONS} evenly spaced points, all methods on the same "
        "text or items; the best weights are kept. The budget does not count these evaluations.",
        f"Hyperparameter search: a method with hyperparameters tries {recipe.tries} settings, learning rates a factor "
        f"of {RATE_STEP:g} apart, with a seed of its own whose models are not scored on the test split. The validation "
        "split chooses the setting; the test split is read once per cell.",
        "A method that trains on some labelled items validates on as many others, at least "
        f"{MIN_VALIDATION} and at most {MAX_VALIDATION}; their labels are paid for too.",
        "Leak check: data for training, retrieval or prompts is refused if it contains a held-out text, that is at "
        f"least {COPY_SHARE:.0%} of its {NGRAM}-character n-grams. Overlap is the share of all held-out n-grams "
        "that occur anywhere in a method's data.",
        "Confidence intervals: 95 %, by bootstrap over groups of held-out documents or items and within them, with the "
        "same resamples for every method, and the error over seeds. “Best”, and “significantly better” or “worse” "
        "than a baseline, are corrected together for each axis, by Holm; crossings, what a prompt is worth, break-even "
        "and forgetting have uncorrected intervals.",
        "Seconds of training are the steps times the calibrated seconds of a step. They do not count loading, "
        "evaluations or the test. Seconds per request are measured in the cells.",
        "FLOPs count matrix products, those of the optimiser included. On text they do not count the "
        "validation that chooses a setting.",
        "The same seeds and calibration give the same numbers, but for seconds, on the same kind of CPU.",
        "Tokens, FLOPs and seconds per request include the request's share of the work that is done once for all.",
        *(f"{name} uses {method.data}." for name, method in METHODS.items()),
    ]


def render_html(ledger: Ledger, recipe: StudyRecipe, sentences: list[Sentence]) -> str:
    """The report as one HTML file."""
    row = ledger.rows[0]
    measured = sorted({m for _, m, _ in ledger.groups}, key=lambda m: (list(METHODS).index(name_of(m)), m))
    # Of every row the values that fit into a table cell: no per-item lists, search and setting as JSON.
    rows = [
        {key: value for key, value in row.items() if isinstance(value, str | int | float) and key != "command"}
        | {key: json.dumps(row[key]) for key in ("setting", "search") if row.get(key)}
        for row in ledger.rows
    ]
    columns = dict.fromkeys(key for row in rows for key in row)
    content = {
        "corpus": row["corpus"],
        "about": describe_study(ledger).replace("`", ""),
        "methods": [{"name": name, "family": METHODS[name_of(name)].family} for name in measured],
        "answer": answer(ledger, recipe),
        "options": [
            {"caption": CAPTIONS[axis], "rows": option_rows(ledger, recipe, axis)}
            for axis in AXES
            if ledger.methods(axis)
        ],
        "verdict": [sentence._asdict() for sentence in sentences],
        "curves": {axis: data_curves(ledger, axis) for axis in AXES},
        "compute": compute_curves(ledger),
        "textCosts": text_costs(ledger),
        "forgetting": forgetting(ledger),
        "calibration": calibration(ledger),
        "captions": CAPTIONS,
        "decision": decision_rows(ledger, recipe.task_margin),
        "samples": {axis: collect_samples(ledger, axis) for axis in ("text", "task")},
        "protocol": protocol(recipe),
        "environment": f"{row['device']}; "
        + ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        + f"; commit {row['commit']}",
        "price": recipe.price_per_hour,
        "labelPrice": recipe.price_per_label,
        "requests": recipe.requests,
        "rows": [{key: row.get(key) for key in columns} for row in rows],
    }
    template = files("compare").joinpath("report.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", to_json(content).replace("<", "\\u003c"))


def write_report(folder: Path) -> None:
    """Write answer.md, report.html, table.md, verdict.md and plots/curves.png; print the answer and its tables."""
    ledger = Ledger.read(folder)
    recipe = load(StudyRecipe, folder / "config.toml")
    sentences = verdict(ledger, recipe.requests, recipe.price_per_hour, recipe.price_per_label, recipe.task_margin)
    lines = answer(ledger, recipe)
    write_atomically(folder / "answer.md", answer_markdown(ledger, recipe, lines))
    write_atomically(folder / "table.md", markdown(ledger))
    text = "".join(f"{number}. {s.text}\n" for number, s in enumerate(sentences, 1))
    write_atomically(folder / "verdict.md", text)
    write_atomically(folder / "report.html", render_html(ledger, recipe, sentences))
    plot_curves(ledger, folder / "plots" / "curves.png")
    screen = Console(width=None if Console().is_terminal else 140)
    for axis in AXES:
        if ledger.methods(axis):
            table = Table(title=escape(printable(f"{ledger.rows[0]['corpus']}: {CAPTIONS[axis]}")))
            columns, *rows = option_rows(ledger, recipe, axis)
            for number, column in enumerate(columns):
                table.add_column(column, no_wrap=number == 0)
            for cells in rows:
                table.add_row(*(escape(printable(cell)) for cell in cells))
            screen.print(table)
    show("\n".join(lines))


def answer_markdown(ledger: Ledger, recipe: StudyRecipe, lines: Sequence[str]) -> str:
    """The answer, then a table per axis of all methods at their largest size."""
    parts = ["\n".join(f"- {line}" if not line.startswith("  ") else f"  {line}" for line in lines)]
    for axis in AXES:
        if ledger.methods(axis):
            columns, *others = option_rows(ledger, recipe, axis)
            rows = (columns, ["---"] * len(columns), *others)
            parts += [CAPTIONS[axis], "\n".join("| " + " | ".join(cells) + " |" for cells in rows)]
    return "\n\n".join([*parts, describe_study(ledger)]) + "\n"


def main() -> None:
    """Entry point of `python -m compare.report`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="STUDY-DIR")
    path = parser.parse_args().folder
    folder = path.parent if path.is_file() else path
    write_report(folder)
    show(f"written: {folder / 'report.html'}, answer.md, table.md, verdict.md, plots/curves.png")


if __name__ == "__main__":
    run_command(main)
