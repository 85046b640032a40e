"""The clock locks of this process: taken, changed and given back in one place.

with ClockLocks(gpus) as locks:      # whatever a dead daemon left locked is unlocked here
    locks.apply("node0/gpu0", 1275)  # locks
    locks.apply("node0/gpu0", None)  # unlocks
# whichever way the block was left, every GPU is unlocked here
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mupower.actuator import ClockHold
from muserve.errors import GpuError

logger = logging.getLogger(__name__)

_UNLOCK_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockChange:
    """A lock that was changed (in a dry run: would have been); None means unlocked."""

    gpu: str
    before_mhz: int | None
    after_mhz: int | None


class ClockLocks:
    """Owns the locks of ``gpus`` between ``__enter__`` and ``__exit__``.

    ``dead_band_mhz``: a clock is lowered only by at least this much, and only when the last change is
    ``dwell_s`` ago by ``clock``, because each switch costs the GPU some milliseconds; raising and
    unlocking are never put off. ``dry_run`` tracks what would be locked and touches nothing.
    """

    def __init__(
        self,
        gpus: Mapping[str, ClockHold],
        *,
        dead_band_mhz: int = 15,
        dwell_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        dry_run: bool = False,
    ) -> None:
        self._gpus = dict(gpus)
        self._dead_band_mhz = dead_band_mhz
        self._dwell_s = dwell_s
        self._clock = clock
        self._changed_s: dict[str, float] = {}
        self._dry_run = dry_run
        self._commanded: dict[str, int | None] = dict.fromkeys(self._gpus)
        self._doubtful: set[str] = set()
        self._shows_its_lock: set[str] = set()

    def __enter__(self) -> Self:
        self.release_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release_all()

    def commanded_mhz(self, gpu: str) -> int | None:
        """The clock ``gpu`` was last locked at by us; None when we hold no lock on it."""
        return self._commanded[gpu]

    def doubt(self, gpu: str | None = None) -> None:
        """Forget what is in force (on every GPU): somebody may have unlocked. ``apply`` then acts anew."""
        self._doubtful.update(self._gpus if gpu is None else [gpu])

    def apply(self, gpu: str, clock_mhz: int | None) -> ClockChange | None:
        """Bring ``gpu`` to ``clock_mhz`` (None: unlock); None when it is there already.

        Raises GpuError when the device refuses; its state is then in doubt until the next success.
        """
        before = self._commanded[gpu]
        if not self._dry_run and self._changed_by_others(gpu):
            logger.warning("%s: its clock lock was changed by somebody else", gpu)
            self._doubtful.add(gpu)
        if gpu not in self._doubtful and not self._is_due(gpu, before, clock_mhz):
            return None
        if not self._dry_run:
            self._command(gpu, clock_mhz)
        self._commanded[gpu] = clock_mhz
        self._changed_s[gpu] = self._clock()
        return ClockChange(gpu=gpu, before_mhz=before, after_mhz=clock_mhz)

    def release_all(self) -> None:
        """Unlock every GPU, even those we never locked; raises GpuError only after trying all.

        Those that failed last come last: a driver that hangs must not keep the others waiting.
        """
        if self._dry_run:
            return
        in_order = sorted(self._gpus, key=lambda gpu: gpu in self._doubtful)
        failures = [failure for gpu in in_order if (failure := self._release(gpu)) is not None]
        if failures:
            raise type(failures[0])("; ".join(str(failure) for failure in failures)) from failures[0]

    def _release(self, gpu: str) -> GpuError | None:
        for _ in range(_UNLOCK_ATTEMPTS):
            try:
                self._command(gpu, None)
            except GpuError as error:
                failure = error
            else:
                self._commanded[gpu] = None
                return None
        logger.error("%s: could not be unlocked and may still be held: %s", gpu, failure)
        return failure

    def _command(self, gpu: str, clock_mhz: int | None) -> None:
        self._doubtful.add(gpu)
        if clock_mhz is None:
            self._gpus[gpu].unlock_clock()
        else:
            self._gpus[gpu].lock_clock(clock_mhz)
        self._doubtful.discard(gpu)

    def _is_due(self, gpu: str, before_mhz: int | None, after_mhz: int | None) -> bool:
        if after_mhz is None or (before_mhz is not None and after_mhz > before_mhz):
            return before_mhz is not None
        if before_mhz is not None and before_mhz - after_mhz < self._dead_band_mhz:
            return False
        changed_s = self._changed_s.get(gpu)
        return changed_s is None or self._clock() - changed_s >= self._dwell_s

    def _changed_by_others(self, gpu: str) -> bool:
        """Devices that show their lock are checked; of others (NVML shows none) nothing is known."""
        shown = self._gpus[gpu].locked_clock_mhz()
        if shown is not None:
            self._shows_its_lock.add(gpu)
        return gpu in self._shows_its_lock and shown != self._commanded[gpu]
