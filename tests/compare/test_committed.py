"""The committed studies are complete, and their reports follow from their ledgers."""

import re
from pathlib import Path

import pytest

from cli.recipes import load
from compare.analysis.answer import answer
from compare.analysis.ledger import Ledger
from compare.analysis.verdict import verdict
from compare.context import Cell
from compare.methods.train import EVALUATIONS, speed_key, steps_in
from compare.plan import plan
from compare.report import answer_markdown, markdown
from configs.study_recipe import StudyRecipe

STUDIES_FOLDER = Path("benchmarks/studies")
STUDIES = sorted(p.parent for p in STUDIES_FOLDER.glob("*/verdict.md"))
GUIDED = ("folk-tunes", "aws-api")


@pytest.fixture(params=STUDIES, ids=lambda p: p.name)
def folder(request):
    return request.param


def test_every_cell_is_there_with_one_code_version(folder):
    recipe, ledger = load(StudyRecipe, folder / "config.toml"), Ledger.read(folder)
    rows = [*ledger.rows, *ledger.searches.values()]
    assert {row["id"] for row in rows} == {cell.name for cell in plan(recipe)}
    assert len({row["commit"] for row in rows}) == 1
    assert not rows[0]["commit"].endswith("-dirty")
    assert len(recipe.seeds) >= 3
    assert len(recipe.shares) >= 4


def test_answer_table_and_verdict_follow_from_the_ledger(folder):
    ledger = Ledger.read(folder)
    recipe = load(StudyRecipe, folder / "config.toml")
    sentences = verdict(ledger, recipe.requests, recipe.price_per_hour, recipe.price_per_label, recipe.task_margin)
    assert (folder / "table.md").read_text() == markdown(ledger)
    text = "".join(f"{number}. {s.text}\n" for number, s in enumerate(sentences, 1))
    assert (folder / "verdict.md").read_text() == text
    assert (folder / "answer.md").read_text() == answer_markdown(ledger, recipe, answer(ledger, recipe))


def test_all_methods_had_the_same_tries_budget_and_evaluations(folder):
    recipe, ledger = load(StudyRecipe, folder / "config.toml"), Ledger.read(folder)
    for row in ledger.searches.values():
        assert len(row["search"]) == recipe.tries
    for row in ledger.rows:
        if "training_steps" in row:
            speed = ledger.calibration["speeds"][speed_key(recipe, Cell(*(row[name] for name in Cell._fields)))][
                "step_seconds"
            ]
            assert row["training_steps"] == steps_in(recipe.budget_seconds * row["factor"], speed)
            assert row["evaluations"] == EVALUATIONS + 1


def test_the_results_quote_the_studies():
    """Tables of docs/results.md are rows of the studies' tables, quotations are sentences of their verdicts."""
    folders = [STUDIES_FOLDER / name for name in GUIDED]
    found: list[dict[str, list[str]]] = []
    for folder in folders:
        rows: dict[str, list[str]] = {}  # a method has a row for text and one for the task
        for line in (folder / "table.md").read_text().splitlines():
            if line.startswith("| "):
                method, source, *cells = (cell.strip() for cell in line.strip("|").split("|"))
                rows.setdefault(f"{method}, {source}", []).extend(cells)
        found.append(rows)
    verdicts = " ".join("".join((folder / "verdict.md").read_text() for folder in folders).split())
    results = Path("docs/results.md").read_text()
    shown, prose = [], []
    for paragraph in results.split("\n\n"):
        if paragraph.startswith("> "):
            quote = " ".join(paragraph.replace("\n> ", " ").removeprefix("> ").split())
            assert quote in verdicts
            shown.append(quote)
        elif paragraph.startswith(f"| | {' | '.join(GUIDED)} |") and "---:" in paragraph:
            for line in paragraph.splitlines()[2:]:
                name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
                for rows, cell in zip(found, cells, strict=True):
                    assert cell == "–" or cell in rows[name], (name, cell)
                shown += cells
        else:
            prose.append(paragraph)
    figures = re.findall(r"\d+\.\d{3}", " ".join(prose))
    assert set(figures) <= set(re.findall(r"\d+\.\d{3}", " ".join(shown)))
    assert len(shown) > 40
