"""Run the tasks of a command on this machine's cores, or on a Ray cluster."""

import os
import signal
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cli.errors import UserError

if TYPE_CHECKING:  # imported where they are used: a small task needs no other process
    from concurrent.futures import Future, ProcessPoolExecutor


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_ray() -> ModuleType:
    """Ray, connected to a cluster or to one started on this machine. Raises UserError if it is not installed."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs: pip install -e '.[cluster]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    return ray


def add_worker_options(parser: ArgumentParser) -> None:
    """Add --workers and --ray, the arguments of `Workers`."""
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="local processes; default: the cores")
    parser.add_argument("--ray", action="store_true", help="run on a Ray cluster, whose nodes share the cache folder")


class Workers:
    """Runs tasks in parallel. A context manager that ends its processes."""

    def __init__(self, count: int = 0, ray: bool = False):
        """`count` local processes (0: one per core; 1: this process), or with `ray` the cores of a cluster.

        All nodes of a cluster need access to the paths in the tasks. Raises UserError if Ray is not
        installed.
        """
        self.ray = start_ray() if ray else None
        self.count = int(self.ray.cluster_resources().get("CPU", 1)) if self.ray else count or count_cores()
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple], few: int = 0) -> Iterator[Any]:
        """The results of `function(*task)`, in the order in which they finish; a task's error is raised.

        Tasks are taken from `tasks` two per worker ahead of the results. The first `few` tasks run in
        this process: small work ends before other processes have started.
        """
        waiting: set = set()
        for number, task in enumerate(tasks):
            if (self.count == 1 and self.ray is None) or number < few:
                yield function(*task)
                continue
            while len(waiting) >= 2 * self.count:
                done, waiting = self._wait(waiting)
                yield from done
            waiting.add(self._submit(function, task))
        while waiting:
            done, waiting = self._wait(waiting)
            yield from done

    def _submit(self, function: Callable, task: tuple) -> Any:
        if self.ray is not None:
            return self.ray.remote(function).remote(*task)
        if self.pool is None:
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context

            self.pool = ProcessPoolExecutor(self.count, get_context("spawn"), initializer=_start_worker)
        return self.pool.submit(function, *task)

    def _wait(self, waiting: set) -> tuple[list, set]:
        if self.ray is not None:
            ready, left = self.ray.wait(list(waiting))
            return [self.ray.get(each) for each in ready], set(left)
        from concurrent.futures import FIRST_COMPLETED, wait

        finished: set[Future]
        finished, left = wait(waiting, return_when=FIRST_COMPLETED)
        return [future.result() for future in finished], left


def _start_worker() -> None:
    # The parent handles Ctrl-C. A killed parent leaves its workers waiting for tasks: they end themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
