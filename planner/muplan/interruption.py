"""Long commands that undo what they began, however they are asked to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from muserve.cli import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C; then say ``message`` on stderr and exit with 130."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted: {message}", err=True)
        sys.exit(INTERRUPTED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed() -> Iterator[None]:
    """Put Ctrl-C and its like off to the end of the block, which is KeyboardInterrupt then.

    For imports: extension modules that are interrupted while they initialise take the process with them.
    """
    late: list[int] = []
    before = {n: signal.signal(n, lambda number, _frame: late.append(number)) for n in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if late:
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore the same signals for a short last step that must not be left half done: they come too late.

    Python delivers signals to the main thread alone, any other is uninterrupted anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
