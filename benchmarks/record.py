"""Time in turn, and write results to a JSON record with the metadata needed to reproduce them."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from cli.atomic import to_json, write_atomically

PACKAGES = ("torch", "triton", "numpy", "tokenizers", "transformers", "litgpt", "psutil")
RESULTS = Path(__file__).parent / "results"


def results_folder() -> Path:
    """The results folder of this device, benchmarks/results/DEVICE; created if it is missing."""
    device = f"{os.cpu_count()}-cpu-cores"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = RESULTS / device
    path.mkdir(parents=True, exist_ok=True)
    return path


def time_in_turn(
    works: dict[str, Callable[[], object]], rounds: int, calls: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of each of `works`, one value per round: a round runs each `calls` times, in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = clock()
            for _ in range(calls):
                work()
            times[name].append((clock() - started) / calls)
    return times


def record(name: str, result: dict) -> Path:
    """Write results/DEVICE/NAME.json: `result` with date, commit, command, machine and versions."""
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    about = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES if name in sys.modules},
    }
    path = results_folder() / f"{name}.json"
    write_atomically(path, to_json(about | result, 2) + "\n")
    return path


def _commit() -> str:
    # New results in the work tree do not make the code dirty.
    code = ["--", ".", ":!benchmarks/results", ":!kernels/results"]
    outputs = [
        subprocess.run(["git", *command], cwd=RESULTS.parent.parent, capture_output=True, text=True)
        for command in (["describe", "--always"], ["status", "--porcelain", *code])
    ]
    return outputs[0].stdout.strip() + ("-dirty" if outputs[1].stdout.strip() else "")
