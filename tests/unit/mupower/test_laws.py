"""The control laws, as properties over any observation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupower.control import LAW_NAMES, law_named
from mupower.control.law import Cause, GpuObservation, ModelObservation
from mupower.control.miad import MiadLaw, MiadState
from muserve.errors import InputError

CLOCKS_MHZ = tuple(range(300, 1531, 15))
LAW = MiadLaw()

amounts = st.floats(min_value=0, max_value=1e6, allow_nan=False)
models = st.builds(
    ModelObservation,
    name=st.sampled_from(["bert", "llm"]),
    slo_ms=st.floats(min_value=1, max_value=1e5),
    completed=amounts,
    latency_ms=st.none() | amounts,
    pending=amounts,
    backlog_s=st.floats(min_value=0, max_value=1e4, allow_nan=False),
    rejected=st.sampled_from([0.0, 0.0, 3.0]),
)
ladders = st.lists(st.integers(min_value=100, max_value=2000), min_size=1, max_size=60, unique=True).map(
    lambda clocks: tuple(sorted(clocks))
)


@st.composite
def observations(draw: st.DrawFn) -> GpuObservation:
    clocks = draw(ladders)
    return GpuObservation(
        gpu="node0/gpu0",
        time_s=draw(amounts),
        clock_mhz=draw(st.sampled_from(clocks)),
        supported_clocks_mhz=clocks,
        knee_mhz=draw(st.integers(min_value=clocks[0], max_value=clocks[-1])),
        models=tuple(draw(st.lists(models, max_size=3))),
        fresh=draw(st.booleans()),
        stale_because="a test said so",
    )


states = st.builds(MiadState, clock_mhz=st.none() | st.integers(min_value=1, max_value=3000))


def observation(**changes: object) -> GpuObservation:
    """A V100-like GPU with one model that has a 100 ms SLO and completes at 50 ms."""
    model = ModelObservation(name="bert", slo_ms=100.0, completed=10, latency_ms=50.0, pending=0, backlog_s=0)
    return GpuObservation(
        gpu="node0/gpu0",
        time_s=0.0,
        clock_mhz=1530,
        supported_clocks_mhz=CLOCKS_MHZ,
        knee_mhz=945,
        models=(replace(model, **changes),),  # type: ignore[arg-type]
        fresh=True,
    )


@given(observations(), states)
def test_miad_stays_on_supported_clocks_at_or_above_the_knee(seen: GpuObservation, state: MiadState) -> None:
    decision, after = LAW.decide(seen, state)
    assert after.clock_mhz == decision.clock_mhz
    assert decision.gpu == seen.gpu
    assert decision.reason
    if not seen.fresh:
        assert decision.clock_mhz is None
        assert decision.cause is Cause.STALE
        assert decision.reason == "a test said so"
    elif not seen.models:
        assert decision.clock_mhz == seen.supported_clocks_mhz[0]
        assert decision.cause is Cause.IDLE
    else:
        assert decision.clock_mhz in seen.supported_clocks_mhz
        assert decision.clock_mhz is not None
        assert decision.clock_mhz >= seen.floor_mhz >= seen.knee_mhz


@given(observations(), states, st.data())
def test_miad_never_answers_worse_latency_with_a_lower_clock(
    seen: GpuObservation, state: MiadState, data: st.DataObject
) -> None:
    better = replace(seen, fresh=True)
    worse_models = tuple(
        replace(
            model,
            latency_ms=None if model.latency_ms is None else model.latency_ms * data.draw(st.floats(1, 10)),
            backlog_s=model.backlog_s * data.draw(st.floats(1, 10)),
            pending=model.pending + data.draw(st.floats(0, 10)),
        )
        for model in better.models
    )
    worse = replace(better, models=worse_models)
    low = LAW.decide(better, state)[0].clock_mhz
    high = LAW.decide(worse, state)[0].clock_mhz
    assert low is not None
    assert high is not None
    assert high >= low


@given(observations(), states)
def test_miad_is_deterministic(seen: GpuObservation, state: MiadState) -> None:
    assert LAW.decide(seen, state) == MiadLaw().decide(seen, state)


@given(states)
def test_a_breach_means_the_top_clock_at_once(state: MiadState) -> None:
    for breach in ({"latency_ms": 100.1}, {"backlog_s": 0.1001}, {"rejected": 1.0}):
        decision, _ = LAW.decide(observation(**breach), state)
        assert decision.clock_mhz == CLOCKS_MHZ[-1]
        assert decision.cause is Cause.BREACH


@pytest.mark.parametrize(
    ("changes", "clock_mhz", "cause"),
    [
        ({"latency_ms": 81.0}, 1260, Cause.PRESSURE),  # 1000 x 1.25, snapped up
        ({"backlog_s": 0.051}, 1260, Cause.PRESSURE),
        ({"latency_ms": None, "completed": 0, "pending": 1}, 1260, Cause.PRESSURE),
        ({"latency_ms": 80.0}, 1005, Cause.HOLD),  # 1000 is not supported: snapped up, never down
        ({"latency_ms": 60.0}, 1005, Cause.HOLD),
        ({"latency_ms": None, "completed": 0, "backlog_s": 0.01}, 1005, Cause.HOLD),
        ({"latency_ms": 59.0}, 975, Cause.SLACK),
        ({"latency_ms": None, "completed": 0}, 975, Cause.IDLE),
    ],
)
def test_miad_zones(changes: dict[str, object], clock_mhz: int, cause: Cause) -> None:
    decision, _ = LAW.decide(observation(**changes), MiadState(clock_mhz=1000))
    assert (decision.clock_mhz, decision.cause) == (clock_mhz, cause)
    assert "bert" in decision.reason


def test_miad_creeps_to_the_knee_and_no_further() -> None:
    state = LAW.start("node0/gpu0", CLOCKS_MHZ[-1])
    clocks: list[int] = []
    for _ in range(40):
        decision, state = LAW.decide(observation(latency_ms=None, completed=0), state)
        clocks.append(decision.clock_mhz or 0)
    assert clocks[:3] == [1500, 1470, 1440]
    assert clocks[-1] == 945
    assert clocks == sorted(clocks, reverse=True)


def test_miad_descends_ladders_with_wide_steps() -> None:
    wide = replace(observation(), supported_clocks_mhz=(500, 1000, 1500), knee_mhz=400)
    state = MiadState(clock_mhz=1500)
    clocks = []
    for _ in range(3):
        decision, state = LAW.decide(wide, state)
        clocks.append(decision.clock_mhz)
    assert clocks == [1000, 500, 500]


def test_miad_follows_the_neediest_model() -> None:
    calm = observation()
    hot = replace(calm.models[0], name="llm", latency_ms=90.0)
    decision, _ = LAW.decide(replace(calm, models=(calm.models[0], hot)), MiadState(clock_mhz=1005))
    assert decision.cause is Cause.PRESSURE
    assert decision.reason == "latency of llm is 90 ms, 90% of its 100 ms SLO"


def test_miad_starts_from_the_top_after_stale_metrics() -> None:
    stale = replace(observation(), fresh=False)
    _, state = LAW.decide(stale, MiadState(clock_mhz=945))
    decision, _ = LAW.decide(observation(), state)
    assert decision.clock_mhz == 1500


@pytest.mark.parametrize(
    "constants",
    [
        {"increase_factor": 1.0},
        {"decrease_mhz": 0},
        {"hold_latency_share": 0.9},
        {"raise_latency_share": 1.2},
        {"raise_backlog_share": 0.0},
    ],
)
def test_miad_refuses_senseless_constants(constants: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected|must be"):
        MiadLaw(**constants)  # type: ignore[arg-type]


@given(observations(), st.integers(min_value=1, max_value=3000))
def test_static_holds_the_plans_clock_and_unlocks_when_stale(seen: GpuObservation, clock: int) -> None:
    law = law_named("static")
    decision, state = law.decide(seen, law.start(seen.gpu, clock))
    assert state == clock
    if not seen.fresh:
        assert decision.clock_mhz is None
    else:
        assert decision.clock_mhz == seen.at_least(max(clock, seen.knee_mhz))


@given(observations())
def test_default_never_locks(seen: GpuObservation) -> None:
    law = law_named("default")
    decision, _ = law.decide(seen, law.start(seen.gpu, 945))
    assert decision.clock_mhz is None
    assert decision.cause is Cause.DEFAULT


def test_laws_are_found_by_name() -> None:
    assert LAW_NAMES == ("default", "static", "miad")
    assert all(law_named(name).name == name for name in LAW_NAMES)
    with pytest.raises(InputError, match="expected one of default, static, miad, got 'pid'"):
        law_named("pid")
