"""Runs a control law of ``mupower`` in a simulation: the same object that the daemon runs.

An observation is made as ``mupower.observation`` makes it from Triton's metrics: of a generative model the
latency at its attainment target, of a single-pass model the mean, over the shortest window that holds
enough completions; what waits and was refused; the engine's predicted backlog. Metrics are always fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muplan.simulator.result import quantile_ms
from muplan.simulator.run import View
from muplan.simulator.scenario import Scenario, SimulatedGpu, SimulatedModel
from mupower.control.law import ControlLaw, GpuObservation, ModelObservation
from mupower.observation import ENOUGH_FOR_A_TAIL
from muserve.plan import ModelKind


class LawControl:
    """A control law for the GPUs of ``scenario``, begun at their initial clocks.

    ``attainment_targets`` is by model. ``period_s`` and ``window_s`` are the daemon's.
    """

    def __init__(
        self,
        law: ControlLaw[Any],
        scenario: Scenario,
        attainment_targets: Mapping[str, float],
        *,
        period_s: float = 1.0,
        window_s: float = 5.0,
    ) -> None:
        self.period_s = period_s
        self._law = law
        self._scenario = scenario
        self._targets = attainment_targets
        self._views = max(2, round(window_s / period_s) + 1)
        self._states = {gpu.name: law.start(gpu.name, gpu.clock_mhz) for gpu in scenario.gpus}
        self._history: list[View] = []

    def clocks(self, view: View) -> dict[str, int | None]:
        """What the law decides for each GPU; nothing before there is a first window to judge by."""
        self._history = [*self._history, view][-self._views :]
        if len(self._history) < 2:
            return {}
        decided: dict[str, int | None] = {}
        for number, gpu in enumerate(self._scenario.gpus):
            observation = self._observe(number, gpu)
            decision, self._states[gpu.name] = self._law.decide(observation, self._states[gpu.name])
            decided[gpu.name] = decision.clock_mhz
        return decided

    def _observe(self, number: int, gpu: SimulatedGpu) -> GpuObservation:
        view = self._history[-1]
        return GpuObservation(
            gpu=gpu.name,
            time_s=view.time_s,
            clock_mhz=view.clocks_mhz[number],
            supported_clocks_mhz=gpu.part.clocks_mhz,
            knee_mhz=gpu.part.knee_mhz,
            models=tuple(
                self._observe_model(position, model, number)
                for position, model in enumerate(self._scenario.models)
                if any(gpu.name in gpus for stage in model.stages for gpus in stage.replicas)
            ),
            fresh=True,
        )

    def _observe_model(self, position: int, model: SimulatedModel, gpu: int) -> ModelObservation:
        now, before = self._history[-1], self._history[-2]
        generative = model.kind is ModelKind.GENERATIVE
        completed, latency_ms = self._latency(position, model)
        waiting = now.waiting[position]
        return ModelObservation(
            name=model.name,
            slo_ms=model.slo_ms,
            completed=completed,
            latency_ms=latency_ms,
            pending=float(waiting[gpu] if generative else waiting.sum()),
            backlog_s=float(now.backlog_s[position, gpu]),
            rejected=float(now.seen["dropped"][position] - before.seen["dropped"][position]),
        )

    def _latency(self, position: int, model: SimulatedModel) -> tuple[float, float | None]:
        """Completions and the latency they had, over the shortest window that holds enough of them."""
        now, before = self._history[-1], self._history[0]
        for earlier in reversed(self._history[:-1]):
            if now.seen["completed"][position] - earlier.seen["completed"][position] >= ENOUGH_FOR_A_TAIL:
                before = earlier
                break
        completed = float(now.seen["completed"][position] - before.seen["completed"][position])
        if completed <= 0:
            return 0.0, None
        if model.kind is ModelKind.GENERATIVE:
            gained = now.histogram[position] - before.histogram[position]
            return completed, quantile_ms(gained, self._targets[model.name])
        return completed, float(now.seen["jct_ms"][position] - before.seen["jct_ms"][position]) / completed
