"""What the user sees while something long runs: a bar on a terminal, plain lines in a log."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one line to stderr, never wrapped when piped; of several ranks the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        console.print(message, markup=False, soft_wrap=not console.is_terminal)


def bar(*extra: TextColumn) -> Progress:
    """A progress bar with an ETA and `extra` text columns; draws nothing off a terminal."""
    return Progress(
        TextColumn("{task.description}"),
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
    count = 0
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
