"""Where a benchmark's result goes, with what is needed to read it later."""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def folder() -> Path:
    """Where the results of this device are: benchmarks/results/DEVICE."""
    device = f"{os.cpu_count()}-cpu-cores"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = RESULTS / device
    path.mkdir(parents=True, exist_ok=True)
    return path


def record(name: str, result: dict) -> Path:
    """Write results/DEVICE/NAME.json with date, machine, versions, commit and command."""
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
    path = folder() / f"{name}.json"
    path.write_text(json.dumps(about | result, indent=2) + "\n")
    return path
