"""The measured profile: every bucket's model and a few partitions of it, timed at locked clocks.

Only what runs alone can be timed, so partitions are models of their own, cut as for serving: each pays for
its launch and its synchronisation, and together they take a little longer than the whole. Single operators
are not timed: outside of their graph they would lose their fusions, and ONNX Runtime's own profiler
stamps CUDA kernels when they are launched, not when they run.

Points at which the GPU throttled are kept but enter no fit. If clocks may not be locked, only latency and
power at the default clock are measured, and ``k`` stays the roofline's, which ``Profile.bases`` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from muplan.profile.buckets import Work
from muplan.profile.journal import Journal
from muplan.profile.modelled import rounded
from muplan.profile.profile_file import PROFILE_VERSION, Bases, Bucket, Device, Point, Profile, Row
from muplan.profile.runtime import Runtime
from muplan.profile.stopwatch import Patience, read_workload
from muplan.profile.targets import Target, targets
from muplan.sources import LoadedModel
from muserve import __version__
from muserve.errors import GpuError, InputError
from muserve.gpu.parts import Part
from muserve.gpu.protocol import Gpu
from muserve.plan import Basis
from muserve.power_fit import fit_power
from muserve.time_fit import fit_time

FEWEST_CLOCKS = 3
"""Two clocks would fit any law exactly and leave nothing to judge it by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The device under test (``driver``: its version), the part it should be, what runs on it, and how.

    ``clocks_mhz`` ascend; a single one means that the clock is left as it is. ``partitions`` is about how
    many pieces of each model are timed beside the whole.
    """

    gpu: Gpu
    driver: str
    part: Part
    runtime: Runtime
    clocks_mhz: tuple[int, ...]
    partitions: int
    patience: Patience

    @property
    def locks(self) -> bool:
        """Whether clocks are locked."""
        return len(self.clocks_mhz) > 1


class Watcher(Protocol):
    """Who is told how a measurement goes."""

    def started(self, points: int, finished: int) -> None:
        """So many points there are; so many of them the journal had."""

    def measuring(self, what: str) -> None:
        """The next point is this."""

    def measured(self) -> None:
        """One more point is finished."""


def check_part(gpu: Gpu, part: Part) -> None:
    """InputError unless ``gpu`` is the product ``part``, with its top clock."""
    device, top_mhz = gpu.identity, gpu.supported_clocks_mhz()[-1]
    if device.name != part.product:
        raise InputError(
            f"--gpu {part.name}: expected {part.product}, device {device.index} is {device.name}"
        )
    if top_mhz != part.top_clock_mhz:
        raise InputError(
            f"--gpu {part.name}: expected a top clock of {part.top_clock_mhz} MHz, "
            f"device {device.index} ({device.name}) has {top_mhz} MHz"
        )


def journal_identity(source: LoadedModel, works: Sequence[Work], bench: Bench) -> dict[str, Any]:
    """All that must stay the same for a measurement to be continued."""
    device, version = bench.gpu.identity, bench.runtime.version
    return {
        "clocks_mhz": list(bench.clocks_mhz),
        "dims": works[0].fixed_dims,
        "driver": bench.driver,
        "gpu": f"{device.name} {device.uuid}",
        "model": source.source,
        "model_fingerprint": source.fingerprint,
        "muserve_version": __version__,
        "part": bench.part.name,
        "partitions": bench.partitions,
        "repetitions": bench.patience.repetitions,
        "runtime": f"{version.name} {version.version}",
        "window_s": bench.patience.window_s,
    }


def measured_profile(
    source: LoadedModel, works: Sequence[Work], bench: Bench, journal: Journal, watcher: Watcher
) -> Profile:
    """Time what ``journal`` does not have yet, and fit. Clocks are unlocked however this ends.

    Raises InputError when the runtime cannot run the model, GpuError when the device fails, or throttles
    at so many clocks that no law can be fitted; finished points stay in the journal.
    """
    aims = {work: tuple(targets(work, bench.part, bench.partitions)) for work in works}
    missing = [
        (target, [clock for clock in bench.clocks_mhz if not _finished(journal, target, clock)])
        for target in (target for bucket in aims.values() for target in bucket)
    ]
    points = len(missing) * len(bench.clocks_mhz)
    watcher.started(points, points - sum(len(clocks) for _, clocks in missing))
    with _unlocked_after(bench):
        for target, clocks in missing:
            if clocks:
                _time(target, clocks, bench, journal, watcher)
    virtual = bench.gpu.identity.virtual
    basis = Basis.MODELLED if virtual else Basis.MEASURED
    return Profile(
        version=PROFILE_VERSION,
        muserve_version=__version__,
        model=source.source,
        kind=source.kind,
        model_fingerprint=source.fingerprint,
        dtype=works[0].dtype,
        dims=works[0].fixed_dims,
        part=bench.part.name,
        bases=Bases(latency=basis, sensitivity=basis if bench.locks else Basis.MODELLED, power=basis),
        runtime=bench.runtime.version,
        device=Device(
            name=bench.gpu.identity.name, uuid=bench.gpu.identity.uuid, driver=bench.driver, virtual=virtual
        ),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        buckets=tuple(_bucket(work, aims[work], bench, journal) for work in works),
    )


@contextmanager
def _unlocked_after(bench: Bench) -> Iterator[None]:
    try:
        yield
    finally:
        if bench.locks:
            bench.gpu.unlock_clock()


def _finished(journal: Journal, target: Target, clock_mhz: int) -> bool:
    """Whether a point needs no more timing; one that throttled is worth another try."""
    point = journal.points.get(target.key(clock_mhz))
    return point is not None and not point.throttled


def _time(target: Target, clocks: Sequence[int], bench: Bench, journal: Journal, watcher: Watcher) -> None:
    """Measure one target at ``clocks``, the highest first: it needs the coolest GPU."""
    watcher.measuring(str(target))
    workload = bench.runtime.load(target.graph(), target.work.sizes, target.modelled)
    for clock in reversed(clocks):
        watcher.measuring(f"{target}, {clock} MHz" if bench.locks else str(target))
        if bench.locks:
            bench.gpu.lock_clock(clock)
        reading = read_workload(workload, bench.gpu, clock if bench.locks else None, bench.patience)
        point = Point(
            first=target.modelled.first,
            last=target.modelled.last,
            clock_mhz=clock,
            latency_ms=rounded(reading.latency_ms),
            spread_ms=rounded(reading.spread_ms),
            repetitions=bench.patience.repetitions,
            runs=reading.runs,
            power_w=None if reading.power_w is None else rounded(reading.power_w),
            energy_j=None if reading.energy_j is None else rounded(reading.energy_j),
            throttled=reading.throttled,
        )
        journal.add(target.key(clock), point)
        watcher.measured()


def _bucket(work: Work, aims: Sequence[Target], bench: Bench, journal: Journal) -> Bucket:
    points = {aim: [journal.points[aim.key(clock)] for clock in bench.clocks_mhz] for aim in aims}
    rows = [_row(aim, points[aim], bench) for aim in aims]
    return Bucket(
        phase=work.phase,
        batch=work.batch,
        tokens=work.tokens,
        whole=rows[0],
        partitions=tuple(rows[1:]) or (replace(rows[0], name="model", op_type="partition"),),
        operators=(),
        points=tuple(point for aim in aims for point in points[aim]),
    )


def _row(target: Target, points: Sequence[Point], bench: Bench) -> Row:
    """The measured figures of one target; counts of work come from its graph either way."""
    row = replace(
        target.modelled, latency_ms=points[-1].latency_ms, launch_ms=None, memory_ms=None, compute_ms=None
    )
    if not bench.locks:
        return _with_power(row, points[-1:], bench)
    usable = [point for point in points if not point.throttled]
    if len(usable) < FEWEST_CLOCKS:
        reasons = ", ".join(sorted({reason for point in points for reason in point.throttled}))
        raise GpuError(
            f"{bench.gpu.identity.name}: {target}: {len(usable)} of {len(points)} clocks were free of "
            f"throttling ({reasons}), a law needs {FEWEST_CLOCKS}: run the same command again on a cooler GPU"
        )
    law = fit_time({point.clock_mhz: point.latency_ms for point in usable})
    ratio = bench.part.top_clock_mhz / law.top_mhz
    bounds = (law.sensitivity, law.sensitivity_low, law.sensitivity_high)
    k, low, high = (round(_seen_from(ratio, bound), 6) for bound in bounds)
    row = replace(row, k=k, k_low=low, k_high=high, from_mhz=usable[0].clock_mhz, to_mhz=usable[-1].clock_mhz)
    return _with_power(row, usable, bench)


def _seen_from(ratio: float, sensitivity: float) -> float:
    """``k`` relative to a clock ``ratio`` times higher than the one that ``sensitivity`` is relative to."""
    clocked = sensitivity / ratio
    return clocked / (1 - sensitivity + clocked)


def _with_power(row: Row, points: Sequence[Point], bench: Bench) -> Row:
    """``row`` with board power from what ``points`` drew; terms are null below ``FEWEST_CLOCKS`` of them."""
    watts: dict[float, float] = {
        point.clock_mhz: point.power_w for point in points if point.power_w is not None
    }
    top, knee = bench.part.top_clock_mhz, bench.part.knee_mhz
    row = replace(
        row,
        busy_top_w=watts.get(top),
        busy_knee_w=watts.get(knee),
        static_w=None,
        linear_w=None,
        steep_w=None,
        steep_exponent=None,
    )
    if len(watts) < FEWEST_CLOCKS:
        return row
    law = fit_power(watts)
    ratio = top / law.top_mhz
    return replace(
        row,
        static_w=rounded(law.static_w),
        linear_w=rounded(law.linear_w * ratio),
        steep_w=rounded(law.steep_w * ratio**law.exponent),
        steep_exponent=law.exponent,
    )
