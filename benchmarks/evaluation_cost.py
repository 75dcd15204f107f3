"""What share of a run's wall time went into evaluation.

    python -m train.pretrain configs/own-text.toml --data.corpus CORPUS --train.max-seconds 600
    python -m benchmarks.evaluation_cost runs/own-text

Reads the metrics of a finished run. The wall time is from the moment that the run directory was
made (.homegrown in it) to its last file (sample.txt): preparing the corpus is not in it, finding
the micro-batch and trying the compiler are. The run must not have been resumed. Writes
results/DEVICE/evaluation_cost.json.
"""

import argparse
from pathlib import Path

from benchmarks.record import record
from cli.console import show
from cli.recipes import read_toml
from train.metrics import read_metrics


def measure(run: Path) -> dict:
    """Seconds of training, of periodic evaluations and of the last one; shares of the wall time."""
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
