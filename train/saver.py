"""Writes checkpoints while training goes on.

The state is copied to memory between two steps; a thread of each rank then writes that rank's
files. When all are done, which the ranks tell each other at the next step, the first one seals the
checkpoint. A disk that is full costs that checkpoint, never the run or the checkpoint before it.
"""

import shutil
import threading
from pathlib import Path

from cli.console import say
from cli.errors import UserError
from model.formats.native import begin_checkpoint, checkpoints, commit_checkpoint, read_manifest, write_file
from train.checkpoint import TrainState, snapshot
from train.distributed import Ranks


class Saver:
    """One checkpoint in the making at a time. Every rank calls every method at the same step."""

    def __init__(self, run: Path, keep_last: int, ranks: Ranks):
        """The newest `keep_last` checkpoints and the best by validation stay."""
        self.run, self.keep_last, self.ranks = run, keep_last, ranks
        self.error: Exception | None = None
        self._checksums: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        if ranks.is_main:
            for half in (run / "checkpoints").glob("*.tmp"):  # of a run that was killed
                shutil.rmtree(half, ignore_errors=True)

    @property
    def is_writing(self) -> bool:
        """Whether this rank's files are not all on disk yet."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: TrainState, bits_per_byte: float | None) -> None:
        """Start writing a checkpoint; waits for the one before it.

        `bits_per_byte` is of the subset that all checkpoints of a run are compared on, or None.
        """
        self.wait()
        step = state.progress.step
        self._aside = self.run / "checkpoints" / f"{step:06d}.tmp"
        self._info = {"tokenizer": state.tokenizer.hash, "bits_per_byte": bits_per_byte}
        self._checksums, self.error = {}, None
        if self.ranks.is_main:
            try:
                begin_checkpoint(self.run, step)
            except OSError as error:
                self.error = error
        self.ranks.sum(0)  # no one writes into a folder that is not there yet
        files = snapshot(state, self.ranks)
        self._thread = threading.Thread(target=self._write, args=(files,))
        self._thread.start()

    def commit_or_discard(self, writing: float, failed: float) -> None:
        """Seal or give up the checkpoint once no rank is `writing`; both are sums over ranks."""
        if self._thread is None or writing:
            return
        self._thread = None
        step = int(self._aside.stem)
        checksums = {k: v for part in self.ranks.gather(self._checksums) for k, v in part.items()}
        if self.ranks.is_main and not failed:
            try:
                commit_checkpoint(self._aside, checksums, self._info)
                self._prune()
            except OSError as error:
                self.error = error
        errors = [error for error in self.ranks.gather(self.error and str(self.error)) if error]
        if errors:
            self.error = OSError(errors[0])
            if self.ranks.is_main:
                shutil.rmtree(self._aside, ignore_errors=True)
                kept = [path.name for path in checkpoints(self.run)][-1:]
                before = f"the newest is step {int(kept[0])}" if kept else "there is none yet"
                say(f"WARNING: the checkpoint of step {step} could not be saved: {errors[0]}; {before}; going on")

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self.commit_or_discard(*self.ranks.sum(0, self.error is not None))

    def finish(self) -> None:
        """Wait for the last checkpoint. Raises UserError if it could not be saved."""
        self.wait()
        if self.error:
            raise UserError(f"{self.run}: the last checkpoint could not be saved: {self.error}")

    def _write(self, files: dict[str, dict]) -> None:
        if self.error:
            return
        try:
            for name, content in files.items():
                self._checksums[name] = write_file(self._aside, name, content)
        except Exception as error:  # whatever it is, what was written is not a checkpoint
            self.error = error

    def _prune(self) -> None:
        scores: dict[Path, float | None] = {}
        for path in checkpoints(self.run):
            try:
                scores[path] = read_manifest(path)["bits_per_byte"]
            except UserError:  # damaged: of no use, but not ours to delete
                continue
        scored = {path: score for path, score in scores.items() if score is not None}
        best = min(scored, key=scored.__getitem__, default=None)
        for path in list(scores)[: -self.keep_last]:
            if path != best:
                shutil.rmtree(path)
