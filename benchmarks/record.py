"""Where a benchmark's result goes, with what is needed to read it later."""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def record(name: str, result: dict) -> Path:
    """Write benchmarks/results/NAME.json with date, machine, versions, commit and command."""
    commit = subprocess.run(
        ["git", "-C", RESULTS, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    about = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(about | result, indent=2) + "\n")
    return path
