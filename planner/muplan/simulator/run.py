"""Runs a scenario: spans of requests, clock changes and the moments of measurement around the event loop.

At equal times the event loop comes first, then clocks that come into force, then the control law.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import ModuleType
from typing import Protocol

import numpy as np

from muplan.simulator.build import Layout, no_arrivals, with_room
from muplan.simulator.result import GpuResult, SimulationResult, model_result
from muplan.simulator.scenario import Scenario
from muplan.simulator.streams import request_spans
from muplan.simulator.world import Array
from muserve.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a control may see at ``time_s``: everything counted so far, by the scenario's numbering.

    ``seen`` has the fields arrived, completed, dropped, met and jct_ms for each model, ``histogram`` its
    latencies in bins (``muplan.simulator.result.quantile_ms``). ``waiting`` and ``backlog_s`` are by model
    and GPU ([models, gpus]); a backlog is the predicted work of the token engine there, as engines
    report it, 0 elsewhere.
    """

    time_s: float
    clocks_mhz: tuple[int, ...]
    seen: Array
    histogram: Array
    waiting: Array
    backlog_s: Array


class ClockControl(Protocol):
    """Whatever sets clocks during a run."""

    @property
    def period_s(self) -> float:
        """Time from one decision to the next; the first comes after one period."""

    def clocks(self, view: View) -> Mapping[str, int | None]:
        """The clock wanted for each GPU by name: None is the driver's default; absent GPUs keep theirs."""


class _Kind(IntEnum):
    MEASURE_FROM = 0
    MEASURE_UNTIL = 1
    CLOCK = 2
    CONTROL = 3


def simulate(scenario: Scenario, control: ClockControl | None = None) -> SimulationResult:
    """Run to the horizon, then until every request has left; equal scenarios give equal results.

    InputError when numba is not installed.
    """
    return _Run(scenario, control, _load_kernel()).result()


def _load_kernel() -> ModuleType:
    try:
        from muplan.simulator import kernel
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise InputError(
            "the simulator needs numba, which is not installed: pip install 'muserve[plan]'"
        ) from error
    return kernel


class _Run:
    def __init__(self, scenario: Scenario, control: ClockControl | None, kernel: ModuleType) -> None:
        self._scenario = scenario
        self._control = control
        self._kernel = kernel
        self._layout = Layout(scenario, watched=control is not None)
        self._world = self._layout.world
        self._clocks = [gpu.clock_mhz for gpu in scenario.gpus]
        self._wanted = list(self._clocks)
        self._clock_since_s = [scenario.warm_up_s] * len(self._clocks)
        self._clock_area = [0.0] * len(self._clocks)
        self._before: Array = self._world.gpus.copy()
        self._after: Array = self._before
        # (time, kind, number, clock)
        self._agenda: list[tuple[float, _Kind, int, int]] = [
            (scenario.warm_up_s, _Kind.MEASURE_FROM, 0, 0),
            (scenario.horizon_s, _Kind.MEASURE_UNTIL, 0, 0),
        ]
        if control is not None:
            heapq.heappush(self._agenda, (control.period_s, _Kind.CONTROL, 0, 0))

    def result(self) -> SimulationResult:
        """Run it all."""
        kernel, scenario = self._kernel, self._scenario
        kernel.refresh_all(self._world)
        for end_s, requests in request_spans(scenario):
            self._world.clock["arrived"] = 0
            last = end_s == scenario.horizon_s
            while self._agenda and (self._agenda[0][0] < end_s or last):
                time_s = self._agenda[0][0]
                self._advance(requests, time_s)
                while self._agenda and self._agenda[0][0] == time_s:
                    self._act(*heapq.heappop(self._agenda))
            if not last:
                self._advance(requests, end_s)
        self._advance(no_arrivals(), math.inf)
        return self._summary()

    def _advance(self, requests: Array, until_s: float) -> None:
        while self._kernel.run_until(self._world, requests, until_s * 1000.0) == self._kernel.FULL:
            self._world = self._layout.world = with_room(self._world)

    def _act(self, time_s: float, kind: _Kind, number: int, clock_mhz: int) -> None:
        self._kernel.settle_all(self._world, time_s * 1000.0)
        if kind is _Kind.MEASURE_FROM:
            self._before = self._world.gpus.copy()
        elif kind is _Kind.MEASURE_UNTIL:
            self._after = self._world.gpus.copy()
            for gpu in range(len(self._clocks)):
                self._note_clock(gpu, time_s)
        elif kind is _Kind.CLOCK:
            self._note_clock(number, time_s)
            self._clocks[number] = clock_mhz
            self._layout.set_clock(self._scenario.gpus[number].name, clock_mhz)
            self._kernel.refresh_all(self._world)
        else:
            self._decide(time_s)

    def _note_clock(self, gpu: int, time_s: float) -> None:
        """Close the span of time for which the GPU had its present clock."""
        time_s = min(max(time_s, self._scenario.warm_up_s), self._scenario.horizon_s)
        self._clock_area[gpu] += self._clocks[gpu] * (time_s - self._clock_since_s[gpu])
        self._clock_since_s[gpu] = time_s

    def _decide(self, time_s: float) -> None:
        """Ask the control; a new clock is in force once the call and the settling of that part are over."""
        assert self._control is not None, "only a control puts itself on the agenda"
        for name, asked in self._control.clocks(self._view(time_s)).items():
            number = self._layout.gpu_number[name]
            part = self._scenario.gpus[number].part
            clock_mhz = part.top_clock_mhz if asked is None else asked
            if clock_mhz not in part.clocks_mhz:
                raise ValueError(f"{name}: {part.name} has no clock of {clock_mhz} MHz")
            if clock_mhz != self._wanted[number]:
                self._wanted[number] = clock_mhz
                effective_s = time_s + (part.switch_call_ms + part.switch_settle_ms) / 1000.0
                if effective_s <= self._scenario.horizon_s:
                    heapq.heappush(self._agenda, (effective_s, _Kind.CLOCK, number, clock_mhz))
        if time_s + self._control.period_s <= self._scenario.horizon_s:
            heapq.heappush(self._agenda, (time_s + self._control.period_s, _Kind.CONTROL, 0, 0))

    def _view(self, time_s: float) -> View:
        world = self._world
        station_backlog_ms = np.zeros(len(world.stations))
        self._kernel.backlogs(world, station_backlog_ms)
        waiting = np.zeros((len(world.models), len(world.gpus)))
        backlog_s = np.zeros_like(waiting)
        for executor in world.executors:
            station = world.stations[executor["station"]]
            members = slice(executor["first_member"], executor["first_member"] + executor["members"])
            for gpu in set(world.member_gpu[members]):
                cell = station["model"], gpu
                backlog_s[cell] += (
                    station_backlog_ms[executor["station"]] / station["slots"] / station["executors"] / 1000.0
                )
                waiting[cell] += station["waiting"] / station["executors"]
        return View(
            time_s=time_s,
            clocks_mhz=tuple(self._clocks),
            seen=world.seen.copy(),
            histogram=world.seen_histogram.copy(),
            waiting=waiting,
            backlog_s=backlog_s,
        )

    def _summary(self) -> SimulationResult:
        scenario, world = self._scenario, self._world
        span_s = scenario.horizon_s - scenario.warm_up_s
        energy_j = (self._after["energy_mj"] - self._before["energy_mj"]) / 1e3
        busy_s = (self._after["busy_ms"] - self._before["busy_ms"]) / 1e3
        completed = int(world.tallies["completed"].sum())
        makespan_s = float(world.clock["last_ms"][0]) / 1e3 - scenario.warm_up_s
        return SimulationResult(
            models=tuple(
                model_result(model.name, world.tallies[number], world.histogram[number])
                for number, model in enumerate(scenario.models)
            ),
            gpus=tuple(
                GpuResult(
                    name=gpu.name,
                    busy_share=float(busy_s[number]) / span_s,
                    energy_j=float(energy_j[number]),
                    average_power_w=float(energy_j[number]) / span_s,
                    clock_mhz=self._clock_area[number] / span_s,
                )
                for number, gpu in enumerate(scenario.gpus)
            ),
            throughput_rps=completed / makespan_s if completed else 0.0,
            requests=int(world.seen["arrived"].sum()),
        )
