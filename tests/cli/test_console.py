"""Progress lines: in a pipe plain lines, on a terminal a bar; the ETA of long steps."""

import errno
import os
import pty
import subprocess
import sys

from cli.console import Steps

STEPS = """
from cli.console import Steps
with Steps(36_000) as steps:
    for _ in range(3):
        steps.start("a cell")
        steps.finish("a cell", 1, 1_200)
"""


def on_terminal(code: str) -> str:
    """What `code` prints to a terminal of 100 columns."""
    main, child = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env=environment):
        os.close(child)
        found = b""
        try:
            while part := os.read(main, 4096):
                found += part
        except OSError as error:
            if error.errno != errno.EIO:  # which Linux raises when the other end is closed
                raise
    os.close(main)
    return found.decode()


def test_pipe_sees_a_line_per_step() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[:2] == ["=== a cell", "=== a cell: 1 s (3% done, about 193 minutes left)"]
    assert lines[-1] == "=== a cell: 1 s (10% done, about 77 minutes left)"
    assert "\x1b" not in done.stderr


def test_terminal_sees_a_bar_with_the_time_left() -> None:
    shown = on_terminal(STEPS)
    for part in ("a cell", "10%", "about 77 minutes left"):
        assert part in shown


def test_a_few_short_steps_do_not_spoil_the_estimate() -> None:
    steps = Steps(36_000)
    steps.begun -= 60  # a step that was estimated at 2 s took a minute
    steps.finish("slow start", 60, 2)
    assert steps.left() == "about 658 minutes left"
    steps.begun -= 18_000 - 60  # then all went as estimated
    steps.finish("the rest", 17_940, 17_998)
    assert steps.left() == "about 300 minutes left"
