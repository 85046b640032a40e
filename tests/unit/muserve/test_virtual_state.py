"""The pure model of a virtual GPU: sharing, clocks in force, energy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.gpu.parts import load_part
from muserve.gpu.virtual_codec import decode, encode
from muserve.gpu.virtual_state import (
    GRACE_S,
    Job,
    VirtualState,
    advance,
    clock_in_force_mhz,
    command_clock,
    command_limit,
    commanded_limit_w,
    discard,
    find_job,
    finish_s,
    new_state,
    power_w,
    rest,
    submit,
)
from muserve.physics import busy_power_w, idle_power_w, slowdown

PART = load_part("V100-16GB")
TOP = PART.top_clock_mhz
START_S = 1000.0

Action = Callable[[VirtualState], VirtualState]


def fresh() -> VirtualState:
    return new_state(PART, index=0, uuid="VGPU-test-0", boot_id="boot", now_s=START_S)


def work(latency_ms: float, sensitivity: float = 0.5, pid: int = 1) -> Job:
    return Job(
        number=0,
        pid=pid,
        process_start=7,
        sensitivity=sensitivity,
        remaining_ms=latency_ms,
        started_s=0.0,
    )


def submitted(state: VirtualState, job: Job, after_s: float = 0.0) -> VirtualState:
    now_s = START_S + after_s
    return submit(rest(state, now_s, PART), job, now_s, None, PART)


def locked(state: VirtualState, clock_mhz: int | None, after_s: float) -> VirtualState:
    return command_clock(state, clock_mhz, START_S + after_s, PART)


def test_a_job_alone_at_the_top_clock_takes_its_latency() -> None:
    state = advance(submitted(fresh(), work(20)), START_S + 1, PART)
    job = find_job(state, 1)
    assert job.finished_s == pytest.approx(START_S + 0.020, abs=1e-9)
    assert job.gpu_s == pytest.approx(0.020)
    assert state.busy_s == pytest.approx(0.020)
    expected_j = 0.020 * busy_power_w(PART, 0.5, TOP) + 0.980 * PART.idle_default_w
    assert state.energy_j == pytest.approx(expected_j)


def test_jobs_share_the_gpu_equally() -> None:
    state = submitted(submitted(fresh(), work(50)), work(20), after_s=0.010)
    # 10 ms alone, then both at half speed: the short one needs 40 ms more, the long one has 20 ms left.
    assert finish_s(state, 2, PART) == pytest.approx(START_S + 0.050)
    assert finish_s(state, 1, PART) == pytest.approx(START_S + 0.070)
    done = advance(state, START_S + 1, PART)
    assert done.busy_s == pytest.approx(0.070)
    assert [job.gpu_s for job in done.jobs] == pytest.approx([0.050, 0.020])


def test_a_clock_change_in_the_middle_of_a_run_counts_exactly() -> None:
    state = submitted(locked(fresh(), 945, after_s=0.030), work(100, sensitivity=0.9))
    slow = slowdown(PART, 0.9, 945)
    finished_s = finish_s(state, 1, PART)
    assert finished_s == pytest.approx(START_S + 0.030 + 0.070 * slow)
    done = advance(state, finished_s, PART)
    expected_j = 0.030 * busy_power_w(PART, 0.9, TOP) + 0.070 * slow * busy_power_w(PART, 0.9, 945)
    assert done.energy_j == pytest.approx(expected_j)
    assert done.clock_mhz == 945


def test_several_changes_take_effect_one_after_the_other() -> None:
    state = locked(locked(fresh(), 945, after_s=0.010), None, after_s=0.030)
    assert state.locked_clock_mhz is None
    clocks = [advance(state, START_S + at_s, PART).clock_mhz for at_s in (0.009, 0.010, 0.029, 0.030)]
    assert clocks == [TOP, 945, 945, TOP]


def test_dropped_work_frees_its_share() -> None:
    state = submitted(submitted(fresh(), work(50)), work(500, pid=2))
    state = discard(advance(state, START_S + 0.020, PART), lambda job: job.pid == 2)
    assert finish_s(state, 1, PART) == pytest.approx(START_S + 0.060)


def test_utilisation_is_the_busy_share_of_the_last_second() -> None:
    state = fresh()
    for beat in range(30):
        state = submitted(state, work(30), after_s=0.1 * beat)
    assert advance(state, START_S + 3.0, PART).utilisation == pytest.approx(0.3, abs=0.03)
    assert advance(state, START_S + 9.0, PART).utilisation == 0.0
    busy = advance(submitted(fresh(), work(20_000)), START_S + 9.7, PART)
    assert busy.utilisation == pytest.approx(1.0)


def test_back_to_back_work_starts_where_the_work_before_ended() -> None:
    state = submitted(fresh(), work(6))
    ended_s = finish_s(state, 1, PART)
    late_s = ended_s + 0.002
    state = submit(rest(state, late_s, PART), work(6), late_s, ended_s, PART)
    assert find_job(state, 2).started_s == ended_s
    assert finish_s(state, 2, PART) == pytest.approx(START_S + 0.012)
    assert advance(state, START_S + 0.012, PART).busy_s == pytest.approx(0.012)


def test_no_work_starts_before_it_could() -> None:
    idle_s = START_S + 1.0
    state = submit(rest(fresh(), idle_s, PART), work(6), idle_s, START_S + 0.1, PART)
    assert find_job(state, 1).started_s == pytest.approx(idle_s - GRACE_S)
    busy_s = idle_s + 0.001
    state = submit(rest(state, busy_s, PART), work(6), busy_s, START_S, PART)
    assert find_job(state, 2).started_s == busy_s, "the GPU was busy until now"


ACTIONS = st.one_of(
    st.builds(
        lambda ms, k: lambda state: submit(state, work(ms, k), state.now_s, None, PART),
        st.floats(0.0, 40.0),
        st.floats(0.0, 1.0),
    ),
    st.builds(
        lambda clock, delay_s: lambda state: command_clock(state, clock, state.now_s + delay_s, PART),
        st.none() | st.sampled_from(PART.clocks_mhz),
        st.floats(0.0, 0.03),
    ),
    st.just(lambda state: discard(state, lambda job: job.number % 3 == 0)),
)
SCHEDULES = st.lists(st.tuples(st.floats(0.0, 0.05), ACTIONS), max_size=12)


def played(schedule: list[tuple[float, Action]], stops: int) -> tuple[VirtualState, list[VirtualState]]:
    """The state after the schedule and 50 ms more, and all states seen; ``stops`` looks per interval."""
    state = fresh()
    seen = [state]
    for gap_s, action in [*schedule, (0.05, lambda state: state)]:
        start_s = state.now_s
        for stop in range(1, stops + 1):
            state = advance(state, start_s + gap_s * stop / stops, PART)
            seen.append(state)
        state = action(state)
        seen.append(state)
    return state, seen


@given(schedule=SCHEDULES)
def test_looking_more_often_changes_nothing(schedule: list[tuple[float, Action]]) -> None:
    once, _ = played(schedule, stops=1)
    often, _ = played(schedule, stops=7)
    assert often.energy_j == pytest.approx(once.energy_j)
    assert often.busy_s == pytest.approx(once.busy_s)
    assert often.clock_mhz == once.clock_mhz
    assert [job.remaining_ms for job in often.jobs] == pytest.approx(
        [job.remaining_ms for job in once.jobs], abs=1e-6
    )


@given(schedule=SCHEDULES)
def test_energy_and_busy_time_are_sums_over_the_intervals_between_events(
    schedule: list[tuple[float, Action]],
) -> None:
    """Each event's moment is found from outside; between two of them all is constant, so P * t adds up."""
    state = fresh()
    energy_j = busy_s = 0.0
    for gap_s, action in [*schedule, (0.05, lambda state: state)]:
        end_s = state.now_s + gap_s
        ends_s = [finish_s(state, job.number, PART) for job in state.running]
        changes_s = [change.effective_s for change in state.changes]
        moments = sorted(t for t in {state.now_s, end_s, *ends_s, *changes_s} if state.now_s <= t <= end_s)
        for left_s, right_s in pairwise(moments):
            # The state just after ``left_s``: events at that very moment have happened.
            within = advance(state, left_s + (right_s - left_s) / 2, PART)
            energy_j += power_w(within, PART) * (right_s - left_s)
            busy_s += (right_s - left_s) * bool(within.running)
        state = action(advance(state, end_s, PART))
    assert state.energy_j == pytest.approx(energy_j, abs=1e-5)
    assert state.busy_s == pytest.approx(busy_s, abs=1e-7)


@given(schedule=SCHEDULES)
def test_the_gpu_is_work_conserving_and_counters_only_grow(
    schedule: list[tuple[float, Action]],
) -> None:
    state, seen = played(schedule, stops=2)
    for before, after in pairwise(seen):
        assert after.energy_j >= before.energy_j
        assert after.busy_s >= before.busy_s
        assert after.now_s >= before.now_s
        assert 0.0 <= after.utilisation <= 1.0
    # Jobs that were dropped took GPU time too, so the jobs still listed cannot have more than all.
    assert sum(job.gpu_s for job in state.jobs) <= state.busy_s + 1e-9


@given(schedule=SCHEDULES)
def test_a_state_survives_its_encoding(schedule: list[tuple[float, Action]]) -> None:
    _, seen = played(schedule, stops=2)
    for state in seen:
        assert decode(encode(state)) == state


def test_a_parked_idle_gpu_draws_the_parked_power() -> None:
    state = advance(locked(fresh(), PART.clocks_mhz[0], after_s=0.0), START_S + 10, PART)
    assert power_w(state, PART) == idle_power_w(PART, PART.clocks_mhz[0]) == PART.idle_w
    assert state.energy_j == pytest.approx(10 * PART.idle_w)


def test_exactness_does_not_depend_on_the_uptime() -> None:
    """After a year of uptime a float of seconds has steps of 4 ns; events must still all happen."""
    uptime_s = 3.2e7
    state = new_state(PART, index=0, uuid="u", boot_id="boot", now_s=uptime_s)
    for number in range(50):
        state = submit(state, work(1 / 3, 1 / 7), uptime_s + number * 1e-4, None, PART)
    state = advance(state, uptime_s + 1, PART)
    assert not state.running
    assert state.busy_s == pytest.approx(50 / 3000, rel=1e-4)


def limited(state: VirtualState, limit_w: float) -> VirtualState:
    return advance(command_limit(state, limit_w, state.now_s), state.now_s, PART)


@given(
    limit_w=st.floats(PART.limit_min_w, PART.limit_w),
    sensitivity=st.floats(0, 1),
    lock_mhz=st.none() | st.sampled_from(PART.working_clocks_mhz),
)
def test_a_power_limit_gives_the_highest_clock_that_keeps_it(
    limit_w: float, sensitivity: float, lock_mhz: int | None
) -> None:
    state = limited(locked(fresh(), lock_mhz, after_s=0.0), limit_w)
    assert power_w(state, PART) == idle_power_w(PART, lock_mhz or TOP), "an idle GPU is below any limit"
    busy = submitted(state, work(1e6, sensitivity))
    clock_mhz = clock_in_force_mhz(busy, PART)
    assert clock_mhz <= (lock_mhz or TOP)
    assert power_w(busy, PART) == busy_power_w(PART, sensitivity, clock_mhz) <= limit_w
    higher = [c for c in PART.clocks_mhz if clock_mhz < c <= (lock_mhz or TOP)]
    assert not higher or busy_power_w(PART, sensitivity, higher[0]) > limit_w


def test_under_a_power_limit_work_takes_the_time_of_the_clock_it_gets() -> None:
    state = submitted(limited(fresh(), 120.0), work(100, sensitivity=0.9))
    clock_mhz = clock_in_force_mhz(state, PART)
    assert clock_mhz < TOP
    finished_s = finish_s(state, 1, PART)
    assert finished_s - START_S == pytest.approx(0.100 * slowdown(PART, 0.9, clock_mhz))
    done = advance(state, finished_s, PART)
    assert done.energy_j == pytest.approx((finished_s - START_S) * busy_power_w(PART, 0.9, clock_mhz))
    assert clock_in_force_mhz(done, PART) == TOP, "with the work gone the limit no longer binds"


def test_a_limit_and_a_lock_are_commanded_side_by_side() -> None:
    state = command_limit(locked(fresh(), 945, after_s=0.010), 150.0, START_S + 0.020)
    assert commanded_limit_w(state) == 150.0
    later = advance(state, START_S + 0.015, PART)
    assert (later.clock_mhz, later.limit_w) == (945, PART.limit_w)
    both = advance(locked(state, None, after_s=0.030), START_S + 1, PART)
    assert (both.clock_mhz, both.limit_w) == (TOP, 150.0)
    assert decode(encode(state)) == state
