"""Every record contains its command, date and versions, as README states."""

import json
import re
from pathlib import Path

import pytest

RECORDS = sorted([*Path("benchmarks/results").rglob("*.json"), *Path("kernels/results").glob("*.json")])


@pytest.mark.parametrize("path", RECORDS, ids=str)
def test_record_contains_command_date_and_versions(path):
    found = json.loads(path.read_text())
    assert re.match(r"python -m (benchmarks|kernels)\.\w+", found["command"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", found["date"])
    assert "torch" in found["versions"]
