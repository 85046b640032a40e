"""What a server leaves on the machine while it runs, and how the next start finds and removes it.

Each server has a directory ``muserve-triton-*`` under the system's temporary directory. A file in it
is locked by the serving process; the kernel drops the lock with the process, however it ends. The
directory's name is also the prefix of the server's files in /dev/shm and part of the server's and
the stubs' command lines, so everything a dead owner left behind can be told apart from what others
use.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PREFIX = "muserve-triton-"
_LOCK = "owner.lock"
SHARED_MEMORY = Path("/dev/shm")

logger = logging.getLogger(__name__)


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A fresh directory for one server, after removing what dead owners left. Removed at the end."""
    sweep_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # The lock appears under its name only once it is held: a sweep never sees it free.
    with (directory / "owner.new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "owner.new").rename(directory / _LOCK)
        try:
            yield directory
        finally:
            _remove(directory)


def shared_memory_prefix(directory: Path) -> str:
    """Prefix of the names in /dev/shm of the server that owns ``directory``."""
    return f"{directory.name}."


def shared_memory_option(directory: Path) -> str:
    """Tritonserver's option for that prefix."""
    return f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(directory)}"


def processes_of(directory: Path) -> list[psutil.Process]:
    """The living server and stubs of ``directory``: each has the shared memory's name as an argument."""
    prefix = shared_memory_prefix(directory)
    option = shared_memory_option(directory)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(
            argument == option or argument.startswith(prefix) for argument in process.info["cmdline"] or ()
        )
    ]


def sweep_leftovers() -> None:
    """Kill and remove what servers left whose owner died without stopping them."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _owner_is_gone(directory):
            logger.info("removing what a server left behind whose owner died: %s", directory)
            _remove(directory)


def _owner_is_gone(directory: Path) -> bool:
    try:
        with (directory / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, another user's, or not locked yet
        return False
    return True


def _remove(directory: Path) -> None:
    processes = processes_of(directory)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)
    for file in SHARED_MEMORY.glob(f"{shared_memory_prefix(directory)}*"):
        file.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
