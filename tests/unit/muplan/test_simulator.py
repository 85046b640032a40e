"""The simulator against the virtual GPU and the token engine, and the laws of any simulation."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.load.arrivals import ArrivalLaw
from muplan.simulator import streams
from muplan.simulator.run import View, simulate
from muplan.simulator.scenario import Discipline, Scenario, SimulatedModel
from muserve.errors import InputError
from muserve.gpu.virtual_state import Job, advance, command_clock, new_state, submit
from muserve.physics import idle_power_w
from simulated import V100, engine, gpus, single_pass, trace

pytest.importorskip("numba")

gaps_ms = st.lists(st.integers(0, 60), min_size=2, max_size=12).filter(any)


class Timetable:
    """A control that wants given clocks at given times, and is asked every second."""

    period_s = 1.0

    def __init__(self, clocks_mhz: list[int | None]) -> None:
        self.clocks_mhz = clocks_mhz
        self.views: list[View] = []

    def clocks(self, view: View) -> dict[str, int | None]:
        self.views.append(view)
        place = round(view.time_s) - 1
        return {"gpu0": self.clocks_mhz[place]} if place < len(self.clocks_mhz) else {}


def one_gpu(model: SimulatedModel, horizon_s: float) -> Scenario:
    return Scenario(gpus=gpus(1), models=(model,), horizon_s=horizon_s)


@given(
    gaps=st.lists(st.integers(0, 1500), min_size=2, max_size=8).filter(any),
    k=st.sampled_from([0.0, 0.4, 0.9]),
    clocks=st.lists(st.sampled_from([None, 135, 705, 945, 1380]), max_size=5),
)
@settings(deadline=None, max_examples=40)
def test_a_gpu_is_the_virtual_gpu(gaps: list[int], k: float, clocks: list[int | None]) -> None:
    """Same ends and same energy when jobs share it and its clock changes under them."""
    arrivals_s = [gap / 1000 for gap in accumulate(gaps)]
    first_s = arrivals_s[0]
    horizon_s = 8.0
    arrivals_s = [time_s - first_s for time_s in arrivals_s if time_s - first_s < horizon_s]
    if len(arrivals_s) < 2 or arrivals_s[-1] == 0.0:
        return
    load = trace([*arrivals_s, 2 * horizon_s])
    model = single_pass("a", 700.0, load=load, k=k, slots=16)
    result = simulate(one_gpu(model, horizon_s), Timetable(clocks))

    state = new_state(V100, index=0, uuid="VGPU-0", boot_id="b", now_s=0.0)
    job = Job(number=0, pid=1, process_start=1, sensitivity=k, remaining_ms=700.0, started_s=0.0)
    switch_s = (V100.switch_call_ms + V100.switch_settle_ms) / 1000
    agenda: list[tuple[float, int | None, bool]] = [(time_s, None, True) for time_s in arrivals_s]
    agenda += [(1.0 + second, clock, False) for second, clock in enumerate(clocks)]
    for time_s, clock_mhz, arrives in sorted(agenda, key=lambda item: item[0]):
        state = advance(state, time_s, V100)
        if arrives:
            state = submit(state, job, time_s, None, V100)
        else:
            state = command_clock(state, clock_mhz, time_s + switch_s, V100)
    state = advance(state, horizon_s, V100)
    energy_j = state.energy_j
    ended = advance(state, 1000.0, V100)
    jct_ms = [(job.finished_s - job.started_s) * 1000 for job in ended.jobs if job.finished_s is not None]
    assert result.models[0].completed == len(jct_ms) == len(arrivals_s)
    assert result.models[0].jct_ms.value == pytest.approx(sum(jct_ms) / len(jct_ms), rel=1e-9)
    assert result.gpus[0].energy_j == pytest.approx(energy_j, rel=1e-9)


def token_by_token(
    arrivals_ms: list[float], tokens: list[int], slots: int, discipline: Discipline
) -> list[float]:
    """Completion times of ``mubackend``'s engine alone on a GPU, one iteration after the other."""
    prefill_ms, decode_ms, growth_ms = 12.0, 6.0, 0.5

    def key(number: int) -> tuple[float, int]:
        service_ms = prefill_ms + (decode_ms + growth_ms * (slots - 1)) * tokens[number]
        return {
            Discipline.FCFS: 0.0,
            Discipline.SJF: service_ms,
            Discipline.SSJF: service_ms,
            Discipline.PRIORITY: arrivals_ms[number] + 4.0 * service_ms,
        }[discipline], number

    now_ms, left, ends_ms = 0.0, dict(enumerate(tokens)), [0.0] * len(tokens)
    waiting = set(left)
    running: list[int] = []
    while left:
        here = sorted((n for n in waiting if arrivals_ms[n] <= now_ms), key=key)
        if not here and not running:
            now_ms = min(arrivals_ms[n] for n in waiting)
            # One after the other, the first finds the engine idle and is admitted alone.
            here = [min(n for n in waiting if arrivals_ms[n] == now_ms)]
        admitted = here[: slots - len(running)]
        running += admitted
        waiting -= set(admitted)
        now_ms += prefill_ms * len(admitted)
        now_ms += decode_ms + growth_ms * (len(running) - 1)
        for number in list(running):
            left[number] -= 1
            if not left[number]:
                running.remove(number)
                del left[number]
                ends_ms[number] = now_ms
    return ends_ms


@given(
    gaps=gaps_ms,
    tokens=st.lists(st.integers(1, 40), min_size=12, max_size=12),
    slots=st.integers(1, 5),
    discipline=st.sampled_from(list(Discipline)),
)
@settings(deadline=None, max_examples=150)
def test_an_engine_jumps_over_steps_without_missing_one(
    gaps: list[int], tokens: list[int], slots: int, discipline: Discipline
) -> None:
    # Off the engine's own times, which are multiples of half a millisecond: no ties by rounding.
    arrivals_ms = [float(time) + 0.137 * number for number, time in enumerate(accumulate(gaps))]
    arrivals_ms = [time - arrivals_ms[0] for time in arrivals_ms]
    tokens = tokens[: len(arrivals_ms)]
    load = trace([*(time / 1000 for time in arrivals_ms), 1000.0], [*tokens, 1])
    model = engine("llm", load=load, slots=slots, discipline=discipline)
    found = simulate(one_gpu(model, horizon_s=900.0)).models[0]
    ends_ms = token_by_token(arrivals_ms, tokens, slots, discipline)
    expected = [end - arrival for end, arrival in zip(ends_ms, arrivals_ms, strict=True)]
    assert found.completed == len(expected)
    assert found.jct_ms.value == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    assert found.jct_p99_ms == pytest.approx(max(expected), rel=0.006)


def mixed(horizon_s: float = 400.0, seed: int = 5) -> Scenario:
    models = (
        single_pass("bert", 8.0, rate=20.0, on=(0, 1), service_cv=1.0),
        single_pass("resnet", 5.0, rate=30.0, on=(1,), max_batch=4, growth=0.3, max_delay_ms=2.0),
        single_pass("wide", 12.0, rate=10.0, on=(0, 1), together=True, queue_limit=4),
        engine("opt", load=ArrivalLaw(rate_rps=0.6, cv=2.0), on=(0, 2), discipline=Discipline.PRIORITY),
    )
    return Scenario(gpus=gpus(3), models=models, horizon_s=horizon_s, warm_up_s=20.0, seed=seed)


def test_equal_scenarios_give_equal_results() -> None:
    assert simulate(mixed()) == simulate(mixed())
    assert simulate(mixed(seed=6)) != simulate(mixed())


def test_how_the_time_is_cut_into_spans_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(mixed())
    monkeypatch.setattr(streams, "_SPAN_REQUESTS", 100)
    cut = simulate(mixed())
    for one, other in zip(whole.models, cut.models, strict=True):
        assert (one.arrived, one.completed, one.dropped) == (other.arrived, other.completed, other.dropped)
        assert one.jct_ms.value == pytest.approx(other.jct_ms.value, rel=1e-9)
    assert whole.power_w == pytest.approx(cut.power_w, rel=1e-9)


def test_another_model_leaves_the_requests_of_the_others_as_they_were() -> None:
    scenario = mixed()
    fewer = simulate(replace(scenario, models=scenario.models[1:]))
    assert [m.arrived for m in simulate(scenario).models[1:]] == [m.arrived for m in fewer.models]


def test_every_request_is_counted_once() -> None:
    for model in simulate(mixed()).models:
        assert model.arrived == model.completed + model.dropped
        assert 0.0 <= model.attainment.value <= 1.0


def test_requests_that_arrive_together_are_served_in_order() -> None:
    """Three at once on one instance: 10, 20 and 30 ms whatever the heap looks like."""
    load = trace([0.0, 0.0, 0.0, 100.0])
    found = simulate(one_gpu(single_pass("a", 10.0, load=load), 50.0)).models[0]
    assert found.jct_ms.value == pytest.approx(20.0)


def test_a_batch_waits_for_company_but_no_longer_than_it_may() -> None:
    load = trace([0.0, 0.004, 0.1, 0.102, 0.104, 10.0])
    model = single_pass("a", 10.0, load=load, max_batch=3, growth=0.5, max_delay_ms=5.0)
    found = simulate(one_gpu(model, 5.0)).models[0]
    # Two leave at 5 ms and take 15; three are full at 104 ms and take 20.
    expected = [20.0, 16.0, 24.0, 22.0, 20.0]
    assert found.jct_ms.value == pytest.approx(sum(expected) / 5)


def test_a_tensor_parallel_replica_goes_at_the_pace_of_its_slowest_gpu() -> None:
    """100 ms on two GPUs, one of which is shared for the 60 ms that a neighbour of 30 ms takes there."""
    wide = single_pass("wide", 100.0, load=trace([0.0, 100.0]), on=(0, 1), together=True)
    near = single_pass("near", 30.0, load=trace([0.0, 100.0]), on=(1,))
    result = simulate(Scenario(gpus=gpus(2), models=(wide, near), horizon_s=50.0))
    assert result.models[0].jct_ms.value == pytest.approx(130.0)
    assert result.models[1].jct_ms.value == pytest.approx(60.0)
    assert result.gpus[0].busy_share == pytest.approx(result.gpus[1].busy_share) == pytest.approx(0.13 / 50)


def test_stages_hand_over_with_a_transfer_only_between_gpus() -> None:
    model = single_pass("a", 10.0, load=trace([0.0, 100.0]))
    (stage,) = model.stages
    second = replace(stage, name="b", transfer_ms=3.0)
    near = replace(model, stages=(stage, second))
    far = replace(model, stages=(stage, replace(second, replicas=(("gpu1",),))))
    for staged, expected_ms in ((near, 20.0), (far, 23.0)):
        result = simulate(Scenario(gpus=gpus(2), models=(staged,), horizon_s=50.0))
        assert result.models[0].jct_ms.value == pytest.approx(expected_ms)


def test_replicas_share_the_load_by_predicted_backlog() -> None:
    """Four at once, two engines: the long one gets a replica to itself until the others outweigh it."""
    load = trace([0.0, 0.001, 0.002, 0.003, 100.0], [100, 10, 10, 10, 1])
    model = engine("llm", load=load, slots=1, on=(0, 1), growth_ms=0.0, prefill_ms=0.0)
    found = simulate(Scenario(gpus=gpus(2), models=(model,), horizon_s=50.0)).models[0]
    expected = [600.0, 60.0, 119.0, 178.0]
    assert found.jct_ms.value == pytest.approx(sum(expected) / 4)


def test_a_good_prediction_is_worth_more_than_a_poor_one() -> None:
    def mean_ms(discipline: Discipline, tau: float) -> float:
        model = engine(
            "llm",
            load=ArrivalLaw(rate_rps=8.5, cv=1.0),
            discipline=discipline,
            prediction_tau=tau,
        )
        return simulate(one_gpu(model, 4000.0)).models[0].jct_ms.value

    fcfs, oracle = mean_ms(Discipline.FCFS, 1.0), mean_ms(Discipline.SJF, 1.0)
    fair, exact = mean_ms(Discipline.SSJF, 0.42), mean_ms(Discipline.SSJF, 1.0)
    assert exact == oracle
    assert oracle < fair < fcfs


def test_a_control_sees_what_happened_and_clocks_follow_after_the_switch() -> None:
    model = single_pass("a", 10.0, rate=50.0, slo_ms=15.0)
    control = Timetable([945, None])
    result = simulate(one_gpu(model, 4.0), control)
    switch_s = (V100.switch_call_ms + V100.switch_settle_ms) / 1000
    assert [view.clocks_mhz[0] for view in control.views] == [1380, 945, 1380, 1380]
    assert result.gpus[0].clock_mhz == pytest.approx(1380 - (1380 - 945) / 4)
    assert switch_s < 1.0
    last = control.views[-1]
    assert last.seen["completed"][0] == last.histogram[0].sum()
    assert last.seen["completed"][0] + last.waiting.sum() <= last.seen["arrived"][0]


def test_an_idle_gpu_draws_idle_power_at_its_clock() -> None:
    scenario = Scenario(
        gpus=(*gpus(1), replace(gpus(2, 135)[1])),
        models=(single_pass("a", 1.0, load=trace([0.0, 100.0])),),
        horizon_s=10.0,
    )
    assert simulate(scenario).gpus[1].average_power_w == pytest.approx(idle_power_w(V100, 135))


def test_without_numba_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("numba", "muplan.simulator"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    from muplan.simulator.run import simulate as fresh

    with pytest.raises(InputError, match=r"needs numba.*pip install 'muserve\[plan\]'"):
        fresh(mixed())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"horizon_s": 10.0}, "warm_up_s < horizon_s"),
        ({"gpus": gpus(1)}, "the scenario has no GPU gpu1"),
        ({"models": ()}, "one or more models"),
    ],
)
def test_impossible_scenarios_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(mixed(), **change)  # type: ignore[arg-type]
