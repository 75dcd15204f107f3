"""The studies that are kept in the repository are whole, and say what their ledgers say."""

from pathlib import Path

import pytest

from compare.analysis.ledger import Ledger
from compare.analysis.verdict import verdict
from compare.arms import ARMS
from compare.report import markdown
from compare.run import plan
from configs.cli import load
from configs.study import StudyRecipe

STUDIES = sorted(p.parent for p in Path("benchmarks/studies").glob("*/verdict.md"))


@pytest.fixture(params=STUDIES, ids=lambda p: p.name)
def folder(request):
    return request.param


def test_every_cell_is_there_and_nothing_is_left_to_run(folder, command):
    recipe = load(StudyRecipe, folder / "config.toml")
    rows = Ledger.read(folder).rows
    assert [row["id"] for row in rows] == [cell.name for cell in plan(recipe)]
    assert len(recipe.seeds) >= 3
    assert min(len(recipe.shares), len(recipe.labels)) >= 3
    done = command("compare.run", f"configs/study/{folder.name}.toml", "--run-dir", folder,
                   "--dry-run", timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{len(rows)} cells, 0 to run" in done.stdout


def test_table_and_verdict_follow_from_the_ledger(folder):
    ledger = Ledger.read(folder)
    recipe = load(StudyRecipe, folder / "config.toml")
    said = verdict(ledger, recipe.requests, recipe.price_per_hour, recipe.price_per_label)
    assert (folder / "table.md").read_text() == markdown(ledger)
    told = "".join(f"{number}. {s.text}\n" for number, s in enumerate(said, 1))
    assert (folder / "verdict.md").read_text() == told


def test_every_arm_had_as_many_tries_and_as_long(folder):
    recipe = load(StudyRecipe, folder / "config.toml")
    for row in Ledger.read(folder).rows:
        tries = len(ARMS[row["arm"]].settings(recipe, row["axis"]))
        chooses = tries > 1 and row["seed"] == recipe.seeds[0]
        assert len(row["search"]) == (tries if chooses else 0)
        if "training_steps" in row:  # the last step may end after the budget
            assert row["training_seconds"] < 1.25 * recipe.budget_seconds, row["id"]
