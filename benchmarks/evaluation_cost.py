"""Evaluation time as a share of a run's wall time.

    python -m train.pretrain configs/own-text.toml --data.corpus CORPUS --train.max-seconds 600
    python -m benchmarks.evaluation_cost runs/own-text

Reads the metrics of a finished run that was not resumed. The wall time starts when the run directory
is created (.homegrown) and ends with its last file (sample.txt). It excludes corpus preparation and
includes the micro-batch search and the trial of torch.compile. Writes
results/DEVICE/evaluation_cost.json.
"""

import argparse
from pathlib import Path

from benchmarks.record import record
from cli.console import show
from cli.recipes import read_toml
from train.metrics import read_metrics


def measure(run: Path) -> dict:
    """Seconds of training and of evaluation (periodic and whole split), and the share of wall time."""
    rows = read_metrics(run)
    periodic = [row["evaluation_seconds"] for row in rows if "evaluation_seconds" in row]
    whole = [row["whole_evaluation_seconds"] for row in rows if "whole_evaluation_seconds" in row]
    wall = (run / "sample.txt").stat().st_mtime - (run / ".homegrown").stat().st_mtime
    return {
        "corpus": Path(read_toml(run / "config.toml")["data"]["corpus"]).name,
        "max_seconds": read_toml(run / "config.toml")["train"]["max_seconds"],
        "wall_seconds": wall,
        "training_seconds": max(row["seconds"] for row in rows if "seconds" in row),
        "periodic_evaluations": len(periodic),
        "periodic_seconds": sum(periodic),
        "whole_split_seconds": sum(whole),
        "evaluation_share_of_wall": (sum(periodic) + sum(whole)) / wall,
    }


def main() -> None:
    """Entry point of `python -m benchmarks.evaluation_cost`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    found = measure(parser.parse_args().run)
    show(f"evaluation: {found['evaluation_share_of_wall']:.1%} of {found['wall_seconds']:.0f} s")
    show(f"written: {record('evaluation_cost', found)}")


if __name__ == "__main__":
    main()
