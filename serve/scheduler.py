"""Continuous batching: one thread loads and runs all models; texts join and leave engines at every step.

(Yu et al. 2022, "Orca", section 3.) A prompt is read in parts between decode steps, so that a long one
does not stop the others. Texts that begin alike share what was read. Every thread that computes has
OpenMP threads of its own; if there are more of them than cores, they sleep between two operators
instead of spinning, and a step takes 1.5 times as long. So no other thread computes.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from cli.console import say
from model.engine import Engine, Prefill, Score
from model.sample import Stream
from model.sampling import Sampling
from tokenizer.bpe import Tokenizer

CHUNK_ALONE, CHUNK_BESIDE = 512, 64  # tokens of a prompt that are read before the next step of other texts
IDLE_SECONDS = 0.5
Result = TypeVar("Result")


class Event(NamedTuple):
    """What a job has got since its last event."""

    text: str = ""
    tokens: int = 0
    scores: Sequence[Score] = ()
    """Of the tokens, if asked for: in the first event those of the prompt come first, in the last one
    that of a special token that ended the text."""
    finish: str = ""
    """"stop" or "length" at the end, "error" if it failed."""
    result: object = None
    """Of a job that computes something else than text."""


@dataclass(eq=False)
class Job:
    """One text to continue, or with `compute` something else to do between steps."""

    prompt: list[int]
    deliver: Callable[[Event], None]
    """Called in the scheduler's thread."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: str = "0"
    max_tokens: int = 16
    stop: list[str] = field(default_factory=list)
    adapter: str = ""
    likeliest: int = -1
    """Number of likeliest tokens to record at each place; -1: no scores."""
    echoes: bool = False
    """Whether the scores of the prompt are wanted."""
    is_background: bool = False
    """Waits until no other job does."""
    is_streamed: bool = True
    """Whether there is an event for every step, and not at the end alone."""
    compute: Callable[[Engine], object] | None = None
    is_cancelled: bool = False


@dataclass
class Running:
    """A job that has a row."""

    job: Job
    stream: Stream
    prefill: Prefill
    delivered: int = 0  # tokens


class Batcher:
    """The jobs of one engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.tokenizer = engine, tokenizer
        self.waiting: deque[Job] = deque()
        self.background: deque[Job] = deque()
        self.reading: int | None = None  # row whose prompt is being read
        self.running: dict[int, Running] = {}

    def add(self, job: Job) -> None:
        """A job waits for a row."""
        (self.background if job.is_background else self.waiting).append(job)

    def work(self) -> bool:
        """One part of a prompt and one step of all texts; whether there was anything to do."""
        self._drop_cancelled()
        if self.reading is None:
            self._start_next()
        has_work = bool(self.running)
        if self.reading is not None:
            self._read()
        try:
            drawn = self.engine.step()
        except Exception as error:  # all texts of the step fail, later ones start anew
            for row in list(self.running):
                _fail(self.running[row].job, error)
                self._leave(row)
            return True
        for row, tokens in drawn.items():
            self._deliver(row, tokens)
        return has_work

    def _drop_cancelled(self) -> None:
        for row in [row for row, running in self.running.items() if running.job.is_cancelled]:
            self._leave(row)

    def _start_next(self) -> None:
        while self.waiting or self.background:
            if None not in self.engine.rows:
                return
            job = (self.waiting or self.background).popleft()
            if job.is_cancelled:
                continue
            try:
                if job.compute:
                    job.deliver(Event(finish="stop", result=job.compute(self.engine)))
                    continue
                prefill = self.engine.begin(
                    [job.prompt], [job.sampling], [job.seed], job.max_tokens, None, job.adapter, not job.echoes
                )
            except Exception as error:  # one job fails, the others continue
                _fail(job, error)
                continue
            self.reading = prefill.rows.start
            row = self.engine.rows[self.reading]
            assert row
            row.likeliest = job.likeliest
            prefill.likeliest = job.likeliest if job.echoes else -1
            self.running[self.reading] = Running(job, Stream(self.tokenizer, job.stop), prefill)
            return

    def _read(self) -> None:
        assert self.reading is not None
        running = self.running[self.reading]
        job, prefill = running.job, running.prefill
        most = CHUNK_BESIDE if len(self.running) > 1 else CHUNK_ALONE
        try:
            found = self.engine.read(prefill, most)
        except Exception as error:
            _fail(job, error)
            self._leave(self.reading)
            return
        if found:
            row, self.reading = self.reading, None
            self._deliver(row, [found[0][1]])

    def _deliver(self, place: int, tokens: list[int]) -> None:
        running = self.running[place]
        job, stream = running.job, running.stream
        row = self.engine.rows[place]
        assert row
        for token in tokens:
            stream.push(token)
        finish = ""
        if stream.stopped:
            finish = "stop"
        elif row.is_full or len(stream.ids) >= job.max_tokens:
            finish = stream.stopped = "length"
        if not (finish or job.is_streamed):
            return
        scores = [*running.prefill.scores, *row.scores]
        running.prefill.scores, row.scores = [], []
        new, running.delivered = len(stream.ids) - running.delivered, len(stream.ids)
        try:
            job.deliver(Event(stream.new_text(), new, scores, finish))
        except RuntimeError:  # whoever asked has gone
            finish = "stop"
        if finish:
            self._leave(place)

    def _leave(self, row: int) -> None:
        del self.running[row]
        self.engine.leave(row)
        if self.reading == row:
            self.reading = None


def _fail(job: Job, error: Exception) -> None:
    say(f"a request failed: {type(error).__name__}: {error}")
    job.deliver(Event(finish="error", result=str(error)))


class Scheduler:
    """The thread that owns the engines."""

    def __init__(self) -> None:
        self.batchers: list[Batcher] = []
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True, name="scheduler")
        self.is_stopping = False

    def start(self, load: Callable[[], Result]) -> Result:
        """Start the thread; returns what `load` returns there, or raises what it raises."""
        loaded: Future[Result] = Future()

        def run() -> None:
            try:
                loaded.set_result(load())
            except BaseException as error:
                loaded.set_exception(error)

        self.inbox.put(run)
        self.thread.start()
        return loaded.result()

    def schedule(self, batchers: Iterable[Batcher]) -> None:
        """Run the jobs of these batchers."""
        self.batchers = list(dict.fromkeys(batchers))

    def submit(self, batcher: Batcher, job: Job) -> None:
        """Queue a job; from any thread."""
        self.inbox.put(lambda: batcher.add(job))

    def cancel(self, job: Job) -> None:
        """End a job before the next step; from any thread."""
        job.is_cancelled = True

    def stop(self) -> None:
        """End the thread after its step."""
        self.is_stopping = True
        self.inbox.put(lambda: None)
        self.thread.join()

    def waiting(self) -> int:
        """Jobs without a row."""
        return sum(len(batcher.waiting) + len(batcher.background) for batcher in self.batchers) + self.inbox.qsize()

    def running(self) -> int:
        """Jobs with a row."""
        return sum(len(batcher.running) for batcher in self.batchers)

    def _run(self) -> None:
        is_idle = True
        while not self.is_stopping:
            self._collect(is_idle)
            with torch.no_grad():
                worked = [batcher.work() for batcher in self.batchers]  # all of them
            is_idle = not any(worked)

    def _collect(self, waits: bool) -> None:
        # Waits if there is nothing to do; wakes up to see whether it has to stop.
        try:
            found = self.inbox.get(waits, IDLE_SECONDS) if waits else self.inbox.get_nowait()
            while True:
                found()
                found = self.inbox.get_nowait()
        except queue.Empty:
            return
