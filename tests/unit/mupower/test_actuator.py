"""Clocks brought about by locks or by power limits, and what each leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupower.actuator import (
    Actuator,
    CapHold,
    LockHold,
    cap_watts,
    choose_actuator,
    is_inert,
)
from mupower.clocks import ClockLocks
from mupower.run_files import LimitNote
from muserve.errors import GpuError, GpuLostError, GpuPermissionError, GpuUnsupportedError
from muserve.gpu.parts import load_part
from muserve.gpu.virtual import VirtualGpu
from muserve.physics import busy_power_w
from muserve.plan import Plan

MakeGpu = Callable[..., Any]
PART = load_part("V100-16GB")


@pytest.fixture
def note(tmp_path: Path) -> LimitNote:
    return LimitNote(tmp_path / "GPU-1.limit")


def test_a_cap_is_set_for_each_clock_and_the_found_limit_comes_back(
    make_gpu: MakeGpu, note: LimitNote
) -> None:
    gpu = make_gpu(limit_w=280.0)  # the operator's own limit, below the factory's 300 W
    with ClockLocks({"g": CapHold(gpu, note, lambda clock: clock / 10)}) as locks:
        locks.apply("g", 1200)
        assert note.read() == 280.0
        locks.apply("g", 1500)
    assert gpu.limits_w == [120.0, 150.0, 280.0]
    assert note.read() is None
    assert gpu.locked_mhz is None


def test_a_cap_never_lies_above_the_found_limit_nor_below_the_least(
    make_gpu: MakeGpu, note: LimitNote
) -> None:
    gpu = make_gpu(limit_w=140.0)
    hold = CapHold(gpu, note, lambda clock: clock / 10)
    for clock in (1500, 300, 1530):
        hold.lock_clock(clock)
    assert gpu.limits_w == [140.0, 100.0, 140.0]


def test_a_limit_changed_by_somebody_else_is_noticed(make_gpu: MakeGpu, note: LimitNote) -> None:
    gpu = make_gpu()
    hold = CapHold(gpu, note, lambda clock: clock / 10)
    assert hold.locked_clock_mhz() is None
    hold.lock_clock(1200)
    assert (hold.locked_clock_mhz(), hold.cap_w) == (1200, 120.0)
    gpu.limit_w = 250.0
    assert hold.locked_clock_mhz() is None
    hold.unlock_clock()
    assert (gpu.limit_w, hold.cap_w) == (300.0, None)


@pytest.mark.parametrize("actuator", [LockHold, lambda gpu, note: CapHold(gpu, note, lambda clock: 120.0)])
def test_what_a_dead_daemon_left_is_undone_by_either(
    make_gpu: MakeGpu, note: LimitNote, actuator: Callable[..., Any]
) -> None:
    gpu = make_gpu(limit_w=280.0)
    CapHold(gpu, note, lambda clock: 120.0).lock_clock(1200)  # and then it died
    gpu.locked_mhz = 945
    with ClockLocks({"g": actuator(gpu, note)}):
        assert (gpu.limit_w, gpu.locked_mhz) == (280.0, None)


def test_a_cap_lets_go_though_clocks_may_not_be_unlocked(make_gpu: MakeGpu, note: LimitNote) -> None:
    gpu = make_gpu(failure=GpuPermissionError("no"), failing=frozenset({"lock", "unlock"}))
    hold = CapHold(gpu, note, lambda clock: 120.0)
    hold.lock_clock(1200)
    hold.unlock_clock()
    assert gpu.limit_w == 300.0


def test_a_note_that_cannot_be_read_does_not_keep_a_lock_in_place(make_gpu: MakeGpu, tmp_path: Path) -> None:
    gpu = make_gpu(locked_mhz=945)
    (tmp_path / "GPU-1.limit").write_text("a lot")
    with pytest.raises(GpuError, match="expected a power limit"):
        LockHold(gpu, LimitNote(tmp_path / "GPU-1.limit")).unlock_clock()
    assert gpu.locked_mhz is None


def test_a_cap_on_a_virtual_gpu_keeps_its_work_as_fast_as_asked(note: LimitNote, tmp_path: Path) -> None:
    gpu = VirtualGpu.create(tmp_path / "gpu.vgpu", "V100-16GB", 0, "VGPU-test-0")
    hold = CapHold(gpu, note, lambda clock: max(busy_power_w(PART, k, clock) for k in (0.6, 0.0)))
    hold.lock_clock(1102)
    time.sleep(0.05)
    clocks = {}
    for sensitivity in (0.6, 0.0):
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(gpu.run, 60, sensitivity)
            time.sleep(0.02)
            clocks[sensitivity] = gpu.clock_mhz()
            run.result()
    assert clocks[0.0] == 1102, "the hungrier one sets the limit"
    assert 1102 < clocks[0.6] < PART.top_clock_mhz, "the frugal one runs faster than asked"
    hold.unlock_clock()
    assert gpu.power_limits().limit_w == PART.limit_w


def test_without_a_note_there_is_no_cap(make_gpu: MakeGpu, tmp_path: Path) -> None:
    """Who cannot note the limit in force, on a full disk say, could not bring it back."""
    gpu = make_gpu()
    hold = CapHold(gpu, LimitNote(tmp_path / "gone/GPU-1.limit"), lambda clock: 120.0)
    with pytest.raises(GpuError, match=r"GPU-1\.limit: cannot note the power limit in force: No such file"):
        hold.lock_clock(1200)
    assert gpu.limits_w == []


def test_an_unreadable_note_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "GPU-1.limit").write_text("a lot")
    with pytest.raises(GpuError, match=r"GPU-1\.limit: expected a power limit in watts"):
        LimitNote(tmp_path / "GPU-1.limit").read()


@given(sensitivity=st.floats(0, 1), clock_mhz=st.sampled_from(PART.working_clocks_mhz))
def test_no_work_of_the_part_runs_slower_than_asked_under_its_cap(sensitivity: float, clock_mhz: int) -> None:
    """Without models the part's whole range of sensitivities counts."""
    assert busy_power_w(PART, sensitivity, clock_mhz) <= cap_watts(PART, ())(clock_mhz) + 1e-9


def test_the_cap_is_that_of_the_hungriest_model(plan: Plan) -> None:
    assert cap_watts(PART, plan.models_on("node0/gpu0"))(1102) == busy_power_w(PART, 0.5, 1102)


@pytest.mark.parametrize(
    ("asked", "failing", "chosen"),
    [
        (Actuator.AUTO, set(), Actuator.CLOCK),
        (Actuator.AUTO, {"lock"}, Actuator.CAP),
        (Actuator.CAP, set(), Actuator.CAP),
        (Actuator.CLOCK, {"limit"}, Actuator.CLOCK),
    ],
)
def test_the_actuator_is_what_the_gpu_permits(
    make_gpu: MakeGpu, asked: Actuator, failing: set[str], chosen: Actuator
) -> None:
    gpu = make_gpu(failure=GpuUnsupportedError("not here"), failing=frozenset(failing), limit_w=280.0)
    assert choose_actuator(asked, "g", gpu) is chosen
    assert (gpu.locked_mhz, gpu.limit_w) == (None, 280.0), "probing leaves nothing behind"


def test_a_gpu_that_permits_nothing_says_all_of_it(make_gpu: MakeGpu) -> None:
    gpu = make_gpu(failure=GpuPermissionError("needs root"), failing=frozenset({"lock", "limit"}))
    with pytest.raises(GpuPermissionError, match=r"^g: may not be steered: clock: needs root; cap: needs"):
        choose_actuator(Actuator.AUTO, "g", gpu)
    with pytest.raises(GpuPermissionError, match=r"^g: may not be steered: cap: needs root \(see"):
        choose_actuator(Actuator.CAP, "g", gpu)
    gpu.failure = GpuLostError("g is lost")
    with pytest.raises(GpuLostError):
        choose_actuator(Actuator.AUTO, "g", gpu)


@pytest.mark.parametrize(
    ("power_w", "utilisation", "reasons", "inert"),
    [
        (120.0, 0.9, (), True),
        (149.0, 0.9, (), False),  # at its limit
        (120.0, 0.9, ("SwPowerCap",), False),
        (40.0, 0.0, (), False),  # idle: nothing to say
    ],
)
def test_a_cap_above_the_natural_draw_is_inert(
    power_w: float, utilisation: float, reasons: tuple[str, ...], inert: bool
) -> None:
    assert is_inert(150.0, power_w, utilisation, reasons) is inert
