"""From snapshots to what a law sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mupower.control.law import GpuObservation, ModelObservation
from mupower.metrics import Snapshot, parse_metrics
from mupower.observation import Device, observe_gpu
from muserve.plan import Plan

DEVICE = Device(name="node0/gpu1", clock_mhz=1500, supported_clocks_mhz=(900, 1200, 1500), knee_mhz=900)


@pytest.fixture
def snapshot(triton: Any) -> Callable[[float], Snapshot]:
    return lambda time_s: parse_metrics(triton.text(), time_s, "http://t/metrics")


def observe(plan: Plan, history: list[Snapshot], **more: str) -> GpuObservation:
    return observe_gpu(DEVICE, plan.models_on(DEVICE.name), history, now_s=9.0, **more)


def model(observation: GpuObservation, name: str) -> ModelObservation:
    return next(m for m in observation.models if m.name == name)


def test_one_snapshot_is_no_window(plan: Plan, snapshot: Callable[[float], Snapshot]) -> None:
    seen = observe(plan, [snapshot(0.0)])
    assert not seen.fresh
    assert seen.stale_because == "a first window of metrics is not complete yet"
    assert seen.models == ()


def test_what_speaks_against_freshness_is_passed_on(
    plan: Plan, snapshot: Callable[[float], Snapshot]
) -> None:
    seen = observe(plan, [snapshot(0.0), snapshot(1.0)], stale_because="too old")
    assert (seen.fresh, seen.stale_because) == (False, "too old")


def test_a_model_triton_does_not_show_makes_its_gpu_stale(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    before = snapshot(0.0)
    del triton.completed["bert"]
    seen = observe(plan, [before, snapshot(1.0)])
    assert (seen.fresh, seen.stale_because) == (False, "Triton's metrics do not show bert")


def test_single_pass_latency_is_the_windows_mean(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    triton.serve("bert", 100, 500.0)
    before = snapshot(0.0)
    triton.serve("bert", 30, 10.0)
    triton.serve("bert", 10, 30.0)
    seen = observe(plan, [before, snapshot(1.0)])
    assert seen.fresh
    assert (seen.gpu, seen.clock_mhz, seen.knee_mhz) == ("node0/gpu1", 1500, 900)
    bert = model(seen, "bert")
    assert (bert.completed, bert.latency_ms, bert.slo_ms) == (40, 15.0, 50.0)


def test_generative_latency_is_the_histograms_tail(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    triton.serve("llm", 100, 15_000.0)
    before = snapshot(0.0)
    triton.serve("llm", 96, 900.0)
    triton.serve("llm", 4, 1500.0)
    llm = model(observe(plan, [before, snapshot(1.0)]), "llm")
    assert llm.completed == 100
    assert llm.latency_ms == pytest.approx(1000 * 95 / 96)


def test_generative_models_without_the_histogram_use_tritons_mean(plan: Plan, triton: Any) -> None:
    def bare(time_s: float) -> Snapshot:
        lines = [line for line in triton.text().splitlines() if "mu_request" not in line]
        return parse_metrics("\n".join(lines) + "\n", time_s, "http://t/metrics")

    before = bare(0.0)
    triton.serve("llm", 4, 1500.0)
    assert model(observe(plan, [before, bare(1.0)]), "llm").latency_ms == 1500.0


def test_the_tail_is_where_the_attainment_target_says(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    before = snapshot(0.0)
    triton.serve("llm", 90, 900.0)
    triton.serve("llm", 10, 15_000.0)
    history = [before, snapshot(1.0)]
    lenient, strict = (
        replace(plan, models=tuple(replace(m, attainment_target=target) for m in plan.models))
        for target in (0.89, 0.91)
    )
    assert model(observe(lenient, history), "llm").latency_ms < 1_500
    assert model(observe(strict, history), "llm").latency_ms > 10_000


def test_a_window_too_short_for_a_tail_is_merged_with_earlier_ones(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    history = [snapshot(0.0)]
    for time_s, requests in ((1.0, 50), (2.0, 12), (3.0, 8)):
        triton.serve("llm", requests, 900.0)
        triton.serve("bert", requests, 10.0)
        history.append(snapshot(time_s))
    seen = observe(plan, history)
    assert model(seen, "llm").completed == 20  # the last two cycles are enough
    assert model(seen, "bert").completed == 20


def test_nothing_completed_in_the_whole_window_means_no_latency(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    triton.serve("llm", 5, 900.0)
    triton.serve("bert", 5, 900.0)
    seen = observe(plan, [snapshot(0.0), snapshot(1.0), snapshot(2.0)])
    assert [(m.completed, m.latency_ms) for m in seen.models] == [(0, None), (0, None)]


def test_a_restarted_triton_counts_from_zero(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    triton.serve("bert", 100, 500.0)
    triton.serve("llm", 100, 15_000.0)
    before = snapshot(0.0)
    triton.__init__()
    triton.serve("bert", 25, 10.0)
    triton.serve("llm", 20, 900.0)
    seen = observe(plan, [before, snapshot(1.0)])
    assert model(seen, "bert").latency_ms == 10.0
    assert model(seen, "llm").completed == 20


def test_queues_backlog_and_rejections(
    plan: Plan, triton: Any, snapshot: Callable[[float], Snapshot]
) -> None:
    before = snapshot(0.0)
    triton.pending = {"bert": 1, "bert_stage0": 2, "bert_stage1": 4, "llm": 8, "other": 100}
    triton.queue, triton.backlog_s, triton.rejected = 16, 2.5, 3
    seen = observe(plan, [before, snapshot(1.0)])
    bert, llm = model(seen, "bert"), model(seen, "llm")
    assert (bert.pending, bert.backlog_s, bert.rejected) == (7, 0.0, 0)
    assert (llm.pending, llm.backlog_s, llm.rejected) == (24, 2.5, 3)
