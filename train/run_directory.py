"""The run directory: creation, checks, locking, resume, and the exit message of a run."""

import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO, TypeVar

from cli.atomic import atomic_folder, try_lock, write_atomically
from cli.console import say
from cli.errors import UserError
from cli.recipes import Parser, load, to_toml
from cli.revisions import resumed_revision
from configs.schema import DataConfig, Section
from data.corpora import pin_dataset
from model.load import pin_model
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.loop import RunResult

T = TypeVar("T", bound=Section)
MARKER = ".homegrown"  # --overwrite deletes only folders that hold this file


def run_directory_arguments() -> Parser:
    """The arguments that every training command shares."""
    parser = Parser(sys.modules["__main__"].__doc__, add_help=False)
    parser.add_argument("--run-dir", type=Path, help="default: runs/NAME-OF-THE-RECIPE")
    parser.add_argument("--profile", metavar="FIRST:LAST", help="profile these steps, as 10:13")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    group.add_argument("--overwrite", action="store_true", help="delete the existing run first")
    return parser


def check_run(run: Path, config: Section, resume: bool, overwrite: bool) -> None:
    """Check, before any file is written, that a run may start or resume in `run`; else UserError.

    With `resume` the recipe may differ from the saved one in [train] and [sample] only.
    """
    if resume:
        if not (run / "config.toml").exists():
            raise UserError(f"{run}: nothing to resume here; leave out --resume to start a new run")
        saved = load(type(config), run / "config.toml")
        for table in type(config).model_fields:
            same = getattr(saved, table) == getattr(config, table)
            if not same and table not in ("train", "sample"):
                raise UserError(
                    f"{run}: was started with other [{table}] settings; use those, or start again with --overwrite"
                )
    elif run.exists() and any(run.iterdir()):
        if not overwrite:
            raise UserError(f"{run}: exists; continue it with --resume, or replace it with --overwrite")
        check_marker(run)


def check_marker(folder: Path) -> None:
    """Raises UserError if a folder is not empty and has no MARKER, so that it is not deleted."""
    if any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(
            f"{folder}: is not a run directory (it has no file {MARKER}), so --overwrite does "
            "not delete it; use another --run-dir"
        )


def load_saved_recipe(run: Path, kind: type[T], resume: bool) -> T | None:
    """The recipe of a run to `resume`; None without one."""
    return load(kind, run / "config.toml") if resume and (run / "config.toml").exists() else None


def pin_recipe(recipe: T, saved: T | None) -> T:
    """`recipe` with every hub dataset and model pinned to a commit.

    Commits in the `saved` recipe are kept, because a branch may have moved since the run started.
    Raises UserError if the hub does not answer.
    """
    resolve = {"base": pin_model, "general": pin_dataset}
    changes: dict = {
        name: pin(resumed_revision(getattr(recipe, name), getattr(saved, name, "")))
        for name, pin in resolve.items()
        if name in type(recipe).model_fields
    }
    if names := getattr(recipe, "foundations", None):
        earlier = getattr(saved, "foundations", [])
        changes["foundations"] = [
            pin_model(resumed_revision(name, old))
            for name, old in zip_longest(names, earlier[: len(names)], fillvalue="")
        ]
    data: DataConfig = getattr(recipe, "data")  # noqa: B009 (every recipe has [data])
    old: DataConfig = getattr(saved, "data") if saved else DataConfig()  # noqa: B009
    corpus = pin_dataset(resumed_revision(data.corpus, old.corpus if saved else ""))
    paths = [each.path for each in old.corpora] + [""] * len(data.corpora)
    corpora = [
        each.model_copy(update={"path": pin_dataset(resumed_revision(each.path, path))})
        for each, path in zip(data.corpora, paths, strict=False)
    ]
    pinned = data.model_copy(update={"corpus": corpus, "corpora": corpora})
    return recipe.model_copy(update=changes | {"data": pinned})


def should_resume(run: Path, resume: bool) -> bool:
    """Whether to resume: if `resume` is set, or if torchrun or SLURM restarted a failed run."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    restarted = any(os.environ.get(name, "0") != "0" for name in counts)
    return resume or (restarted and (run / "config.toml").exists())


def resolve_recipe(recipe: T, run: Path, ranks: Ranks, resume: bool, overwrite: bool) -> T:
    """The recipe with hub names pinned; on the main rank also checks that a run may start in `run`.

    Raises UserError as `check_run` and `pin_recipe` do. Call it inside `main_process_first`.
    """
    if not ranks.is_main:  # use the commits that the main rank has pinned and written
        return load_saved_recipe(run, type(recipe), True) or recipe
    recipe = pin_recipe(recipe, load_saved_recipe(run, type(recipe), resume))
    check_run(run, recipe, resume, overwrite)
    return recipe


def start_run(
    run: Path, config: Section, tokenizer: Tokenizer, *, resume: bool = False, overwrite: bool = False
) -> IO[str]:
    """Create and lock a run directory with tokenizer and recipe; the lock holds until it is closed.

    With `overwrite` an existing run is deleted; with `resume` only the recipe is written, because
    its [train] may have changed. Raises UserError if the folder is not empty and neither is given,
    or if another process uses it.
    """
    if resume:
        lock = lock_run(run)
        write_config(run, config)
        return lock
    with new_run_folder(run, overwrite) as temporary:
        tokenizer.save(temporary)
        write_config(temporary, config)
        if sys.platform != "win32":  # Windows cannot rename a folder with an open file
            lock = lock_run(temporary)
    return lock_run(run) if sys.platform == "win32" else lock


@contextmanager
def new_run_folder(run: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `run` when the `with` block succeeds.

    With `overwrite` an existing run is deleted. Raises UserError if the folder is not a run
    directory, or if another process uses it.
    """

    def keep_existing(existing: Path) -> bool:
        if not overwrite and any(existing.iterdir()):
            raise UserError(f"{run}: another process has started a run here; use another --run-dir")
        check_marker(existing)
        lock_run(existing).close()
        return False

    with atomic_folder(run, keep_existing) as temporary:
        (temporary / MARKER).write_text("This folder was created by homegrown; --overwrite may delete it.\n")
        yield temporary


def write_config(run: Path, config: Section) -> None:
    """Write the recipe of a run to config.toml, atomically."""
    write_atomically(run / "config.toml", to_toml(config))


def lock_run(run: Path) -> IO[str]:
    """Lock a run directory until the returned file is closed. Raises UserError if it is in use."""
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
    """Inside the `with` block, Ctrl-C or SIGTERM prints the resume command before the process exits.

    The training loop has its own `Signals`; this covers the time before the first step (compiling)
    and after the last one (final measurements).
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; resume with:\n{resume_command()}")
        raise SystemExit(130) from None


def report_result(result: RunResult, run: Path) -> int:
    """Print where the results are, or after a signal how to resume; returns the exit status."""
    progress = result.progress
    if not result.signal:
        say(
            f"done: {progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s, "
            f"{result.bits_per_byte:.4f} bits per byte on validation; results are in {run}"
        )
        return 0
    name = signal.Signals(result.signal).name
    say(f"{name}: saved step {progress.step}; resume with:\n{resume_command()}")
    return 128 + result.signal
