"""A virtual GPU: simulated time, clock and energy of a real part, shared by processes through one file.

Nothing here computes: ``run`` only takes the time that the work would take on the part, at the clock in
force meanwhile and with the other work on the same GPU. See ``virtual_state`` for the model.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from muserve.errors import GpuLostError, GpuNotFoundError, GpuUnsupportedError
from muserve.gpu.parts import Part, load_part
from muserve.gpu.protocol import GpuHealth, GpuIdentity, PowerLimits
from muserve.gpu.virtual_file import LockedState
from muserve.gpu.virtual_history import ClockCommand, append_command, history_file, read_commands
from muserve.gpu.virtual_shared import Access, SharedState, create_shared
from muserve.gpu.virtual_state import (
    Job,
    VirtualState,
    advance,
    clock_in_force_mhz,
    command_clock,
    command_limit,
    commanded_limit_w,
    discard,
    find_job,
    finish_s,
    power_w,
    submit,
)

# How late a run may notice that it ends sooner: far below the 24 ms before a raised clock is in force.
_POLL_S = 0.010
# How often a run that shares the GPU with other processes looks whether they still live.
_LIVENESS_S = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualRun:
    """When the work ran (monotonic seconds, exact, before ``run`` returned) and its share of GPU time."""

    started_s: float
    finished_s: float
    gpu_s: float


class VirtualGpu:
    """One virtual GPU; implements ``muserve.gpu.protocol.Gpu``. Safe to use from threads and forks.

    Every method raises GpuLostError when the state file is gone or unreadable and GpuBusyError when
    another process holds it for seconds.
    """

    def __init__(self, state_file: Path) -> None:
        """Open an existing virtual GPU; GpuNotFoundError when ``state_file`` does not exist."""
        if not state_file.exists():
            raise GpuNotFoundError(f"{state_file}: no such virtual GPU")
        self._shared = SharedState(state_file)
        self._history = history_file(state_file)
        with self._shared.access() as access:
            state = access.state
        self._identity = GpuIdentity(
            index=state.index, uuid=state.uuid, name=f"Virtual {state.part}", virtual=True
        )

    @classmethod
    def create(
        cls,
        state_file: Path,
        part_name: str,
        index: int,
        uuid: str,
        *,
        part_dir: Path | None = None,
        reset: bool = False,
    ) -> VirtualGpu:
        """Make sure the virtual GPU exists, and open it.

        Existing state is kept unless it is unreadable, of another part, index or uuid, or ``reset`` asks
        for a new GPU: counters at zero, clock unlocked, no jobs, no history. ``part_dir`` keeps the parts
        that the catalogue does not have. InputError for an unknown part.
        """
        create_shared(state_file, load_part(part_name, part_dir), index, uuid, reset=reset)
        return cls(state_file)

    @property
    def identity(self) -> GpuIdentity:
        """Index on its node, ``VGPU-`` UUID, and a name that says it is virtual."""
        return self._identity

    @property
    def part(self) -> Part:
        """The part that this GPU imitates."""
        return self._shared.part

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """SM clocks of the part, ascending."""
        return self._shared.part.clocks_mhz

    def clock_mhz(self) -> int:
        """The clock in force: a command shows only after the part's switch latency."""
        return clock_in_force_mhz(self.snapshot(), self._shared.part)

    def locked_clock_mhz(self) -> int | None:
        """The clock last locked by any process, at once; None when unlocked."""
        return self.snapshot().locked_clock_mhz

    def lock_clock(self, clock_mhz: int) -> None:
        """Lock the clock; blocks for the part's call latency. GpuUnsupportedError for another clock."""
        clocks = self._shared.part.clocks_mhz
        if clock_mhz not in clocks:
            raise GpuUnsupportedError(
                f"{self._identity.uuid}: {clock_mhz} MHz is not one of its {len(clocks)} supported clocks"
                f" from {clocks[0]} to {clocks[-1]} MHz"
            )
        self._command(clock_mhz)

    def unlock_clock(self) -> None:
        """Return to the default clock; blocks for the part's call latency."""
        self._command(None)

    def power_limits(self) -> PowerLimits:
        """The part's range and default, and the limit last commanded by any process."""
        part = self._shared.part
        return PowerLimits(
            least_w=part.limit_min_w,
            most_w=part.limit_w,
            default_w=part.limit_w,
            limit_w=commanded_limit_w(self.snapshot()),
        )

    def limit_power(self, limit_w: float) -> None:
        """Limit board power; blocks for the part's call latency. GpuUnsupportedError outside the range."""
        part = self._shared.part
        if not part.limit_min_w <= limit_w <= part.limit_w:
            raise GpuUnsupportedError(
                f"{self._identity.uuid}: {limit_w:g} W is not a power limit"
                f" from {part.limit_min_w:g} to {part.limit_w:g} W"
            )
        began_s = time.monotonic()
        effective_s = began_s + (part.switch_call_ms + part.switch_settle_ms) / 1000
        self._shared.change(lambda state: command_limit(state, limit_w, effective_s))
        time.sleep(max(0.0, began_s + part.switch_call_ms / 1000 - time.monotonic()))

    def power_w(self) -> float:
        """Modelled board power at this moment."""
        return power_w(self.snapshot(), self._shared.part)

    def energy_j(self) -> float:
        """Modelled energy since creation, idle time included."""
        return self.snapshot().energy_j

    def busy_s(self) -> float:
        """Seconds since creation in which at least one job ran."""
        return self.snapshot().busy_s

    def utilisation(self) -> float:
        """Share of the last 0.5 to 1 second in which at least one job ran."""
        return self.snapshot().utilisation

    def throttle_reasons(self) -> frozenset[str]:
        """``SwPowerCap`` while the power limit holds the clock down; a virtual GPU knows no other reason."""
        state = self.snapshot()
        held_down = clock_in_force_mhz(state, self._shared.part) < state.clock_mhz
        return frozenset({"SwPowerCap"} if held_down else ())

    def health(self) -> GpuHealth:
        """Nothing: a virtual GPU has no temperature and no memory that could fail."""
        return GpuHealth()

    def history(self) -> tuple[ClockCommand, ...]:
        """Clock commands of every process since creation and since this boot, oldest first."""
        return read_commands(self._history, self._shared.boot_id)

    def snapshot(self) -> VirtualState:
        """Everything about the GPU at this moment."""
        with self._shared.access() as access:
            return advance(access.state, time.monotonic(), self._shared.part)

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        """Spend the GPU time of work that alone takes ``latency_ms`` at the top clock; blocks meanwhile.

        ``not_before_s`` (the ``finished_s`` of the run before) lets work that was submitted late by
        wake-up latency start when the idle GPU could have started it, at most 5 ms back. Any exception
        raised in the waiting thread takes the work off the GPU. GpuLostError when the GPU is reset meanwhile.
        """
        if not (0.0 <= latency_ms < math.inf and 0.0 <= sensitivity <= 1.0):
            raise ValueError(f"latency {latency_ms} ms must be >= 0, sensitivity {sensitivity} in [0, 1]")
        pid = os.getpid()
        job = Job(
            number=0,
            pid=pid,
            process_start=self._shared.process_start(pid) or 0,
            sensitivity=sensitivity,
            remaining_ms=latency_ms,
            started_s=0.0,
        )
        with self._shared.file.watched() as watched:
            access = self._shared.change(
                lambda state: submit(state, job, time.monotonic(), not_before_s, self._shared.part)
            )
            number = access.state.next_job - 1
            try:
                self._wait(number, access, watched)
                return self._collect(number, watched)
            except BaseException:
                self._shared.change(lambda state: discard(state, lambda job: job.number == number))
                raise

    def _collect(self, number: int, watched: LockedState) -> VirtualRun:
        """Take the job off the table once it has ended, waiting again if it has not."""
        while True:
            with self._shared.access() as access:
                try:
                    job = find_job(access.state, number)
                except KeyError:
                    raise GpuLostError(f"{self._identity.uuid} was reset while work ran on it") from None
                if job.finished_s is not None:
                    access.store(discard(access.state, lambda other: other.number == number))
                    return VirtualRun(started_s=job.started_s, finished_s=job.finished_s, gpu_s=job.gpu_s)
            self._wait(number, access, watched)

    def _wait(self, number: int, access: Access, watched: LockedState) -> None:
        """Sleep until the job should have ended, or until another process wrote or might have died."""
        until_s = finish_s(access.state, number, self._shared.part)
        now_s = time.monotonic()
        if any(job.pid != os.getpid() for job in access.state.running):
            until_s = min(until_s, now_s + _LIVENESS_S)
        while now_s < until_s and watched.generation() == access.generation:
            time.sleep(min(until_s - now_s, _POLL_S))
            now_s = time.monotonic()

    def _command(self, clock_mhz: int | None) -> None:
        began_s = time.monotonic()
        call_s = self._shared.part.switch_call_ms / 1000
        effective_s = began_s + call_s + self._shared.part.switch_settle_ms / 1000
        command = ClockCommand(
            time_s=began_s,
            wall_time_s=time.time(),
            pid=os.getpid(),
            action="unlock" if clock_mhz is None else "lock",
            clock_mhz=clock_mhz,
        )

        def change(state: VirtualState) -> VirtualState:
            append_command(self._history, command, self._shared.boot_id)
            return command_clock(state, clock_mhz, effective_s, self._shared.part)

        self._shared.change(change)
        time.sleep(max(0.0, began_s + call_s - time.monotonic()))
