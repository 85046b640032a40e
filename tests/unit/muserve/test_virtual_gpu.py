"""The virtual GPU as processes use it: real files, real time, real deaths."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from muserve.errors import GpuBusyError, GpuLostError, GpuNotFoundError, GpuUnsupportedError, InputError
from muserve.gpu.parts import load_part, part_bytes, part_names
from muserve.gpu.protocol import Gpu
from muserve.gpu.virtual import VirtualGpu
from muserve.gpu.virtual_codec import decode, encode
from muserve.gpu.virtual_file import SLOT_BYTES, StateFile
from muserve.gpu.virtual_history import history_file
from muserve.gpu.virtual_process import process_start
from muserve.physics import slowdown

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vgpu" / "VGPU-test-0.vgpu"


@pytest.fixture
def gpu(path: Path) -> VirtualGpu:
    return VirtualGpu.create(path, "V100-16GB", 0, "VGPU-test-0")


@contextmanager
def process(target: Callable[[], object]) -> Iterator[BaseProcess]:
    """``target`` in another process, killed at the end at the latest."""
    child = FORK.Process(target=target)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.002)


def test_it_is_a_gpu_that_says_it_is_virtual(gpu: VirtualGpu) -> None:
    device: Gpu = gpu
    assert device.identity.name == "Virtual V100-16GB"
    assert device.identity.virtual
    assert device.identity.uuid == "VGPU-test-0"
    assert device.supported_clocks_mhz()[-1] == device.clock_mhz() == 1380
    assert device.locked_clock_mhz() is None
    assert device.power_w() == gpu.part.idle_default_w
    assert device.utilisation() == 0.0
    assert device.throttle_reasons() == frozenset()


@pytest.mark.parametrize("part_name", part_names())
def test_every_part_of_the_catalogue_opens(part_name: str, path: Path) -> None:
    gpu = VirtualGpu.create(path, part_name, 0, "VGPU-test-0")
    assert gpu.identity.name == f"Virtual {part_name}"
    assert gpu.power_w() == gpu.part.idle_default_w
    gpu.lock_clock(gpu.part.knee_mhz)
    until(lambda: gpu.clock_mhz() == gpu.part.knee_mhz)
    run = gpu.run(2, 0.5)
    assert run.gpu_s == pytest.approx(0.002 * slowdown(gpu.part, 0.5, gpu.part.knee_mhz), abs=1e-6)


def test_a_part_of_a_users_own_is_kept_beside_the_gpu(path: Path, tmp_path: Path) -> None:
    own = replace(load_part("V100-16GB"), name="mine", idle_default_w=50.0)
    (tmp_path / "mine.json").write_bytes(part_bytes(own))
    gpu = VirtualGpu.create(path, "mine", 0, "VGPU-test-0", part_dir=tmp_path)
    gpu.lock_clock(945)
    assert VirtualGpu.create(path, "mine", 0, "VGPU-test-0", part_dir=tmp_path).locked_clock_mhz() == 945
    assert VirtualGpu(path).part == own
    (tmp_path / "mine.json").write_bytes(part_bytes(replace(own, idle_default_w=60.0)))
    changed = VirtualGpu.create(path, "mine", 0, "VGPU-test-0", part_dir=tmp_path)
    assert changed.part.idle_default_w == 60
    assert changed.locked_clock_mhz() is None, "another part makes it a new GPU"
    with pytest.raises(InputError, match="unknown GPU part 'mine'"):
        VirtualGpu.create(path, "mine", 0, "VGPU-test-0")


def test_a_run_alone_takes_its_time(gpu: VirtualGpu) -> None:
    called_s = time.monotonic()
    run = gpu.run(20, 0.5)
    returned_s = time.monotonic()
    assert run.finished_s - run.started_s == pytest.approx(0.020, abs=1e-6)
    assert run.gpu_s == pytest.approx(0.020, abs=1e-6)
    assert called_s <= run.started_s < run.finished_s <= returned_s
    assert returned_s - called_s < 0.100, "about 20.8 ms on an idle machine"
    assert gpu.busy_s() == pytest.approx(0.020, abs=1e-6)


def test_two_threads_share_the_gpu(gpu: VirtualGpu) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: gpu.run(50, 0.5), range(2)))
    overlap_s = min(r.finished_s for r in runs) - max(r.started_s for r in runs)
    for run in runs:
        assert run.gpu_s == pytest.approx(0.050, abs=1e-6)
        assert run.finished_s - run.started_s == pytest.approx(0.050 + overlap_s / 2, abs=1e-6)
    assert overlap_s > 0.050
    assert gpu.snapshot().jobs == ()


def test_waiting_costs_little_cpu(gpu: VirtualGpu) -> None:
    before_s = time.process_time()
    gpu.run(1000, 0.5)
    assert time.process_time() - before_s < 0.06, "about 1 % of a core; 6 % on a busy machine"


def test_back_to_back_runs_lose_no_gpu_time(gpu: VirtualGpu) -> None:
    runs = [gpu.run(6, 0.5)]
    for _ in range(49):
        runs.append(gpu.run(6, 0.5, not_before_s=runs[-1].finished_s))
    gapless = sum(after.started_s == before.finished_s for before, after in pairwise(runs))
    assert gapless > 25, "all 49 on an idle machine; on a busy one some wake up more than 5 ms late"
    assert gpu.busy_s() == pytest.approx(0.300, abs=1e-6)


def test_lock_blocks_for_the_call_and_counts_once_it_has_settled(gpu: VirtualGpu) -> None:
    began_s = time.monotonic()
    gpu.lock_clock(945)
    returned_s = time.monotonic()
    assert returned_s - began_s >= gpu.part.switch_call_ms / 1000
    assert gpu.locked_clock_mhz() == 945
    state = gpu.snapshot()
    if state.now_s < began_s + 0.020:
        assert state.clock_mhz == 1380
    until(lambda: gpu.clock_mhz() == 945)
    settled_s = time.monotonic() - began_s
    assert settled_s >= (gpu.part.switch_call_ms + gpu.part.switch_settle_ms) / 1000
    gpu.unlock_clock()
    assert gpu.locked_clock_mhz() is None
    until(lambda: gpu.clock_mhz() == 1380)


def test_a_lock_in_the_middle_slows_only_what_is_left(gpu: VirtualGpu) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(gpu.run, 200, 1.0)
        until(lambda: bool(gpu.snapshot().running))
        gpu.lock_clock(945)
        effective_s = gpu.snapshot().changes[0].effective_s
        run = future.result()
    fast_s = effective_s - run.started_s
    expected_s = fast_s + (0.200 - fast_s) * slowdown(gpu.part, 1.0, 945)
    assert run.finished_s - run.started_s == pytest.approx(expected_s, abs=1e-6)


def test_only_supported_clocks_can_be_locked(gpu: VirtualGpu) -> None:
    with pytest.raises(GpuUnsupportedError, match="1000 MHz is not one of its 167 supported clocks"):
        gpu.lock_clock(1000)
    assert gpu.history() == ()


def test_the_history_tells_who_asked_for_what(gpu: VirtualGpu, path: Path) -> None:
    gpu.lock_clock(945)
    with process(VirtualGpu(path).unlock_clock) as child:
        child.join()
        assert child.exitcode == 0
        with history_file(path).open("a") as file:
            file.write('{"cut": "sho')
        commands = gpu.history()
        assert [(c.action, c.clock_mhz, c.pid) for c in commands] == [
            ("lock", 945, os.getpid()),
            ("unlock", None, child.pid),
        ]
    assert commands[0].time_s < commands[1].time_s


@pytest.mark.parametrize(("latency_ms", "sensitivity"), [(-1, 0.5), (float("nan"), 0.5), (1, 1.1), (1, -1)])
def test_impossible_work_is_refused(gpu: VirtualGpu, latency_ms: float, sensitivity: float) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        gpu.run(latency_ms, sensitivity)
    assert gpu.snapshot().next_job == 1


def test_an_interrupted_run_is_taken_off_the_gpu(gpu: VirtualGpu) -> None:
    def interrupt() -> None:
        until(lambda: bool(gpu.snapshot().running))
        signal.raise_signal(signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise InterruptedError

    previous = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(InterruptedError):
            gpu.run(5000, 0.5)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
    assert gpu.snapshot().jobs == ()


def test_another_interpreter_shares_time_clock_and_energy(gpu: VirtualGpu, path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from muserve.gpu.virtual import VirtualGpu;"
        "gpu = VirtualGpu(Path(sys.argv[1])); print(gpu.locked_clock_mhz());"
        "run = gpu.run(300, 0.5); print(run.started_s, run.finished_s, gpu.energy_j())"
    )
    gpu.lock_clock(1200)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1200\n"
        until(lambda: bool(gpu.snapshot().running))
        mine = gpu.run(100, 0.5)
        started_s, finished_s, energy_j = map(float, other.stdout.readline().split())
    slow = slowdown(gpu.part, 0.5, 1200)
    assert mine.finished_s - mine.started_s == pytest.approx(2 * 0.100 * slow, abs=1e-6)
    assert finished_s - started_s == pytest.approx(0.400 * slow, abs=1e-6)
    assert 0 < energy_j <= gpu.energy_j()


def test_the_work_of_a_killed_process_leaves_the_gpu(gpu: VirtualGpu) -> None:
    """The killed child stays a zombie until ``join``: it must count as dead all the same."""
    with process(lambda: gpu.run(10_000, 0.5)) as child:
        until(lambda: bool(gpu.snapshot().running))
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(gpu.run, 400, 0.5)
            time.sleep(0.100)
            child.kill()
            killed_s = time.monotonic()
            run = future.result()
        shared_s = killed_s - run.started_s
        expected_s = shared_s + (0.400 - shared_s / 2)
        assert run.finished_s - run.started_s == pytest.approx(expected_s, abs=0.150), "0.8 s if shared"
    assert gpu.snapshot().jobs == ()


def test_no_moment_of_death_breaks_the_state_or_keeps_the_lock(gpu: VirtualGpu) -> None:
    def spin() -> None:
        while True:
            gpu.run(0, 0.5)

    energy_j = gpu.energy_j()
    for _ in range(20):
        with process(spin) as child:
            jobs = gpu.snapshot().next_job
            until(lambda jobs=jobs: gpu.snapshot().next_job > jobs + 1)  # type: ignore[misc]
            time.sleep(random.uniform(0.0, 0.003))
            child.kill()
            assert gpu.run(1, 0.5).gpu_s == pytest.approx(0.001, abs=1e-6)
        assert gpu.energy_j() > energy_j
        energy_j = gpu.energy_j()


def test_a_reused_pid_is_not_taken_for_the_dead_owner(gpu: VirtualGpu, path: Path) -> None:
    with process(lambda: gpu.run(10_000, 0.5)) as child:
        until(lambda: bool(gpu.snapshot().running))
        child.kill()
        child.join()
    with StateFile(path).locked() as locked:
        state = decode(locked.read())
        (job,) = state.jobs
        locked.write(encode(replace(state, jobs=(replace(job, pid=os.getpid()),))))
    assert process_start(os.getpid()) != job.process_start
    assert gpu.snapshot().jobs == ()


@pytest.mark.parametrize("kept_bytes", [0, 8, 23, 24, 60, 200])
def test_a_torn_write_leaves_the_state_before_it(gpu: VirtualGpu, path: Path, kept_bytes: int) -> None:
    gpu.lock_clock(945)
    before = path.read_bytes()
    gpu.unlock_clock()
    after = path.read_bytes()
    slot = next(i for i in (0, 1) if part(before, i) != part(after, i))
    start = slot * SLOT_BYTES + kept_bytes
    torn = bytearray(before.ljust(len(after), b"\0"))
    torn[slot * SLOT_BYTES : start] = after[slot * SLOT_BYTES : start]
    path.write_bytes(torn)
    assert VirtualGpu(path).locked_clock_mhz() == 945
    gpu.lock_clock(1200)
    assert VirtualGpu(path).locked_clock_mhz() == 1200


def part(image: bytes, slot: int) -> bytes:
    return image[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]


def test_after_a_reboot_the_gpu_starts_anew(gpu: VirtualGpu, path: Path) -> None:
    gpu.lock_clock(945)
    gpu.run(1, 0.5)
    with StateFile(path).locked() as locked:
        state = replace(decode(locked.read()), boot_id="an older boot")
        locked.write(encode(replace(state, now_s=state.now_s + 1e6)))
    again = VirtualGpu.create(path, "V100-16GB", 0, "VGPU-test-0")
    assert again.locked_clock_mhz() is None
    assert again.clock_mhz() == 1380
    assert again.busy_s() == 0.0
    assert again.identity == gpu.identity
    energy_j = again.energy_j()
    time.sleep(0.020)
    assert again.energy_j() - energy_j >= 0.020 * gpu.part.idle_default_w


def test_creating_again_keeps_the_state_unless_told_otherwise(gpu: VirtualGpu, path: Path) -> None:
    gpu.lock_clock(945)
    same = VirtualGpu.create(path, "V100-16GB", 0, "VGPU-test-0")
    assert same.locked_clock_mhz() == 945
    renumbered = VirtualGpu.create(path, "V100-16GB", 1, "VGPU-test-0")
    assert renumbered.locked_clock_mhz() is None
    assert renumbered.identity.index == 1
    renumbered.lock_clock(945)
    reset = VirtualGpu.create(path, "V100-16GB", 1, "VGPU-test-0", reset=True)
    assert reset.locked_clock_mhz() is None
    assert reset.history() == ()


def test_two_creators_make_one_gpu(path: Path) -> None:
    def create(_: int) -> VirtualGpu:
        return VirtualGpu.create(path, "V100-16GB", 0, "VGPU-test-0")

    with ThreadPoolExecutor(8) as pool:
        gpus = list(pool.map(create, range(8)))
    gpus[0].lock_clock(945)
    assert {gpu.locked_clock_mhz() for gpu in gpus} == {945}
    assert [file.name for file in path.parent.glob(".*")] == [], "no temporary file is left behind"


def test_work_on_a_gpu_that_is_reset_is_lost(gpu: VirtualGpu, path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(gpu.run, 5000, 0.5)
        until(lambda: bool(gpu.snapshot().running))
        VirtualGpu.create(path, "V100-16GB", 0, "VGPU-test-0", reset=True)
        with pytest.raises(GpuLostError, match="VGPU-test-0 was reset while work ran on it"):
            future.result()


def test_a_missing_or_unreadable_state_is_one_sentence(gpu: VirtualGpu, path: Path) -> None:
    path.write_bytes(b"\0" * 2 * SLOT_BYTES)
    with pytest.raises(GpuLostError, match="virtual GPU state is unreadable"):
        gpu.clock_mhz()
    path.unlink()
    with pytest.raises(GpuLostError, match="virtual GPU state is gone: No such file"):
        gpu.lock_clock(945)
    with pytest.raises(GpuNotFoundError, match="no such virtual GPU"):
        VirtualGpu(path)


def test_creating_mends_an_unreadable_state(gpu: VirtualGpu, path: Path) -> None:
    path.write_bytes(b"nonsense")
    assert VirtualGpu.create(path, "V100-16GB", 0, "VGPU-test-0").clock_mhz() == 1380


def test_a_participant_that_never_lets_go_is_reported(
    gpu: VirtualGpu, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muserve.gpu.virtual_file._LOCK_TIMEOUT_S", 0.05)
    with (
        StateFile(path).locked(),
        pytest.raises(GpuBusyError, match=r"has held this virtual GPU for 0\.05 s"),
    ):
        gpu.clock_mhz()


def test_an_unknown_part_creates_nothing(path: Path) -> None:
    with pytest.raises(InputError, match="unknown GPU part 'V1000'"):
        VirtualGpu.create(path, "V1000", 0, "VGPU-test-0")
    assert not path.exists()


def test_more_jobs_than_fit_are_refused_and_leave_no_trace(path: Path) -> None:
    file = StateFile(path)
    file.create(b"small")
    with file.locked() as locked:
        with pytest.raises(GpuBusyError, match="too many jobs at once"):
            locked.write(b"x" * SLOT_BYTES)
        assert locked.read() == b"small"


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GpuNotFoundError, match=r"file/vgpu: expected a directory for virtual GPUs"):
        VirtualGpu.create(tmp_path / "file" / "vgpu" / "VGPU-0.vgpu", "V100-16GB", 0, "VGPU-0")


def test_a_power_limit_holds_the_clock_down_while_work_needs_more(gpu: VirtualGpu, path: Path) -> None:
    limits = gpu.power_limits()
    assert (limits.least_w, limits.most_w, limits.default_w, limits.limit_w) == (100, 250, 250, 250)
    gpu.limit_power(100)
    assert VirtualGpu(path).power_limits().limit_w == 100
    time.sleep(0.030)
    assert gpu.clock_mhz() == 1380
    assert gpu.throttle_reasons() == frozenset()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(gpu.run, 50, 0.6)
        until(lambda: bool(gpu.snapshot().running))
        assert gpu.clock_mhz() < 1380
        assert gpu.power_w() <= 100
        assert gpu.throttle_reasons() == {"SwPowerCap"}
        future.result()
    with pytest.raises(GpuUnsupportedError, match="99 W is not a power limit from 100 to 250 W"):
        gpu.limit_power(99)
