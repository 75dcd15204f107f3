"""Cells of a study, measured in this process."""

import json

from compare.measure import measure
from compare.rows import EDITION


def run_cell(study, cell):
    """Measure a cell and save its row, as compare.run does."""
    row = measure(study, cell)
    saved = {"id": cell.name, "edition": EDITION, **cell._asdict(), **row}
    (study.folder / "cells" / f"{cell.name}.json").write_text(json.dumps(saved))
    return row
