"""Ctrl-C, `kill` and a terminal that is closed: what is half-written is removed, and one line says what happened."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "interrupted: told to end",
    signal.SIGHUP: "interrupted: the terminal was closed",
}


@dataclass
class Stop:
    """Which signal came, if any."""

    number: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Ends the work as Ctrl-C does. While it is cleaned up only another Ctrl-C ends that."""
        first, self.number = self.number is None, self.number or signal.Signals(number)
        if first or number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[Stop]:
    """Signals that end a program end it in order meanwhile; those that are ignored, as under nohup, stay so."""
    stop, before = Stop(), {}
    with suppress(ValueError):  # no main thread: whoever runs it has the signals
        for number in WORDS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
