"""Asynchronous checkpoints: training continues while they are written.

The state is copied to memory between two steps; a thread on each rank then writes that rank's
files. Each step the ranks exchange whether they are still writing; once all are done, the main rank
commits the checkpoint. A full disk loses that checkpoint, never the run or an earlier checkpoint.
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
    """Writes one checkpoint at a time. Every rank must call every method at the same step."""

    def __init__(self, run: Path, keep_last: int, ranks: Ranks):
        """Keeps the newest `keep_last` checkpoints and the best one by validation."""
        self.run, self.keep_last, self.ranks = run, keep_last, ranks
        self.error: Exception | None = None
        self._checksums: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        if ranks.is_main:
            for unfinished in (run / "checkpoints").glob("*.tmp"):  # of a killed run
                shutil.rmtree(unfinished, ignore_errors=True)

    @property
    def is_writing(self) -> bool:
        """Whether this rank is still writing its files."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: TrainState, bits_per_byte: float | None) -> None:
        """Start writing a checkpoint; first waits for the previous one.

        `bits_per_byte` is the score on the evaluation subset, or None.
        """
        self.wait()
        step = state.progress.step
        self._temporary = self.run / "checkpoints" / f"{step:06d}.tmp"
        self._info = {"tokenizer": state.tokenizer.hash, "bits_per_byte": bits_per_byte}
        self._checksums, self.error = {}, None
        if self.ranks.is_main:
            try:
                begin_checkpoint(self.run, step)
            except OSError as error:
                self.error = error
        self.ranks.sum(0)  # a barrier: the folder exists before any rank writes
        files = snapshot(state, self.ranks)
        self._thread = threading.Thread(target=self._write, args=(files,))
        self._thread.start()

    def commit_or_discard(self, writing: float, failed: float) -> None:
        """Commit or discard the checkpoint once no rank is writing.

        `writing` and `failed` count the ranks that still write, and those that failed.
        """
        if self._thread is None or writing:
            return
        self._thread = None
        step = int(self._temporary.stem)
        checksums = {k: v for part in self.ranks.gather(self._checksums) for k, v in part.items()}
        if self.ranks.is_main and not failed:
            try:
                commit_checkpoint(self._temporary, checksums, self._info)
                self._prune()
            except OSError as error:
                self.error = error
        errors = [error for error in self.ranks.gather(self.error and str(self.error)) if error]
        if errors:
            self.error = OSError(errors[0])
            if self.ranks.is_main:
                shutil.rmtree(self._temporary, ignore_errors=True)
                kept = [path.name for path in checkpoints(self.run)][-1:]
                newest = f"the newest is step {int(kept[0])}" if kept else "there is none yet"
                say(
                    f"WARNING: the checkpoint of step {step} could not be saved: {errors[0]}; {newest}; "
                    "training continues"
                )

    def wait(self) -> None:
        """Wait until the checkpoint is committed or discarded."""
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
                self._checksums[name] = write_file(self._temporary, name, content)
        except Exception as error:  # the main thread reports it
            self.error = error

    def _prune(self) -> None:
        scores: dict[Path, float | None] = {}
        for path in checkpoints(self.run):
            try:
                scores[path] = read_manifest(path)["bits_per_byte"]
            except UserError:  # corrupted: leave it for the user to inspect
                continue
        scored = {path: score for path, score in scores.items() if score is not None}
        best = min(scored, key=scored.__getitem__, default=None)
        for path in list(scores)[: -self.keep_last]:
            if path != best:
                shutil.rmtree(path)
