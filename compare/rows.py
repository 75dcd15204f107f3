"""The rows of a study's ledger on disk."""

from pathlib import Path

from cli.atomic import parse_json, read_json
from cli.errors import UserError

CALIBRATION = "calibration"  # id of the first row of a ledger
EDITION = 2  # of the ledger's rows; those of another are refused


def read_rows(folder: Path) -> dict[str, dict]:
    """The measured rows of a study by id: those of the ledger, and of cells/ since it was written.

    Damaged files and lines are skipped. Raises UserError for rows of another edition.
    """
    found: dict[str, dict] = {}
    ledger = folder / "ledger.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    for row in (*map(parse_json, lines), *map(read_json, sorted((folder / "cells").glob("*.json")))):
        if isinstance(row, dict) and "id" in row:
            check_edition(folder, row)
            found[row["id"]] = row
    return found


def check_edition(folder: Path, row: dict) -> None:
    """Raises UserError for a row that another edition of this program measured."""
    if row.get("edition") != EDITION:
        raise UserError(
            f"{folder}: its ledger is of edition {row.get('edition', 1)} of the protocol, this program reads edition "
            f"{EDITION}; check out the commit {str(row.get('commit', '?'))[:10]}, or measure again with --overwrite"
        )
