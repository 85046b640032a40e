"""What a virtual GPU is at one moment, and what time does to it. Pure: no clock, file or process here.

The GPU is shared by processor sharing: of ``n`` running jobs each gets 1/n of it, and a job advances at
``1 / slowdown`` of the clock that is in force *while* it runs. Between two events (a job ends, a clock
change comes into force) everything is constant, so ``advance`` jumps from event to event and is exact.

A power limit works as in a real part: while the work that runs would draw more at the clock asked for,
the clock in force is the highest supported one at which it does not (the lowest one when none will do).
A limit above the natural draw changes nothing. The regulation is taken as instant once a limit is in force,
which takes as long as a clock command; that delay is modelled, nobody has published it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from muserve.gpu.parts import Part
from muserve.physics import busy_power_w, idle_power_w, slowdown

GRACE_S = 0.005
"""How far back a job may start on an idle GPU: back-to-back work must not pay for wake-up latency."""

_WINDOW_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work. Its owner is a process, known by pid and start time, so pid reuse is harmless.

    ``remaining_ms`` is GPU time at the top clock with the GPU to itself; ``gpu_s`` the GPU seconds
    received so far. ``finished_s`` is set when it is done and its owner has not collected it yet.
    """

    number: int
    pid: int
    process_start: int
    sensitivity: float
    remaining_ms: float
    started_s: float
    gpu_s: float = 0.0
    finished_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockChange:
    """A commanded clock and power limit that come into force at ``effective_s``."""

    effective_s: float
    clock_mhz: int
    limit_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyMark:
    """How many busy seconds had been counted at ``time_s``."""

    time_s: float
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualState:
    """One virtual GPU at ``now_s`` (monotonic seconds of the boot ``boot_id``).

    ``clock_mhz`` and ``limit_w`` are in force, ``changes`` are on their way in, in order.
    ``idle_since_s`` is when the last
    job ended. ``energy_j`` and ``busy_s`` count from creation. ``older`` and ``newer`` bound the
    window of ``utilisation``.
    """

    boot_id: str
    part: str
    index: int
    uuid: str
    now_s: float
    clock_mhz: int
    limit_w: float
    locked_clock_mhz: int | None
    idle_since_s: float
    older: BusyMark
    newer: BusyMark
    energy_j: float = 0.0
    busy_s: float = 0.0
    next_job: int = 1
    changes: tuple[ClockChange, ...] = ()
    jobs: tuple[Job, ...] = ()

    @property
    def running(self) -> tuple[Job, ...]:
        """Jobs that have work left."""
        return tuple(job for job in self.jobs if job.finished_s is None)

    @property
    def utilisation(self) -> float:
        """Busy share of the last 0.5 to 1 second."""
        span_s = self.now_s - self.older.time_s
        busy_s = self.busy_s - self.older.busy_s
        return min(1.0, busy_s / span_s) if span_s > 0 else float(bool(self.running))


def new_state(part: Part, *, index: int, uuid: str, boot_id: str, now_s: float) -> VirtualState:
    """An idle, unlocked GPU at its default clock, with all counters at zero."""
    mark = BusyMark(time_s=now_s, busy_s=0.0)
    return VirtualState(
        boot_id=boot_id,
        part=part.name,
        index=index,
        uuid=uuid,
        now_s=now_s,
        clock_mhz=part.top_clock_mhz,
        limit_w=part.limit_w,
        locked_clock_mhz=None,
        idle_since_s=now_s,
        older=mark,
        newer=mark,
    )


def power_w(state: VirtualState, part: Part) -> float:
    """Board power at ``state.now_s``: time-sliced jobs contribute their mean."""
    return _power_at(state.running, part, clock_in_force_mhz(state, part))


def clock_in_force_mhz(state: VirtualState, part: Part) -> int:
    """The clock at ``state.now_s``: the one asked for, or as far below it as the power limit demands."""
    running = state.running
    if state.limit_w >= part.limit_w:
        return state.clock_mhz  # no part draws more than its default limit
    if _power_at(running, part, state.clock_mhz) <= state.limit_w:
        return state.clock_mhz
    clocks = part.clocks_mhz[: bisect_left(part.clocks_mhz, state.clock_mhz)]
    above = bisect_right(clocks, state.limit_w, key=lambda clock: _power_at(running, part, clock))
    return clocks[max(0, above - 1)] if clocks else state.clock_mhz


def _power_at(running: tuple[Job, ...], part: Part, clock_mhz: int) -> float:
    if not running:
        return idle_power_w(part, clock_mhz)
    return sum(busy_power_w(part, job.sensitivity, clock_mhz) for job in running) / len(running)


def advance(state: VirtualState, now_s: float, part: Part) -> VirtualState:
    """The state at ``now_s``; unchanged when that is in its past. Exact whatever the steps taken."""
    while state.now_s < now_s or _event_is_due(state):
        state = _step(state, max(now_s, state.now_s), part)
    return state


def rest(state: VirtualState, now_s: float, part: Part) -> VirtualState:
    """``advance`` for storing: an idle GPU is left where a late job may still start (``GRACE_S``)."""
    idle_since_s = state.idle_since_s
    if state.running:
        advanced = advance(state, now_s, part)
        if advanced.running:
            return advanced
        idle_since_s = advanced.idle_since_s
    return advance(state, max(idle_since_s, now_s - GRACE_S), part)


def submit(
    state: VirtualState, job: Job, now_s: float, not_before_s: float | None, part: Part
) -> VirtualState:
    """Add ``job`` (its number and start are set here) and advance to ``now_s``.

    ``state`` comes from ``rest``. The job starts now; on an idle GPU it may start as early as
    ``not_before_s``, but never before the GPU fell idle nor more than ``GRACE_S`` ago.
    """
    start_s = max(now_s, state.now_s)
    if not_before_s is not None and not state.running:
        earliest_s = max(not_before_s, state.idle_since_s, now_s - GRACE_S, state.now_s)
        start_s = min(start_s, earliest_s)
    state = advance(state, start_s, part)
    job = replace(job, number=state.next_job, started_s=start_s)
    added = replace(state, jobs=(*state.jobs, job), next_job=state.next_job + 1)
    return advance(added, now_s, part)


def discard(state: VirtualState, unwanted: Callable[[Job], bool]) -> VirtualState:
    """Drop jobs at ``state.now_s``: collected, cancelled, or of a dead owner."""
    kept = tuple(job for job in state.jobs if not unwanted(job))
    falls_idle = bool(state.running) and all(job.finished_s is not None for job in kept)
    return replace(state, jobs=kept, idle_since_s=state.now_s if falls_idle else state.idle_since_s)


def command_clock(
    state: VirtualState, locked_clock_mhz: int | None, effective_s: float, part: Part
) -> VirtualState:
    """Ask for a lock (None: for the default clock); it comes into force at ``effective_s``."""
    clock_mhz = part.top_clock_mhz if locked_clock_mhz is None else locked_clock_mhz
    change = ClockChange(effective_s=effective_s, clock_mhz=clock_mhz, limit_w=commanded_limit_w(state))
    return replace(state, locked_clock_mhz=locked_clock_mhz, changes=(*state.changes, change))


def command_limit(state: VirtualState, limit_w: float, effective_s: float) -> VirtualState:
    """Ask for a power limit; it comes into force at ``effective_s``."""
    clock_mhz = state.changes[-1].clock_mhz if state.changes else state.clock_mhz
    change = ClockChange(effective_s=effective_s, clock_mhz=clock_mhz, limit_w=limit_w)
    return replace(state, changes=(*state.changes, change))


def commanded_limit_w(state: VirtualState) -> float:
    """The power limit last asked for."""
    return state.changes[-1].limit_w if state.changes else state.limit_w


def finish_s(state: VirtualState, number: int, part: Part) -> float:
    """When job ``number`` will end if nobody does anything; KeyError when there is no such job."""
    while True:
        job = find_job(state, number)
        if job.finished_s is not None:
            return job.finished_s
        state = _step(state, inf, part)


def find_job(state: VirtualState, number: int) -> Job:
    """The job called ``number``; KeyError when the state has none."""
    for job in state.jobs:
        if job.number == number:
            return job
    raise KeyError(f"no job {number}")


def _event_is_due(state: VirtualState) -> bool:
    if state.changes and state.changes[0].effective_s <= state.now_s:
        return True
    return any(job.remaining_ms <= 0 for job in state.running)


def _step(state: VirtualState, limit_s: float, part: Part) -> VirtualState:
    """Advance to the next event or to ``limit_s``, whichever is first; nothing changes in between."""
    running = state.running
    clock_mhz = clock_in_force_mhz(state, part)
    seconds_per_ms = {
        job.number: slowdown(part, job.sensitivity, clock_mhz) * len(running) / 1000 for job in running
    }
    ends_s = {job.number: state.now_s + job.remaining_ms * seconds_per_ms[job.number] for job in running}
    change = state.changes[0] if state.changes else None
    end_s = min(limit_s, *ends_s.values(), change.effective_s if change else inf)
    end_s = max(end_s, state.now_s)
    span_s = end_s - state.now_s

    def moved(job: Job) -> Job:
        if job.finished_s is not None:
            return job
        gpu_s = job.gpu_s + span_s / len(running)
        # A job whose end was computed is finished there: recomputing it from what remains could miss by
        # a rounding error, and the loop would not end.
        if ends_s[job.number] <= end_s:
            return replace(job, remaining_ms=0.0, gpu_s=gpu_s, finished_s=end_s)
        return replace(job, remaining_ms=job.remaining_ms - span_s / seconds_per_ms[job.number], gpu_s=gpu_s)

    jobs = tuple(moved(job) for job in state.jobs)
    falls_idle = bool(running) and all(job.finished_s is not None for job in jobs)
    changes_clock = change is not None and change.effective_s <= end_s
    older, newer = _marks(state, end_s, bool(running))
    return replace(
        state,
        now_s=end_s,
        energy_j=state.energy_j + _power_at(running, part, clock_mhz) * span_s,
        busy_s=state.busy_s + (span_s if running else 0.0),
        idle_since_s=end_s if falls_idle else state.idle_since_s,
        clock_mhz=change.clock_mhz if change and changes_clock else state.clock_mhz,
        limit_w=change.limit_w if change and changes_clock else state.limit_w,
        changes=state.changes[1:] if changes_clock else state.changes,
        jobs=jobs,
        older=older,
        newer=newer,
    )


def _marks(state: VirtualState, end_s: float, busy: bool) -> tuple[BusyMark, BusyMark]:
    """The utilisation window after an interval that is wholly busy or wholly idle."""
    passed = int((end_s - state.newer.time_s) // _WINDOW_S)
    if passed < 1:
        return state.older, state.newer

    def mark(time_s: float) -> BusyMark:
        busy_s = max(0.0, time_s - state.now_s) if busy else 0.0
        return BusyMark(time_s=time_s, busy_s=state.busy_s + busy_s)

    newer = mark(state.newer.time_s + passed * _WINDOW_S)
    older = state.newer if passed == 1 else mark(state.newer.time_s + (passed - 1) * _WINDOW_S)
    return older, newer
