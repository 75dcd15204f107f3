"""What the user sees while something long runs: a bar on a terminal, plain lines in a log."""

import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False)

# Everything that moves a cursor, changes a title or ends a line elsewhere, and lone surrogates
# (names of files that are not UTF-8), which no stream can encode. Tab and line feed stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with control characters written out, as `\x1b`: safe to show on a terminal."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """As `printable`, with line ends written out too."""
    return printable(text).replace("\n", "\\n")


def show(text: str = "", end: str = "\n") -> None:
    """Print to stdout, as every text must be that came from a file, a model or the net."""
    print(printable(text), end=end, flush=True)


def say(message: str) -> None:
    """Print one line to stderr, never wrapped when piped; of several ranks only the first does."""
    if os.environ.get("RANK", "0") == "0":
        wrap = console.is_terminal
        console.print(printable(message), markup=False, emoji=False, soft_wrap=not wrap)


def bar(*extra: TextColumn) -> Progress:
    """A progress bar with an ETA and `extra` text columns; draws nothing off a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *extra,
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` under a bar; off a terminal, a line every 15 s and one at the end."""
    started = said = time.perf_counter()
    count, description = 0, one_line(description)
    with bar() as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            count += 1
            progress.advance(task)
            if not console.is_terminal and time.perf_counter() - said > 15:
                said = time.perf_counter()
                say(f"{description}: {count:,}" + (f" of {total:,}" if total else ""))
    say(f"{description}: {count:,} in {time.perf_counter() - started:.1f} s")
