"""Table, plot and verdict of a study, drawn from its ledger alone.

    python -m compare.report STUDY-DIR

Reads STUDY-DIR/ledger.jsonl; writes table.md, verdict.md and plots/study.png beside it.
"""

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from compare.floors import FLOORS
from compare.stats import accuracy, bits_per_byte, difference
from configs.cli import Parser, UserError, run_command

COLUMNS = (
    "arm",
    "bits/byte",
    "task accuracy",
    "trained parameters",
    "training s",
    "training FLOPs",
    "prompt tokens",
    "s/request",
    "peak memory",
)


def read_ledger(folder: Path) -> dict[str, list[dict]]:
    """Rows by arm, in the order of the ledger. Raises UserError if there is no ledger."""
    path = folder / "ledger.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no ledger; run: python -m compare.run STUDY --run-dir {folder}")
    arms: dict[str, list[dict]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        arms.setdefault(row["arm"], []).append(row)
    return arms


def table_rows(arms: dict[str, list[dict]]) -> list[tuple[str, ...]]:
    """One row of COLUMNS per arm; the mean over seeds, with 95 % intervals for quality."""

    def mean(rows: list[dict], key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return float(np.mean(values)) if values else None

    def show(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    table: list[tuple[str, ...]] = []
    for arm, rows in arms.items():
        bits = str(bits_per_byte(rows) or "–")
        if arm == "compressors":
            bits = ", ".join(f"{tool} {v:.3f}" for tool, v in rows[0]["compressors"].items())
        table.append(
            (
                arm,
                bits,
                str(accuracy(rows) or "–"),
                show(mean(rows, "trained_parameters"), ",.0f"),
                show(mean(rows, "training_seconds"), ".0f"),
                show(mean(rows, "training_flops"), ".2g"),
                show(mean(rows, "prompt_tokens"), ",.0f"),
                show(mean(rows, "seconds_per_request"), ".3f"),
                f"{max(row['peak_bytes'] for row in rows) / 2**30:.2f} GiB",
            )
        )
    return table


def markdown(arms: dict[str, list[dict]]) -> str:
    """The table as Markdown, with what it was measured on."""
    row = next(iter(arms.values()))[0]
    rule = ["---"] + ["---:"] * (len(COLUMNS) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, rule, *table_rows(arms))]
    seeds = max(len(rows) for rows in arms.values())
    lines += ["", f"{row['corpus']}, task {row['task']}; {_held_out(arms)}; {seeds} seed(s); "
              f"{row['device']}; commit {row['commit'][:10]}; `{row['command']}`"]  # fmt: skip
    return "\n".join(lines) + "\n"


def verdict(arms: dict[str, list[dict]]) -> str:
    """One paragraph: what was measured, what was not, and who lost to a floor."""
    seeds = min((len(arms[arm]) for arm in ("scratch", "lora") if arm in arms), default=1)
    budget = next(iter(arms.values()))[0]["budget_seconds"]
    parts = [
        f"With {budget:.0f} s of training per trained arm on {_corpus(arms)}, {_held_out(arms)}:",
        *_text_verdict(arms),
        *_task_verdict(arms),
        *_cost_verdict(arms),
    ]
    if seeds < 3:
        parts.append(
            f"This is {seeds} seed(s): the intervals cover the choice of held-out documents and "
            "items, not of the training seed, so none of it is a result before 3 seeds."
        )
    return " ".join(parts) + "\n"


def _corpus(arms: dict[str, list[dict]]) -> str:
    return next(iter(arms.values()))[0]["corpus"]


def _held_out(arms: dict[str, list[dict]]) -> str:
    documents = next(len(row["document_bytes"]) for rows in arms.values() for row in rows)
    items = next((len(r["correct"]) for rows in arms.values() for r in rows if "correct" in r), 0)
    return f"{documents} held-out documents and {items} held-out items"


def _text_verdict(arms: dict[str, list[dict]]) -> list[str]:
    scores = {arm: score for arm, rows in arms.items() if (score := bits_per_byte(rows))}
    if not scores:
        return []
    order = sorted(scores, key=lambda arm: scores[arm].value)
    parts = []
    floor = None
    if "compressors" in arms:
        floor = min(arms["compressors"][0]["compressors"].values())
    best = order[0]
    if len(order) > 1:
        gap = difference(arms[order[1]], arms[best], "document_bits")
        if gap.low > 0:
            parts.append(
                f"{best} predicts the text with the fewest bits per byte ({scores[best]}), "
                f"{gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] below {order[1]} "
                f"({scores[order[1]].value:.3f})."
            )
        else:
            parts.append(
                f"between {best} ({scores[best]} bits per byte) and {order[1]} "
                f"({scores[order[1]]}) no difference was measured."
            )
    if floor is not None:
        losers = [arm for arm in order if scores[arm].high > floor]
        if losers:
            parts.append(
                f"A compressor that has seen the training text needs {floor:.3f}: "
                f"{_names(losers)} {'does' if len(losers) == 1 else 'do'} not beat it."
            )
        if "zero-shot" in scores:
            ratio = scores["zero-shot"].value / floor
            far = "far from" if ratio > 1 else "near to"
            parts.append(
                f"Zero-shot over compressor is {ratio:.2f}: the corpus is {far} what the "
                "foundation has seen."
            )
    return parts


def _task_verdict(arms: dict[str, list[dict]]) -> list[str]:
    scores = {arm: score for arm, rows in arms.items() if (score := accuracy(rows))}
    models = sorted(
        (arm for arm in scores if arm not in FLOORS), key=lambda a: scores[a].value, reverse=True
    )
    if len(models) < 2:
        return []
    first, second = models[:2]
    gap = difference(arms[first], arms[second], "correct")
    if gap.low > 0:
        parts = [f"On the task {first} answers most items ({scores[first]}), above {second} "
                 f"({scores[second].value:.3f})."]  # fmt: skip
    else:
        parts = [f"On the task {first} ({scores[first]}) and {second} ({scores[second]}): no "
                 "difference measured."]  # fmt: skip
    for floor in ("tfidf-logistic", "majority-class"):
        if floor in scores:
            losers = [a for a in models if difference(arms[a], arms[floor], "correct").low <= 0]
            if len(losers) == len(models):
                parts.append(f"No arm beats {floor} ({scores[floor].value:.3f}).")
            elif losers:
                verb = "does" if len(losers) == 1 else "do"
                parts.append(
                    f"{_names(losers)} {verb} not beat {floor} ({scores[floor].value:.3f})."
                )
    return parts


def _cost_verdict(arms: dict[str, list[dict]]) -> list[str]:
    seconds = {
        arm: float(np.mean([row["seconds_per_request"] for row in rows]))
        for arm, rows in arms.items()
        if arm not in FLOORS and rows[0].get("seconds_per_request")
    }
    if len(seconds) < 2:
        return []
    fast, slow = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    return [
        f"A request costs {seconds[fast] * 1000:.0f} ms with {fast} and "
        f"{seconds[slow] * 1000:.0f} ms with {slow}: {seconds[slow] / seconds[fast]:.0f} times."
    ]


def _names(arms: list[str]) -> str:
    return arms[0] if len(arms) == 1 else f"{', '.join(arms[:-1])} and {arms[-1]}"


def plot(arms: dict[str, list[dict]], path: Path) -> None:
    """Bits per byte and task accuracy by arm with intervals; floors as dashed lines."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs: pip install -e '.[compare]'") from None
    models = [arm for arm in arms if arm not in FLOORS]
    colours = {arm: f"C{i}" for i, arm in enumerate(models)}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels = (
        (left, bits_per_byte, "held-out text: bits per byte (less is better)"),
        (right, accuracy, "task accuracy (more is better)"),
    )
    for axes, estimate, title in panels:
        scored = {arm: estimate(arms[arm]) for arm in reversed(models)}
        found = {arm: score for arm, score in scored.items() if score is not None}
        for position, (arm, score) in enumerate(found.items()):
            reach = [[score.value - score.low], [score.high - score.value]]
            axes.barh(position, score.value, xerr=reach, color=colours[arm], capsize=3)
            label = axes.annotate(
                f"{score.value:.3f}", (score.high, position), (6, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        axes.set_yticks(range(len(found)), list(found))
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
    floors = []
    if "compressors" in arms:
        floors += [(left, k, v) for k, v in arms["compressors"][0]["compressors"].items()]
    for arm in ("majority-class", "tfidf-logistic"):
        if arm in arms and (reached := accuracy(arms[arm])):
            floors.append((right, arm, reached.value))
    for number, (panel, name, floor) in enumerate(floors):
        colour = "black" if number % 2 else "grey"
        panel.axvline(floor, linestyle="--", color=colour, label=name)
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def report(folder: Path) -> None:
    """Write table.md, verdict.md and plots/study.png; print table and verdict."""
    arms = read_ledger(folder)
    (folder / "table.md").write_text(markdown(arms), encoding="utf-8")
    (folder / "verdict.md").write_text(verdict(arms), encoding="utf-8")
    plot(arms, folder / "plots" / "study.png")
    table = Table(title=f"{_corpus(arms)}: from scratch, fine-tune or prompt?")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    for row in table_rows(arms):
        table.add_row(*row)
    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=150)
    screen.print(table)
    screen.print(verdict(arms), markup=False, highlight=False)


def main() -> None:
    """Entry point of `python -m compare.report`."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="STUDY-DIR")
    folder = parser.parse_args().folder
    report(folder)
    print(f"written: {folder / 'table.md'}, {folder / 'verdict.md'}, {folder / 'plots/study.png'}")


if __name__ == "__main__":
    run_command(main)
