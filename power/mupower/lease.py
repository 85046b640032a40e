"""One daemon per GPU: whoever steers it holds a lease that dies with the process.

The lease is a kernel file lock, so it needs no cleaning up after a crash. What the file says (who, since
when) is only for the sentence with which a second daemon refuses to start.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from muserve.errors import GpuBusyError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that steers a GPU. ``since`` is local time, to the second."""

    pid: int
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) since {self.since}"


def myself() -> Holder:
    """This process."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Holder(pid=os.getpid(), command=command, since=since)


@contextmanager
def leases(files: Mapping[str, Path]) -> Iterator[None]:
    """Hold the lease of every GPU of ``files`` (by name) while entered.

    GpuBusyError, naming the holder, when another process has one of them; then none is held.
    """
    with ExitStack() as stack:
        for name, file in files.items():
            stack.enter_context(_lease(file, name))
        yield


def holder(file: Path) -> Holder | None:
    """Who holds this lease now; None when nobody does."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(fd)
    finally:
        os.close(fd)
    return None


@contextmanager
def _lease(file: Path, name: str) -> Iterator[None]:
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise GpuBusyError(f"{file}: expected to be able to hold a lease: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GpuBusyError(f"{name} is already steered by {_read(fd)}: stop that one first") from None
        _write(fd, file)
        yield
    finally:
        os.close(fd)


def _write(fd: int, file: Path) -> None:
    """Best effort: on a full disk the lease holds all the same, it just does not say whose it is."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(myself())).encode(), 0)
    except OSError as error:
        logger.warning("%s: cannot say who holds this lease: %s", file, error.strerror)


def _read(fd: int) -> Holder:
    try:
        return Holder(**json.loads(os.pread(fd, 65536, 0)))
    except (OSError, ValueError, TypeError):
        return Holder(pid=0, command="unknown", since="an unknown time")
