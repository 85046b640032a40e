"""The simulator against queueing theory: L. Kleinrock, Queueing Systems, vol. 1 (1975) and 2 (1976)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from muplan.simulator.result import Estimate, ModelResult, SimulationResult
from muplan.simulator.run import simulate
from muplan.simulator.scenario import Discipline, Routing, Scenario, SimulatedModel
from muplan.slot_queue import slot_queue
from simulated import V100, gpus, single_pass

pytest.importorskip("numba")

SERVICE_MS, LOAD = 10.0, 0.7
REQUESTS = 600_000


def run(model: SimulatedModel, count: int = 1) -> SimulationResult:
    horizon_s = REQUESTS / model.load.rate_rps
    return simulate(
        Scenario(gpus=gpus(count), models=(model,), horizon_s=horizon_s, warm_up_s=horizon_s / 50, seed=11)
    )


def only(result: SimulationResult) -> ModelResult:
    (model,) = result.models
    return model


def agrees(estimate: Estimate, theory: float) -> bool:
    """Within twice its 95 % interval, which is narrow: by chance alone 1 in 10,000 estimates is not."""
    assert estimate.margin < 0.05 * theory
    return abs(estimate.value - theory) < 2 * estimate.margin


def pollaczek_khinchine_ms(load: float, service_cv: float) -> float:
    """Mean time in M/G/1, first come first served."""
    return SERVICE_MS + SERVICE_MS * load / (1 - load) * (1 + service_cv**2) / 2


@pytest.mark.parametrize("service_cv", [0.0, 0.5, 1.0, 2.0])
def test_one_server_first_come_first_served(service_cv: float) -> None:
    """M/D/1, M/M/1 and M/G/1."""
    model = single_pass("a", SERVICE_MS, rate=70.0, service_cv=service_cv)
    result = run(model)
    assert agrees(only(result).jct_ms, pollaczek_khinchine_ms(LOAD, service_cv))
    assert result.gpus[0].busy_share == pytest.approx(LOAD, rel=0.02)


def test_the_distribution_of_times_in_m_m_1() -> None:
    model = single_pass("a", SERVICE_MS, rate=70.0, service_cv=1.0, slo_ms=60.0)
    found, mean_ms = only(run(model)), SERVICE_MS / (1 - LOAD)
    assert agrees(found.attainment, 1 - math.exp(-60.0 / mean_ms))
    assert found.jct_p50_ms == pytest.approx(mean_ms * math.log(2), rel=0.03)
    assert found.jct_p99_ms == pytest.approx(mean_ms * math.log(100), rel=0.05)


@pytest.mark.parametrize("discipline", [Discipline.SJF, Discipline.SSJF])
def test_shortest_job_first(discipline: Discipline) -> None:
    """M/G/1 with the shortest job next, not preemptive (Kleinrock vol. 2, section 3.6); times are known."""
    model = single_pass("a", SERVICE_MS, rate=70.0, service_cv=1.0, discipline=discipline)
    size = np.linspace(0.0, 40.0, 400_001)[1:]  # in mean service times
    density = np.exp(-size)
    step = size[1] - size[0]
    shorter = LOAD * np.cumsum(size * density) * step
    residual = LOAD * SERVICE_MS  # lambda E[S^2] / 2 of exponential times
    wait_ms = float((density * residual / (1 - shorter) ** 2).sum() * step)
    assert agrees(only(run(model)).jct_ms, SERVICE_MS + wait_ms)


@pytest.mark.parametrize("service_cv", [0.0, 1.0, 2.0])
def test_processor_sharing_depends_on_the_mean_only(service_cv: float) -> None:
    model = single_pass("a", SERVICE_MS, rate=70.0, service_cv=service_cv, slots=512)
    assert agrees(only(run(model)).jct_ms, SERVICE_MS / (1 - LOAD))


def test_processor_sharing_between_models_on_one_gpu() -> None:
    """Enough instances of both make the GPU one M/G/1-PS queue, where everyone is stretched alike."""
    short = single_pass("short", 5.0, rate=70.0, service_cv=1.0, slots=512)
    long = single_pass("long", 35.0, rate=10.0, service_cv=0.0, slots=512)
    horizon_s = REQUESTS / 80
    result = simulate(
        Scenario(gpus=gpus(1), models=(short, long), horizon_s=horizon_s, warm_up_s=50.0, seed=3)
    )
    assert agrees(result.models[0].jct_ms, 5.0 / (1 - LOAD))
    assert agrees(result.models[1].jct_ms, 35.0 / (1 - LOAD))


@pytest.mark.parametrize(("servers", "load"), [(2, 0.8), (4, 0.9), (8, 0.7)])
def test_several_servers_behind_one_queue(servers: int, load: float) -> None:
    """M/M/c."""
    model = single_pass(
        "a",
        SERVICE_MS,
        rate=load * servers * 100,
        service_cv=1.0,
        on=range(servers),
        routing=Routing.SHARED_QUEUE,
    )
    line = slot_queue(load * servers / SERVICE_MS, np.arange(1, servers + 1) / SERVICE_MS, 1.0, 1.0)
    assert line is not None
    assert agrees(only(run(model, servers)).jct_ms, SERVICE_MS + line.waits / line.decay)


def test_a_full_queue_drops() -> None:
    """M/M/1/K with K = 4 in the system: one is served, three wait; drops are misses."""
    model = single_pass("a", SERVICE_MS, rate=90.0, service_cv=1.0, queue_limit=3, slo_ms=1e6)
    found, load = only(run(model)), 0.9
    blocked = (1 - load) * load**4 / (1 - load**5)
    assert agrees(found.attainment, 1 - blocked)
    assert found.dropped / found.arrived == pytest.approx(blocked, rel=0.05)
    assert found.completed + found.dropped == found.arrived


def test_least_backlog_lies_between_one_queue_and_random_splitting() -> None:
    times = {}
    for routing in Routing:
        model = single_pass("a", SERVICE_MS, rate=320.0, service_cv=1.0, on=range(4), routing=routing)
        times[routing] = only(run(model, 4)).jct_ms.value
    assert times[Routing.SHARED_QUEUE] < times[Routing.LEAST_BACKLOG] < SERVICE_MS / (1 - 0.8)


def test_order_changes_neither_throughput_nor_energy() -> None:
    """A work-conserving server does the same work in any order."""
    results = [
        run(single_pass("a", SERVICE_MS, rate=70.0, service_cv=1.0, discipline=discipline))
        for discipline in Discipline
    ]
    assert {round(r.gpus[0].energy_j, 3) for r in results} == {round(results[0].gpus[0].energy_j, 3)}
    assert {round(r.throughput_rps, 9) for r in results} == {round(results[0].throughput_rps, 9)}


def test_full_batches_under_overload_serve_faster() -> None:
    """A batch of 8 whose further requests cost a quarter each takes 2.75 times one request's time."""
    model = single_pass("a", SERVICE_MS, rate=400.0, max_batch=8, growth=0.25, queue_limit=64)
    found = only(run(model))
    assert found.completed / found.arrived == pytest.approx(8 / 2.75 * 100 / 400, rel=0.01)


def test_power_is_idle_and_busy_power_by_share() -> None:
    from muserve.physics import busy_power_w, idle_power_w, slowdown

    clock_mhz = 1005
    model = single_pass("a", SERVICE_MS, rate=40.0, k=0.8)
    result = simulate(Scenario(gpus=gpus(2, clock_mhz), models=(model,), horizon_s=2000.0, warm_up_s=10.0))
    busy = result.gpus[0].busy_share
    assert busy == pytest.approx(0.4 * slowdown(V100, 0.8, clock_mhz), rel=0.02)
    expected_w = busy * busy_power_w(V100, 0.8, clock_mhz) + (1 - busy) * idle_power_w(V100, clock_mhz)
    assert result.gpus[0].average_power_w == pytest.approx(expected_w, rel=1e-9)
    assert result.gpus[1].average_power_w == pytest.approx(idle_power_w(V100, clock_mhz), rel=1e-9)
    assert result.power_w == pytest.approx(sum(gpu.average_power_w for gpu in result.gpus))
