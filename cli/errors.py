"""User errors, and how commands report them: one line on stderr and exit status 2."""

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from cli.console import one_line


class UserError(ValueError):
    """An error that the user can fix; its message names the value, the place and the fix."""


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint such as `; did you mean "steps"?`, or the list of known words if none is similar."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if match:
        return f'; did you mean "{match[0]}"?'
    return f"; known: {', '.join(known)}"


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status; a UserError or OSError becomes one line and status 2.

    SIGTERM is handled like Ctrl-C, so that partly written files are removed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the locale cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe, which is no error; stop Python's flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (UserError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = 2
    sys.exit(status)
