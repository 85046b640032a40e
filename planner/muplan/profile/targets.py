"""What a measurement times: every bucket's whole graph, and a few partitions of it as graphs of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.profile.buckets import Work
from muplan.profile.journal import PointKey
from muplan.profile.modelled import ModelledRows, spans
from muplan.profile.profile_file import Row
from muplan.splitting import split
from muserve.errors import GpuPermissionError, GpuUnsupportedError
from muserve.gpu.parts import Part
from muserve.gpu.protocol import Gpu
from muserve.plan import Phase

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """One graph to time; ``cuts`` are those of its bucket, ``modelled`` what the roofline says of it."""

    work: Work
    modelled: Row
    cuts: tuple[int, ...]

    def key(self, clock_mhz: int) -> PointKey:
        """Which point of a journal its time at ``clock_mhz`` is."""
        work, row = self.work, self.modelled
        return (work.phase.value, work.batch, work.tokens, row.first, row.last, clock_mhz)

    def graph(self) -> onnx.ModelProto:
        """The ONNX model of this span."""
        starts = [0, *(cut + 1 for cut in self.cuts)]
        if self.modelled.op_type == "model":
            return self.work.graph
        return split(self.work.graph, self.cuts)[starts.index(self.modelled.first)]

    def __str__(self) -> str:
        piece = "" if self.modelled.op_type == "model" else f", from {self.modelled.name.split(' .. ')[0]}"
        return f"{self.work}{piece}"


def targets(work: Work, part: Part, partitions: int) -> Iterator[Target]:
    """The whole of ``work``, then about ``partitions`` pieces of equal modelled time.

    A generative model is timed as a whole only: its layers are alike, and its caches stay where they are.
    """
    rows = ModelledRows(work, part)
    latency_ms = [time.latency_ms for time in rows.times(work.runtime.expected)]
    cuts = even_cuts(work.places if work.phase is Phase.INFERENCE else (), latency_ms, partitions)
    yield Target(work=work, modelled=rows.whole(), cuts=cuts)
    if cuts:
        for span in spans(cuts, len(work.costs)):
            yield Target(work=work, modelled=rows.span(*span), cuts=cuts)


def even_cuts(places: Sequence[int], latency_ms: Sequence[float], partitions: int) -> tuple[int, ...]:
    """Those of ``places`` that come closest to ``partitions`` pieces of equal time, ascending."""
    total, passed, offered = sum(latency_ms), 0.0, set(places)
    best: dict[int, tuple[float, int]] = {}
    for position, latency in enumerate(latency_ms):
        passed += latency
        goal = round(passed / total * partitions) if total else 0
        if position in offered and 0 < goal < partitions:
            miss = abs(passed / total - goal / partitions)
            best[goal] = min(best.get(goal, (math.inf, 0)), (miss, position))
    return tuple(sorted(position for _, position in best.values()))


def choose_clocks(gpu: Gpu, part: Part, count: int) -> tuple[int, ...]:
    """Clocks to measure at, ascending: ``count`` from the knee to the top, evenly apart.

    The top clock alone when the device refuses to be locked: it then runs at its default.
    """
    supported = gpu.supported_clocks_mhz()
    try:
        gpu.lock_clock(supported[-1])
    except (GpuPermissionError, GpuUnsupportedError):
        return (supported[-1],)
    gpu.unlock_clock()
    working = [clock for clock in supported if clock >= part.knee_mhz]
    steps = max(count, 2) - 1
    goals = [working[0] + (working[-1] - working[0]) * step / steps for step in range(steps + 1)]
    return tuple(sorted({min(working, key=lambda clock: abs(clock - goal)) for goal in goals}))
