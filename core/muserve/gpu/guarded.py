"""A GPU whose calls are given up when the driver does not answer.

NVML has no timeout of its own: a call into a sick driver may never return. Here every call of one GPU is
made by one thread of its own, and the caller waits ``timeout_s`` at most. While a call is stuck,
further calls of that GPU fail at once, so one sick GPU costs its neighbours one timeout, not one a cycle.
A stuck call that comes back after all may have changed the device: whoever gave it up must command anew.

The threads never hold up the end of the process: they are daemon threads, and nothing joins them. One thing
is beyond any process: a thread that sleeps uninterruptibly inside the kernel (state D) keeps its process in
the table until the driver lets go, SIGKILL included. By then everybody else has been unlocked.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from muserve.errors import GpuBusyError
from muserve.gpu.protocol import Gpu, GpuHealth, GpuIdentity, PowerLimits

T = TypeVar("T")

TIMEOUT_S = 2.0
"""Far above the 11 ms (99th percentile) that a clock command takes, below the supervisor's lease."""


class _Call:
    """One call: made by the worker thread, waited for by somebody who may give up."""

    def __init__(self, what: str, work: Callable[[], object]) -> None:
        self.what = what
        self.begun_s = time.monotonic()
        self.done = threading.Event()
        self.answer: object = None
        self.error: BaseException | None = None
        self._work = work

    def make(self) -> None:
        try:
            self.answer = self._work()
        except BaseException as error:  # handed to the one who waits
            self.error = error
        self.done.set()


class DriverThread:
    """The one thread that calls a driver for ``name``; its callers wait ``timeout_s`` at most.

    One caller at a time.
    """

    def __init__(self, name: str, timeout_s: float = TIMEOUT_S) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._stuck: _Call | None = None
        arguments = (self._calls,)
        threading.Thread(target=_serve, args=arguments, name=f"driver calls of {name}", daemon=True).start()
        # The thread knows only the queue, so that it ends when nobody can call any more.
        weakref.finalize(self, self._calls.put, None)

    def ask(self, what: str, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises; GpuBusyError, naming ``what``, when it does not in time."""
        stuck = self._stuck
        if stuck is not None and not stuck.done.is_set():
            waited_s = time.monotonic() - stuck.begun_s
            said = f"the driver has not answered ({stuck.what}) for {waited_s:.1f} s"
            raise GpuBusyError(f"{self._name}: {said}")
        call = _Call(what, work)
        self._calls.put(call)
        if not call.done.wait(self._timeout_s):
            self._stuck = call
            said = f"the driver did not answer ({what}) within {self._timeout_s:g} s"
            raise GpuBusyError(f"{self._name}: {said}")
        if call.error is not None:
            raise call.error
        answer: T = call.answer  # type: ignore[assignment]  # what ``work`` returned
        return answer


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.make()


class GuardedGpu:
    """The GPU that ``opening`` returns, behind a thread; implements ``muserve.gpu.protocol.Gpu``.

    ``name`` says which GPU in the GpuBusyError that every method raises when the driver does not answer in
    time. Other errors are those of the GPU.
    """

    def __init__(self, name: str, opening: Callable[[], Gpu], timeout_s: float = TIMEOUT_S) -> None:
        self._ask = DriverThread(name, timeout_s).ask
        self._gpu: Gpu = self._ask("open", opening)
        self._identity = self._gpu.identity
        self._clocks_mhz = self._ask("supported clocks", self._gpu.supported_clocks_mhz)

    @property
    def identity(self) -> GpuIdentity:
        """As told when it was opened."""
        return self._identity

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """As told when it was opened."""
        return self._clocks_mhz

    def clock_mhz(self) -> int:
        """See ``Gpu``."""
        return self._ask("clock", self._gpu.clock_mhz)

    def locked_clock_mhz(self) -> int | None:
        """See ``Gpu``."""
        return self._ask("lock", self._gpu.locked_clock_mhz)

    def lock_clock(self, clock_mhz: int) -> None:
        """See ``Gpu``."""
        self._ask(f"lock at {clock_mhz} MHz", lambda: self._gpu.lock_clock(clock_mhz))

    def unlock_clock(self) -> None:
        """See ``Gpu``."""
        self._ask("unlock", self._gpu.unlock_clock)

    def power_limits(self) -> PowerLimits:
        """See ``Gpu``."""
        return self._ask("power limits", self._gpu.power_limits)

    def limit_power(self, limit_w: float) -> None:
        """See ``Gpu``."""
        self._ask(f"power limit of {limit_w:g} W", lambda: self._gpu.limit_power(limit_w))

    def power_w(self) -> float:
        """See ``Gpu``."""
        return self._ask("power", self._gpu.power_w)

    def energy_j(self) -> float:
        """See ``Gpu``."""
        return self._ask("energy", self._gpu.energy_j)

    def utilisation(self) -> float:
        """See ``Gpu``."""
        return self._ask("utilisation", self._gpu.utilisation)

    def throttle_reasons(self) -> frozenset[str]:
        """See ``Gpu``."""
        return self._ask("clock event reasons", self._gpu.throttle_reasons)

    def health(self) -> GpuHealth:
        """See ``Gpu``."""
        return self._ask("health", self._gpu.health)
