"""Mistakes a user can fix, and how a command ends: one clear line and exit status 2."""

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from cli.console import one_line


class UserError(ValueError):
    """A mistake the user can fix: the message names the value, the place and the fix."""


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint such as `; did you mean "steps"?`, or the list of known words if none is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if match:
        return f'; did you mean "{match[0]}"?'
    return f"; known: {', '.join(known)}"


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main` as the process: a UserError or OSError becomes one line and exit status 2.

    SIGTERM ends it like Ctrl-C, so that half-written files are removed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale: what it lacks is written out
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error of ours, and nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    sys.exit(status)
