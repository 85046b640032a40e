"""Signals that ask the daemon to stop or to read its settings anew, turned into a wait that they end."""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """While entered, SIGTERM, SIGINT and SIGHUP only set ``received``; ``wait`` notices them at once.

    With ``hangup_reloads`` SIGHUP asks for a reload instead of a stop: ``wait`` ends as well, and
    ``take_reload`` tells, once.
    The handler does no work: Python's wake-up descriptor ends the ``select`` in ``wait``. (Setting a
    ``threading.Event`` in a handler can deadlock against a ``wait`` it interrupts.) Main thread only.
    """

    def __init__(self, *, hangup_reloads: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._hangup_reloads = hangup_reloads
        self._reload_wanted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._previous_descriptor = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_descriptor)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self, seconds: float) -> bool:
        """Wait for ``seconds`` or a signal; True when it is time to stop or to reload."""
        deadline_s = time.monotonic() + seconds
        while not self._is_over and (left_s := deadline_s - time.monotonic()) > 0:
            readable, _, _ = select.select([self._read_end], [], [], left_s)
            if readable:
                os.read(self._read_end, 4096)
        return self._is_over

    def take_reload(self) -> bool:
        """True when a reload was asked for since the last time."""
        wanted, self._reload_wanted = self._reload_wanted, False
        return wanted

    @property
    def _is_over(self) -> bool:
        return self.received is not None or self._reload_wanted

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._hangup_reloads:
            self._reload_wanted = True
        else:
            self.received = signal.Signals(number)
