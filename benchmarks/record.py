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
    about = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }
    path = folder() / f"{name}.json"
    path.write_text(json.dumps(about | result, indent=2) + "\n")
    return path


def _commit() -> str:
    # Results of the same call, which stand in the tree, make no other state of the code.
    code = ["--", ".", ":!benchmarks/results", ":!kernels/results"]
    said = [
        subprocess.run(["git", *command], cwd=RESULTS.parent.parent, capture_output=True, text=True)
        for command in (["describe", "--always"], ["status", "--porcelain", *code])
    ]
    return said[0].stdout.strip() + ("-dirty" if said[1].stdout.strip() else "")
