"""A run directory: whether it may be written to, how a run starts in it and how it ends."""

import os
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from configs.cli import Parser, UserError, load, to_toml
from configs.console import say
from configs.schema import Section
from tokenizer.bpe import Tokenizer
from train.checkpoint import Progress


def run_directory_arguments() -> Parser:
    """The arguments that every training command shares."""
    parser = Parser(sys.modules["__main__"].__doc__, add_help=False)
    parser.add_argument("--run-dir", type=Path, help="default: runs/NAME-OF-THE-RECIPE")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    group.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    return parser


def check_run(run: Path, config: Section, resume: bool, overwrite: bool) -> None:
    """Raises UserError, before anything is made, if `run` may not be written to.

    With `resume` the recipe may differ from the saved one in [train] and [sample] only.
    """
    if resume:
        if not (run / "config.toml").exists():
            raise UserError(f"{run}: nothing to resume here; leave out --resume to start")
        saved = load(type(config), run / "config.toml")
        for table in type(config).model_fields:
            same = getattr(saved, table) == getattr(config, table)
            if not same and table not in ("train", "sample"):
                raise UserError(
                    f"{run}: was started with other [{table}] settings; use those, or start anew "
                    "with --overwrite"
                )
    elif run.exists() and any(run.iterdir()):
        if not overwrite:
            raise UserError(f"{run}: exists; go on with --resume, or replace it with --overwrite")
        if not (run / "config.toml").exists():
            raise UserError(f"{run}: is not a run directory, so --overwrite will not delete it")


def start_run(
    run: Path,
    config: Section,
    tokenizer: Tokenizer,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Make a run directory, complete in itself.

    With `overwrite` what is there is deleted; with `resume` only the recipe is written, whose
    [train] may have changed. Raises UserError if there is something and neither is given.
    """
    if overwrite:
        shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True, exist_ok=True)
    if not resume:
        if any(run.iterdir()):
            raise UserError(f"{run}: another process has started a run here")
        (run / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")


@dataclass(frozen=True)
class RunResult:
    """What a call of `train` did, over all resumptions."""

    progress: Progress
    bits_per_byte: float
    """Of the last evaluation; NaN if a signal came before one."""
    peak_bytes: int
    signal: int
    """The signal that ended the run early, or 0."""


class Signals:
    """Remembers SIGINT and SIGTERM instead of dying of them, so that a step can be finished."""

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        self.received = number
        say(f"{signal.Signals(number).name}: finishing this step, then saving")


def finish(result: RunResult, run: Path) -> int:
    """Say where everything is, or after a signal how to go on; returns the exit status."""
    progress = result.progress
    if not result.signal:
        say(
            f"done: {progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s, "
            f"{result.bits_per_byte:.4f} bits per byte on validation; everything is in {run}"
        )
        return 0
    words = [w for w in sys.argv[1:] if w not in ("--resume", "--overwrite")]
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else "train.pretrain"
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = "python" if local == "1" else f"torchrun --standalone --nproc-per-node {local}"
    say(
        f"{signal.Signals(result.signal).name}: saved step {progress.step}; go on with:\n"
        f"{start} -m {module} {shlex.join([*words, '--resume'])}"
    )
    return 128 + result.signal
