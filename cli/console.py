"""Console output: printing, log lines, and progress bars (plain lines if not on a terminal)."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TextColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False)

# Characters that move the cursor, change the title or break lines, and lone surrogates (from file
# names that are not UTF-8), which no stream can encode. Tab and line feed are allowed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with control characters escaped, such as `\x1b`: safe to show on a terminal."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """As `printable`, with line feeds escaped too."""
    return printable(text).replace("\n", "\\n")


def show(text: str = "", end: str = "\n") -> None:
    """Print to stdout, escaped; use it for all text from a file, a model or the network."""
    print(printable(text), end=end, flush=True)


def say(message: str) -> None:
    """Print one line to stderr, on the main rank only; not wrapped when piped."""
    if os.environ.get("RANK", "0") == "0":
        wrap = console.is_terminal
        console.print(printable(message), markup=False, emoji=False, soft_wrap=not wrap)


def bar(*extra: "TextColumn", has_eta: bool = True) -> "Progress":
    """A progress bar with `extra` text columns; disabled if not on a terminal.

    `has_eta`: count and ETA stand before `extra`, from the pace of the last 30 seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *([MofNCompleteColumn(), TimeRemainingColumn()] if has_eta else []),
        *extra,
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


class Steps:
    """Long steps of work: on a terminal a progress bar with an ETA, else a line as each starts and ends."""

    TRUSTED = 600.0  # seconds of the estimates: of two short steps alone, hours cannot be told

    def __init__(self, total: float):
        """`total` is the sum of the estimated seconds of the steps."""
        self.total, self.done, self.begun = total, 0.0, time.perf_counter()
        self.bar, self.task = None, None
        if console.is_terminal:
            from rich.progress import TextColumn

            columns = TextColumn("{task.percentage:.0f}%"), TextColumn("{task.fields[left]}", markup=False)
            self.bar = bar(*columns, has_eta=False)
            self.task = self.bar.add_task("", total=total, left=self.left())

    def left(self) -> str:
        """The time left: what is estimated for the rest, times the pace so far."""
        pace = (time.perf_counter() - self.begun + self.TRUSTED) / (self.done + self.TRUSTED)
        return f"about {max(0.0, self.total - self.done) * pace / 60:.0f} minutes left"

    def __enter__(self) -> "Steps":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def start(self, name: str) -> None:
        """A step starts."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, description=one_line(name))
        else:
            say(f"=== {name}")

    def finish(self, name: str, seconds: float, estimated: float) -> None:
        """A step that was `estimated` to take so long has ended, after `seconds`."""
        self.done += estimated
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done, left=self.left())
            return
        say(f"=== {name}: {seconds:.0f} s ({self.done / self.total:.0%} done, {self.left()})")


def track(
    items: Iterable[T], description: str, total: int | None = None, size: Callable[[T], int] | None = None
) -> Iterator[T]:
    """Yield `items` with a progress bar and ETA; if not on a terminal, with a line every 15 s.

    `total` is the number of items, or the sum of their `size`, which is shown in percent; None or 0: unknown.
    Prints the count and time at the end.
    """
    started = last_line = time.perf_counter()
    count, done, description = 0, 0, one_line(description)
    with bar() if console.is_terminal else nullcontext() as progress:  # a pipe needs no bar, nor its import
        by_size = bool(size and total)
        task = None if progress is None else progress.add_task(description, total=100 if by_size else total or None)
        for item in items:
            yield item
            count += 1
            done += size(item) if size else 1
            if progress is not None and task is not None:
                progress.update(task, completed=100 * done / total if by_size and total else count)
            elif time.perf_counter() - last_line > 15:
                last_line = time.perf_counter()
                left = ""
                if total and done:
                    seconds = (last_line - started) * max(0, total / done - 1)
                    left = f" ({min(1, done / total):.0%}, about {seconds:,.0f} s left)"
                say(f"{description}: {count:,}{left}")
    say(f"{description}: {count:,} in {time.perf_counter() - started:.1f} s")
