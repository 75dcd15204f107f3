"""A run directory: whether it may be written to, how a run starts in it and how it ends."""

import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from cli.atomic import atomic_folder, try_lock, write_atomically
from cli.console import say
from cli.errors import UserError
from cli.recipes import Parser, load, to_toml
from cli.revisions import resumed_revision
from configs.schema import DataConfig, Section
from data.corpora import pin_revision
from model.load import pinned
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.loop import RunResult

T = TypeVar("T", bound=Section)
MARKER = ".homegrown"  # a file in every folder that --overwrite may delete


def run_directory_arguments() -> Parser:
    """The arguments that every training command shares."""
    parser = Parser(sys.modules["__main__"].__doc__, add_help=False)
    parser.add_argument("--run-dir", type=Path, help="default: runs/NAME-OF-THE-RECIPE")
    parser.add_argument("--profile", metavar="FIRST:LAST", help="profile these steps, as 10:13")
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
                    f"{run}: was started with other [{table}] settings; use those, or start anew with --overwrite"
                )
    elif run.exists() and any(run.iterdir()):
        if not overwrite:
            raise UserError(f"{run}: exists; go on with --resume, or replace it with --overwrite")
        check_marker(run)


def check_marker(folder: Path) -> None:
    """Raises UserError if a folder is not empty and none of ours: it is not deleted."""
    if any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(
            f"{folder}: is not a run directory (it holds no file {MARKER}), so --overwrite will "
            "not delete it; use another --run-dir"
        )


def load_saved_recipe(run: Path, kind: type[T], resume: bool) -> T | None:
    """The recipe that a run was started with, where there is one to resume."""
    return load(kind, run / "config.toml") if resume and (run / "config.toml").exists() else None


def pin_recipe(recipe: T, saved: T | None) -> T:
    """`recipe` with the commit of each dataset and model that it names on the hub.

    Those of the `saved` recipe stay, where there is one: a branch may have moved since the run
    began. Raises UserError if the hub does not answer.
    """
    resolve = {"base": pinned, "foundation": pinned, "general": pin_revision}
    changes: dict = {
        name: ask(resumed_revision(getattr(recipe, name), getattr(saved, name, "")))
        for name, ask in resolve.items()
        if name in type(recipe).model_fields
    }
    data: DataConfig = getattr(recipe, "data")  # noqa: B009 (each of our recipes has one)
    before = getattr(saved, "data").corpus if saved else ""  # noqa: B009
    corpus = pin_revision(resumed_revision(data.corpus, before))
    return recipe.model_copy(update=changes | {"data": data.model_copy(update={"corpus": corpus})})


def should_resume(run: Path, resume: bool) -> bool:
    """Whether to resume: if asked to, or if torchrun or SLURM restarted us after a failure."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    restarted = any(os.environ.get(name, "0") != "0" for name in counts)
    return resume or (restarted and (run / "config.toml").exists())


def resolve_recipe(recipe: T, run: Path, ranks: Ranks, resume: bool, overwrite: bool) -> T:
    """The recipe with hub names pinned; the main rank has then checked that `run` may be written to.

    Raises UserError as `check_run` and `pin_recipe` do. Call it inside `main_process_first`.
    """
    if not ranks.is_main:  # take what the main rank has pinned and written
        return load_saved_recipe(run, type(recipe), True) or recipe
    recipe = pin_recipe(recipe, load_saved_recipe(run, type(recipe), resume))
    check_run(run, recipe, resume, overwrite)
    return recipe


def start_run(
    run: Path, config: Section, tokenizer: Tokenizer, *, resume: bool = False, overwrite: bool = False
) -> IO[str]:
    """Make a run directory, complete in itself, and lock it; the lock holds until it is closed.

    With `overwrite` what is there is deleted; with `resume` only the recipe is written, whose
    [train] may have changed. Raises UserError if there is something and neither is given, or if
    another process is at work there.
    """
    if resume:
        lock = lock_run(run)
        write_config(run, config)
        return lock
    with new_run_folder(run, overwrite) as aside:
        tokenizer.save(aside)
        write_config(aside, config)
        if sys.platform != "win32":  # which cannot rename a folder that holds an open file
            lock = lock_run(aside)
    return lock_run(run) if sys.platform == "win32" else lock


@contextmanager
def new_run_folder(run: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to be filled, which then stands at `run` as a whole at once, or not at all.

    With `overwrite` what is there is deleted. Raises UserError if it is not ours, or another
    process is at work there.
    """

    def keep_existing(there: Path) -> bool:
        if not overwrite and any(there.iterdir()):
            raise UserError(f"{run}: another process has started a run here")
        check_marker(there)
        lock_run(there).close()
        return False

    with atomic_folder(run, keep_existing) as aside:
        (aside / MARKER).write_text("A folder that homegrown has made; --overwrite deletes it.\n")
        yield aside


def write_config(run: Path, config: Section) -> None:
    """The recipe of a run, replaced as a whole."""
    write_atomically(run / "config.toml", to_toml(config))


def lock_run(run: Path) -> IO[str]:
    """Lock a run directory until what is returned is closed. Raises UserError if it is in use."""
    file = open(run / "lock", "a+", encoding="utf-8")
    if not try_lock(file):
        with file:
            file.seek(0)
            owner = file.read().strip() or "another process"
        raise UserError(f"{run}: is in use by {owner}; wait for it, or use another --run-dir")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def resume_command() -> str:
    """The command line of this process with --resume."""
    words = [w for w in sys.argv[1:] if w not in ("--resume", "--overwrite")]
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else "train.pretrain"
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = "python" if local == "1" else f"torchrun --standalone --nproc-per-node {local}"
    return f"{start} -m {module} {shlex.join([*words, '--resume'])}"


@contextmanager
def handle_interrupt() -> Iterator[None]:
    """Within it a Ctrl-C or SIGTERM says how to go on before the process ends.

    The loop has its own `Signals`; this is for what comes before the first step (a trial of the
    compiler) and after the last (what is measured then).
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; go on with:\n{resume_command()}")
        raise SystemExit(130) from None


def report_result(result: RunResult, run: Path) -> int:
    """Say where everything is, or after a signal how to go on; returns the exit status."""
    progress = result.progress
    if not result.signal:
        say(
            f"done: {progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s, "
            f"{result.bits_per_byte:.4f} bits per byte on validation; everything is in {run}"
        )
        return 0
    name = signal.Signals(result.signal).name
    say(f"{name}: saved step {progress.step}; go on with:\n{resume_command()}")
    return 128 + result.signal
