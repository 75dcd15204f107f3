"""Signal handling: a run stops after the current step."""

import signal

from cli.console import say


class Signals:
    """Records signals, so that the training loop can finish its step first.

    SIGINT and SIGTERM save and stop the run. SIGUSR1, which batch systems send before a job's time
    limit, only saves.
    """

    def __init__(self) -> None:
        self.received = 0
        self.save_requested = False

    def __enter__(self) -> "Signals":
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no SIGUSR1
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._previous = {number: signal.signal(number, self._record) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: object) -> None:
        if signal.Signals(number).name == "SIGUSR1":
            self.save_requested = True
            return
        self.received = number
        say(f"{signal.Signals(number).name}: finishing this step, then saving")
