from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from muplan.deploy.stubs import Stub, living_stubs, parse_stub
from muplan.deploy.watch import ReloadSchedule

LINE = [
    "/run/backends/python/triton_python_backend_stub",
    "/plan/node0/model_repository/bert-base_stage0/1/model.py",
    "muserve-triton-abc.1234",
    "1048576",
    "1048576",
    "4711",
]


def test_a_stubs_command_line_tells_its_model_and_region() -> None:
    assert parse_stub(LINE) == Stub(model="bert-base_stage0", region=Path("/dev/shm/muserve-triton-abc.1234"))


def test_other_processes_and_zombies_are_no_stubs() -> None:
    assert parse_stub([]) is None
    assert parse_stub(LINE[:2]) is None
    assert parse_stub(["/bin/bash", *LINE[1:]]) is None


def test_a_server_that_is_gone_has_no_stubs() -> None:
    assert living_stubs(2**22 + 1) == {}


def test_the_first_death_is_answered_at_once_and_later_ones_ever_later() -> None:
    schedule = ReloadSchedule()
    waits = []
    now_s = 100.0
    for _ in range(6):
        wait_s = schedule.died("m", now_s)
        assert wait_s is not None
        waits.append(wait_s)
        assert schedule.due(now_s + wait_s) == ("m",)
        now_s += wait_s + 1.0
        schedule.loaded("m", now_s)
    assert waits == [0.0, 1.0, 5.0, 30.0, 30.0, 30.0]


def test_a_planned_load_is_not_planned_twice() -> None:
    schedule = ReloadSchedule()
    assert schedule.died("m", 0.0) == 0.0
    assert schedule.died("m", 0.1) is None
    schedule.loaded("m", 1.0)
    assert schedule.due(1e9) == ()


def test_models_wait_independently() -> None:
    schedule = ReloadSchedule()
    schedule.died("a", 0.0)
    schedule.loaded("a", 0.0)
    assert schedule.died("a", 1.0) == 1.0
    assert schedule.died("b", 1.0) == 0.0
    assert schedule.due(1.5) == ("b",)


@given(deaths=st.integers(1, 10), calm_s=st.floats(60.0, 1e6))
def test_a_calm_minute_is_forgiven(deaths: int, calm_s: float) -> None:
    schedule = ReloadSchedule()
    for second in range(deaths):
        schedule.died("m", float(second))
        schedule.loaded("m", float(second))
    assert schedule.died("m", deaths - 1 + calm_s) == 0.0
