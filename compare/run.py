"""Run a study: every arm on the same held-out text and items, with the same training seconds.

    python -m compare.run STUDY.toml [--run-dir DIR] [--resume | --overwrite] [--dry-run]

Arms run one after another, each in a process of its own. An arm that has finished is not run again
by --resume. Writes ledger.jsonl, table.md, verdict.md and plots/study.png into the run directory.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from compare.arms import ARMS, SEEDED, TRAINED
from compare.report import report
from configs.cli import UserError, parse, run_command, to_toml
from configs.console import say
from configs.study import StudyRecipe
from data.tasks import load_task
from model.load import load_model
from model.sample import sample
from train.run import check_run, run_directory_arguments


def plan(study: StudyRecipe) -> list[tuple[str, int]]:
    """The arms and seeds in the order in which they run."""
    return [
        (arm, seed) for arm in ARMS for seed in (study.seeds if arm in SEEDED else study.seeds[:1])
    ]


def provenance(study: StudyRecipe) -> dict:
    """What every row of the ledger carries besides its measurements."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty"],
        capture_output=True,
        text=True,
    )
    return {
        "corpus": study.data.corpus,
        "task": study.task.name,
        "budget_seconds": study.budget_seconds,
        "config_hash": hashlib.sha256(to_toml(study).encode()).hexdigest(),
        "commit": commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores, {_cpu()}",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy")}
        | {"python": platform.python_version()},
        "command": shlex.join(["python", "-m", "compare.run", *sys.argv[1:]]),
    }


def run_arm(folder: Path, arm: str, seed: int, about: dict) -> dict:
    """Run one arm in its own process, unless its row is there; `about` goes into a new row.

    Raises UserError if the process fails.
    """
    path = folder / "arms" / f"{arm}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    say(f"=== {arm}, seed {seed}")
    measured = path.with_suffix(".measured")
    command = [sys.executable, "-m", "compare.arms", *map(str, (folder, arm, seed, measured))]
    status = subprocess.run(command).returncode
    if status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if status:
        raise UserError(
            f"arm {arm}, seed {seed} failed with status {status} (see above); what has finished "
            "is kept, and --resume goes on"
        )
    row = {"arm": arm, "seed": seed, **about, **json.loads(measured.read_text())}
    measured.write_text(json.dumps(row))
    measured.rename(path)
    say(f"=== {arm}, seed {seed}: {row['wall_seconds']:.0f} s")
    return row


def write_ledger(folder: Path, rows: list[dict]) -> None:
    """One JSON object per line, replaced as a whole."""
    aside = folder / "ledger.tmp"
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aside.replace(folder / "ledger.jsonl")


def main() -> int:
    """Entry point of `python -m compare.run`."""
    parser = run_directory_arguments()
    parser.add_argument("--dry-run", action="store_true", help="say what would run and stop")
    study, own = parse(StudyRecipe, parser)
    folder = own.run_dir or Path("runs") / f"study-{Path(own.config).stem}"
    todo = plan(study)
    if own.dry_run:
        task = load_task(study.task, study.data)
        print(f"{len(todo)} arm runs in {folder}, {len(task.test)} test items:")
        for arm, seed in todo:
            trains = f", {study.budget_seconds:.0f} s of training" if arm in TRAINED else ""
            print(f"  {arm}, seed {seed}{trains}")
        return 0
    check_run(folder, study, own.resume, own.overwrite)
    if not own.resume:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "arms").mkdir(parents=True)
        (folder / "config.toml").write_text(to_toml(study), encoding="utf-8")
    about = provenance(study)
    rows = []
    try:
        for arm, seed in todo:
            rows.append(run_arm(folder, arm, seed, about))
            write_ledger(folder, rows)
    except KeyboardInterrupt:
        say(f"interrupted; {len(rows)} arm runs are kept, go on with --resume")
        return 130
    report(folder)
    tune = next(folder.glob("scratch-text-*"), None)
    if tune is not None:
        model, tokenizer = load_model(tune)
        *_, (stream,) = sample(model, tokenizer, "", max_new_tokens=300, temperature=0.7)
        (folder / "sample.txt").write_text(stream.text + "\n", encoding="utf-8")
        print(f"A new document, by the model that was trained from scratch:\n\n{stream.text}\n")
    print(f"Written to {folder}/:")
    for path in sorted(p for p in folder.iterdir()):
        print(f"  {path}{'/' if path.is_dir() else ''}")
    return 0


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    run_command(main)
