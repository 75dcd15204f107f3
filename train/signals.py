"""Signals end a run after the step that they interrupt."""

import signal

from cli.console import say


class Signals:
    """Remembers signals instead of dying of them, so that a step can be finished.

    SIGINT and SIGTERM end a run, saved; SIGUSR1, which batch systems send ahead of the end of a
    job, saves it.
    """

    def __init__(self):
        self.received = 0
        self.save_requested = False

    def __enter__(self) -> "Signals":
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no SIGUSR1
        noted = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if signal.Signals(number).name == "SIGUSR1":
            self.save_requested = True
            return
        self.received = number
        say(f"{signal.Signals(number).name}: finishing this step, then saving")
