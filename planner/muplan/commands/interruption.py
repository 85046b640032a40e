"""Long commands that undo what they began, however they are asked to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

_EXIT_CODE = 130


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
        sys.exit(_EXIT_CODE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
