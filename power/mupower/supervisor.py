"""Unlocks the GPUs when the daemon can no longer do it itself.

The daemon starts ``python -m mupower.supervisor`` and writes one byte to it per cycle. However the
daemon ends, SIGKILL included, the kernel closes the pipe: the supervisor unlocks every GPU and exits.
When the bytes stop for longer than the lease (the daemon hangs, or was stopped), it unlocks and keeps
watching. It lives in its own session and ignores SIGTERM, SIGINT and SIGHUP, so whatever stops the
daemon does not stop it first; without a daemon it does not outlive the unlocking.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mupower.actuator import ClockHold
from muserve.cli import LogFormat, set_up_logging
from muserve.errors import GpuError, GpuPermissionError, MuServeError

logger = logging.getLogger(__name__)

_BEAT = b"."
_GOODBYE = b"Q"
_READY = b"ready\n"
_START_TIMEOUT_S = 15.0
_EXIT_TIMEOUT_S = 5.0
_UNLOCK_ATTEMPTS = 20
_UNLOCK_RETRY_S = 0.25


class Supervisor:
    """The daemon's end: start the process, beat every cycle, say goodbye after a clean unlock."""

    def __init__(
        self,
        plan: Path,
        node: str | None,
        lease_s: float,
        capped: Iterable[str] = (),
        log_format: LogFormat = LogFormat.TEXT,
    ) -> None:
        """``capped`` names the GPUs that are held by a power limit."""
        self._command = [sys.executable, "-P", "-m", "mupower.supervisor", "--plan", str(plan)]
        self._command += ["--lease", str(lease_s)] + (["--node", node] if node else [])
        self._command += [f"--capped={gpu}" for gpu in capped] + ["--log-format", log_format.value]
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Dismiss the supervisor; when the daemon leaves by an exception, let it unlock once more."""
        if kind is None:
            self._send(_GOODBYE)
        self._close()

    def beat(self) -> None:
        """Renew the lease. Starts another supervisor when this one is gone; MuServeError if it cannot."""
        if not self._send(_BEAT):
            logger.warning("the supervisor is gone: starting another one")
            self._close()
            self._start()

    def _send(self, message: bytes) -> bool:
        try:
            os.write(self._pipe, message)
        except BlockingIOError:
            return True  # it has plenty of unread beats
        except BrokenPipeError:
            return False
        return True

    def _start(self) -> None:
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            self._process = subprocess.Popen(
                self._command, stdin=read_end, stdout=subprocess.PIPE, start_new_session=True
            )
        finally:
            os.close(read_end)
        output = self._process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], _START_TIMEOUT_S)
        if not ready or output.readline() != _READY:
            self._process.kill()
            self._close()
            raise MuServeError("the supervisor process did not start, so no clock may be locked")
        self._send(_BEAT)

    def _close(self) -> None:
        os.close(self._pipe)
        if self._process is None:
            return
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("the supervisor is still trying to unlock (process %d)", self._process.pid)
        if self._process.stdout is not None:
            self._process.stdout.close()


def watch(pipe: int, lease_s: float, unlock: Callable[[str], bool]) -> int:
    """Wait on ``pipe`` until the daemon is done or dead; returns the exit status.

    ``unlock`` gets the reason and returns whether every GPU is unlocked now.
    """
    lease: float | None = None  # runs from the first beat
    while True:
        readable, _, _ = select.select([pipe], [], [], lease)
        if not readable:
            unlock(f"the daemon has not been heard of for {lease_s:g} s")
            lease = None
            continue
        message = os.read(pipe, 4096)
        if _GOODBYE in message:
            return 0
        if not message:
            return 0 if unlock("the daemon is gone") else 1
        lease = lease_s


def unlock_all(gpus: Mapping[str, ClockHold], reason: str) -> bool:
    """Unlock every GPU, retrying for some seconds; says what it did and returns whether all went well.

    All at the same time: a driver that hangs on one GPU must not keep the others waiting.
    """
    locked = dict(gpus)
    problems: dict[str, GpuError] = {}
    for attempt in range(_UNLOCK_ATTEMPTS):
        if attempt:
            time.sleep(_UNLOCK_RETRY_S)
        with ThreadPoolExecutor(max_workers=len(locked)) as pool:
            outcomes = dict(zip(locked, pool.map(_unlock, locked.values()), strict=True))
        problems = {name: error for name, error in outcomes.items() if error is not None}
        locked = {name: locked[name] for name in problems}
        if all(isinstance(problems[name], GpuPermissionError) for name in locked):
            break  # done, or refused: asking again will not help
    if locked:
        failed = "; ".join(f"{name}: {problems[name]}" for name in locked)
        logger.error("supervisor: %s: could not unlock %s", reason, failed)
    else:
        logger.warning("supervisor: %s: unlocked %s", reason, ", ".join(gpus))
    return not locked


def _unlock(gpu: ClockHold) -> GpuError | None:
    try:
        gpu.unlock_clock()
    except GpuError as error:
        return error
    return None


def main() -> int:
    """Entry point of the supervisor process; stdin is the daemon's pipe."""
    parser = argparse.ArgumentParser(prog="mupower.supervisor", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--node")
    parser.add_argument("--lease", type=float, required=True, help="seconds")
    parser.add_argument("--capped", action="append", default=[], help="a GPU held by a power limit")
    parser.add_argument("--log-format", type=LogFormat, default=LogFormat.TEXT)
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_up_logging(verbose=False, log_format=arguments.log_format)

    from mupower.actuator import Actuator
    from mupower.fleet import holds, open_fleet

    try:
        fleet = open_fleet(arguments.plan, arguments.node)
        for name, problem in fleet.absent.items():
            logger.error("supervisor: %s: cannot be watched over: %s", name, problem)
        actuators = dict.fromkeys(arguments.capped, Actuator.CAP)
        gpus = holds(fleet, dict.fromkeys(fleet.gpus, Actuator.CLOCK) | actuators)
    except MuServeError as error:
        logger.error("supervisor: %s", error)
        return error.exit_code
    with suppress(BrokenPipeError):  # a daemon that died meanwhile is what watch is for
        os.write(sys.stdout.fileno(), _READY)
    return watch(sys.stdin.fileno(), arguments.lease, lambda reason: unlock_all(gpus, reason))


if __name__ == "__main__":
    sys.exit(main())
