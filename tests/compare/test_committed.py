"""The committed studies are complete, and their reports follow from their ledgers."""

import platform
import re
from pathlib import Path

import pytest

from cli.recipes import load
from compare.analysis.ledger import Ledger
from compare.analysis.verdict import verdict
from compare.methods import METHODS
from compare.plan import plan
from compare.report import markdown
from configs.study_recipe import StudyRecipe

STUDIES = sorted(p.parent for p in Path("benchmarks/studies").glob("*/verdict.md"))

GUIDED = ("folk-tunes", "aws-api")


@pytest.fixture(params=STUDIES, ids=lambda p: p.name)
def folder(request):
    return request.param


def test_every_cell_is_there_and_none_is_left_to_run(folder, command):
    recipe = load(StudyRecipe, folder / "config.toml")
    rows = Ledger.read(folder).rows
    assert [row["id"] for row in rows] == [cell.name for cell in plan(recipe)]
    assert len(recipe.seeds) >= 3
    assert min(len(recipe.shares), len(recipe.labels)) >= 3
    measured_on = rows[0]["versions"]["python"]
    if recipe.general == "python-stdlib" and platform.python_version() != measured_on:
        pytest.skip(f"python-stdlib is a different corpus in Python {measured_on}")
    done = command("compare.run", f"configs/study/{folder.name}.toml", "--run-dir", folder, "--dry-run", timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"{len(rows)} cells, 0 to run" in done.stdout


def test_table_and_verdict_follow_from_the_ledger(folder):
    ledger = Ledger.read(folder)
    recipe = load(StudyRecipe, folder / "config.toml")
    sentences = verdict(ledger, recipe.requests, recipe.price_per_hour, recipe.price_per_label)
    assert (folder / "table.md").read_text() == markdown(ledger)
    text = "".join(f"{number}. {s.text}\n" for number, s in enumerate(sentences, 1))
    assert (folder / "verdict.md").read_text() == text


def test_all_methods_had_the_same_tries_and_budget(folder):
    recipe = load(StudyRecipe, folder / "config.toml")
    for row in Ledger.read(folder).rows:
        tries = len(METHODS[row["arm"]].settings(recipe, row["axis"]))
        chooses = tries > 1 and row["seed"] == recipe.seeds[0]
        assert len(row["search"]) == (tries if chooses else 0)
        if "training_steps" in row:  # the last step begins before the budget's end, and ends after
            spent = row["training_seconds"] / recipe.budget_seconds
            assert 1 <= spent < 1.25, row["id"]


def test_the_guide_quotes_the_studies():
    """Tables of the guide are rows of the studies' tables, quotations are sentences of their verdicts."""
    folders = [Path("benchmarks/studies") / name for name in GUIDED]
    found: list[dict[str, list[str]]] = []
    for folder in folders:
        rows: dict[str, list[str]] = {}  # a method has a row for text and one for the task
        for line in (folder / "table.md").read_text().splitlines():
            if line.startswith("| "):
                method, source, *cells = (cell.strip() for cell in line.strip("|").split("|"))
                rows.setdefault(f"{method}, {source}", []).extend(cells)
        found.append(rows)
    verdicts = " ".join("".join((folder / "verdict.md").read_text() for folder in folders).split())
    guide = Path("docs/guide.md").read_text()
    shown, prose = [], []
    for paragraph in guide.split("\n\n"):
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
