"""From metric snapshots to what a control law sees of one GPU. Pure.

Which series mean what:

* A generative model's latency is the quantile of ``mu_request_latency_ms`` at the model's attainment target
  (0.9: the p90), so it is above the SLO exactly when the target is missed. Its engine keeps that
  histogram; Triton's own durations of a decoupled model stop when the request has been handed over.
* A single-pass model's latency is the mean of Triton's own end-to-end time of the public model (the
  ensemble, or the only partition): ``nv_inference_request_duration_us`` per
  ``nv_inference_request_success``. A generative model without the histogram falls back to it.
* What waits is ``nv_inference_pending_request_count`` of the model and its partitions plus the
  engine's ``mu_queue_length``; work ahead is the engine's ``mu_predicted_backlog_seconds``.
* What was refused is Triton's REJECTED failures plus the engine's ``mu_rejected``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mupower.control.law import GpuObservation, ModelObservation
from mupower.metrics import Histogram, Snapshot, counter_increase, histogram_increase
from muserve.plan import ModelKind, ModelPlan

ENOUGH_FOR_A_TAIL = 20
"""Completions a window should hold: with fewer, a tail is just the slowest request."""

_SUCCESS = "nv_inference_request_success"
_DURATION = "nv_inference_request_duration_us"
_FAILURE = "nv_inference_request_failure"
_PENDING = "nv_inference_pending_request_count"
_LATENCY = "mu_request_latency_ms"
_QUEUE = "mu_queue_length"
_BACKLOG = "mu_predicted_backlog_seconds"
_REJECTED = "mu_rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The facts of one GPU that an observation carries along."""

    name: str
    clock_mhz: int
    supported_clocks_mhz: tuple[int, ...]
    knee_mhz: int


def observe_gpu(
    device: Device,
    models: Sequence[ModelPlan],
    history: Sequence[Snapshot],
    *,
    now_s: float,
    stale_because: str = "",
) -> GpuObservation:
    """What is known about ``device`` now.

    ``models`` live on it; ``history`` holds the snapshots of the last few seconds, oldest first, and is
    the longest window a latency may span. The observation is fresh when nothing speaks against it:
    no ``stale_because``, at least two snapshots, and every model present in the latest one.
    """
    because = stale_because or _missing(models, history)
    observed = () if because else tuple(_observe_model(m, device.name, history) for m in models)
    return GpuObservation(
        gpu=device.name,
        time_s=now_s,
        clock_mhz=device.clock_mhz,
        supported_clocks_mhz=device.supported_clocks_mhz,
        knee_mhz=device.knee_mhz,
        models=observed,
        fresh=not because,
        stale_because=because,
    )


def _missing(models: Sequence[ModelPlan], history: Sequence[Snapshot]) -> str:
    """Why ``history`` is not enough to judge ``models`` by; empty when it is."""
    if len(history) < 2:
        return "a first window of metrics is not complete yet"
    absent = [model.name for model in models if not history[-1].has_series(_SUCCESS, model=model.name)]
    return f"Triton's metrics do not show {', '.join(absent)}" if absent else ""


def _observe_model(model: ModelPlan, gpu: str, history: Sequence[Snapshot]) -> ModelObservation:
    completed, latency_ms = _latency(model, gpu, history)
    latest = history[-1]
    queues = _of_this_gpu(latest, _QUEUE, model.name, gpu)
    names = {model.name, *(partition.name for partition in model.partitions)}
    waiting = sum(sum(latest.gauge_values(_PENDING, model=name)) for name in names)
    return ModelObservation(
        name=model.name,
        slo_ms=model.slo_ms,
        completed=completed,
        latency_ms=latency_ms,
        pending=waiting + sum(queues),
        backlog_s=max(_of_this_gpu(latest, _BACKLOG, model.name, gpu), default=0.0),
        rejected=counter_increase(history[-2], latest, _FAILURE, model=model.name, reason="REJECTED")
        + counter_increase(history[-2], latest, _REJECTED, model=model.name),
    )


def _of_this_gpu(snapshot: Snapshot, name: str, model: str, gpu: str) -> tuple[float, ...]:
    """The gauge's values for this GPU's replicas, or of all replicas when series do not say where."""
    here = snapshot.gauge_values(name, model=model, gpu=gpu)
    return here or snapshot.gauge_values(name, model=model)


def _latency(model: ModelPlan, gpu: str, history: Sequence[Snapshot]) -> tuple[float, float | None]:
    """Completions and the latency they had, over the shortest window that holds enough of them."""
    labels = {"model": model.name}
    if model.kind is ModelKind.GENERATIVE and history[-1].has_series(_LATENCY, **labels):
        if history[-1].has_series(_LATENCY, **labels, gpu=gpu):
            labels["gpu"] = gpu
        return _tail_latency(labels, history, model.attainment_target)
    return _mean_latency(labels, history)


def _tail_latency(
    labels: dict[str, str], history: Sequence[Snapshot], attainment_target: float
) -> tuple[float, float | None]:
    total: Histogram | None = None
    for newest in range(len(history) - 1, 0, -1):
        gained = histogram_increase(history[newest - 1], history[newest], _LATENCY, **labels)
        if gained is None or (total is not None and total.upper_bounds != gained.upper_bounds):
            break
        total = gained if total is None else total + gained
        if total.count >= ENOUGH_FOR_A_TAIL:
            break
    if total is None or total.count <= 0:
        return 0.0, None
    return total.count, total.quantile(attainment_target)


def _mean_latency(labels: dict[str, str], history: Sequence[Snapshot]) -> tuple[float, float | None]:
    completed, duration_us = 0.0, 0.0
    for newest in range(len(history) - 1, 0, -1):
        before, after = history[newest - 1], history[newest]
        completed += counter_increase(before, after, _SUCCESS, **labels)
        duration_us += counter_increase(before, after, _DURATION, **labels)
        if completed >= ENOUGH_FOR_A_TAIL:
            break
    return completed, duration_us / completed / 1000 if completed > 0 else None
