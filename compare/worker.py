"""The process that measures cells, one after another, for `compare.run`.

    python -m compare.worker STUDY-DIR

Reads requests from standard input, one JSON object per line: {"cell": […], "result": PATH,
"threads": 0} measures a cell, or with threads its speed, and writes the row to PATH. Answers every
request with one line on standard output: empty, or why it failed. The foundation model and the splits
are loaded once.
"""

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import SimpleQueue

import torch

from cli.atomic import to_json, write_atomically
from cli.console import one_line, say
from cli.errors import UserError, run_command
from compare.calibrate import measure_speed
from compare.context import Cell, Study
from compare.measure import measure


def read_requests() -> SimpleQueue:
    """The lines of standard input. This process exits at its end: the parent has ended, even by SIGKILL.

    Otherwise the worker of a killed study would still write to the folder that --resume uses.
    """
    lines: SimpleQueue = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return lines


def serve(folder: Path) -> int:
    """Answer requests until the parent ends."""
    study: Study | None = None
    requests = read_requests()
    # What a library prints must not be taken for a reply.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        request = json.loads(requests.get())
        cell = Cell(*request["cell"])
        try:
            study = study or Study(folder)
            row = answer(study, cell, request["threads"])
            write_atomically(Path(request["result"]), to_json(row))
        except KeyboardInterrupt:
            return 130
        except UserError as error:
            say(f"error: {error}")
            replies.write(one_line(str(error)) + "\n")
        except Exception as error:  # one cell fails, the others continue
            traceback.print_exc()
            replies.write(one_line(f"{type(error).__name__}: {error}") + "\n")
        else:
            replies.write("\n")


def answer(study: Study, cell: Cell, threads: int) -> dict:
    """The row of a cell, or with `threads` its speed."""
    torch.set_num_threads(threads or study.calibration["threads"])
    if threads:
        return measure_speed(study, cell)
    cpu = time.process_time()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    row = measure(study, cell)
    return row | {"cpu_seconds": time.process_time() - cpu, "load_average": load}


def main() -> int:
    """Entry point of `python -m compare.worker`."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m compare.worker STUDY-DIR")
    return serve(Path(sys.argv[1]))


if __name__ == "__main__":
    run_command(main)
