"""Measuring a profile: the loop on a virtual GPU, and the timing itself with ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from muplan.cli import main
from muplan.profile.buckets import Sizes, Work, bucket_works
from muplan.profile.journal import Journal
from muplan.profile.measured import Bench, check_part, journal_identity, measured_profile
from muplan.profile.modelled import ModelledRows
from muplan.profile.profile_file import Profile, parse_profile, profile_bytes, read_profile
from muplan.profile.runtime import OnnxRuntime, VirtualRuntime
from muplan.profile.stopwatch import Patience, read_workload
from muplan.profile.targets import choose_clocks, even_cuts, targets
from muplan.sources import LoadedModel, load_source
from muserve.errors import GpuError, GpuLostError, GpuPermissionError, InputError
from muserve.gpu.parts import Part, load_part
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import Basis

QUICK = Patience(repetitions=3, window_s=0.012, settle_s=0.04, cool_s=0.0, retries=1)


class Quiet:
    """A watcher that only counts."""

    def __init__(self) -> None:
        self.points = self.finished = self.done = 0

    def started(self, points: int, finished: int) -> None:
        self.points, self.finished = points, finished

    def measuring(self, what: str) -> None:
        assert what

    def measured(self) -> None:
        self.done += 1


class TroubledGpu(VirtualGpu):
    """A virtual GPU that refuses locks, throttles above a clock, or is lost after some locks."""

    may_lock = True
    throttles_above_mhz = 10_000
    locks_left = 1000

    def lock_clock(self, clock_mhz: int) -> None:
        if not self.may_lock:
            raise GpuPermissionError("permission denied: changing clocks needs root")
        self.locks_left -= 1
        if self.locks_left < 0:
            raise GpuLostError("the GPU has fallen off the bus")
        super().lock_clock(clock_mhz)

    def throttle_reasons(self) -> frozenset[str]:
        return frozenset({"SwPowerCap"} if self.clock_mhz() > self.throttles_above_mhz else ())


@pytest.fixture(scope="module")
def part() -> Part:
    return load_part("V100-16GB")


@pytest.fixture(scope="module")
def source() -> LoadedModel:
    return load_source("catalog:resnet-50", Path())


@pytest.fixture(scope="module")
def works(source: LoadedModel) -> tuple[Work, ...]:
    return tuple(bucket_works(source, Sizes(batches=(1,))))


@pytest.fixture
def gpu(tmp_path: Path) -> TroubledGpu:
    VirtualGpu.create(tmp_path / "gpu.vgpu", "V100-16GB", 0, "VGPU-test")
    return TroubledGpu(tmp_path / "gpu.vgpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "profile.json.journal"


def bench(gpu: TroubledGpu, part: Part, pieces: int = 1, driver: str = "none") -> Bench:
    return Bench(
        gpu=gpu,
        driver=driver,
        part=part,
        runtime=VirtualRuntime(gpu),
        clocks_mhz=choose_clocks(gpu, part, 4),
        partitions=pieces,
        patience=QUICK,
    )


def measure(
    source: LoadedModel, works: tuple[Work, ...], on: Bench, file: Path, watcher: Quiet | None = None
) -> Profile:
    with Journal(file, journal_identity(source, works, on)) as journal:
        return measured_profile(source, works, on, journal, watcher or Quiet())


def test_a_rehearsal_finds_the_sensitivity_and_power_it_was_given(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    profile = measure(source, works, bench(gpu, part, pieces=3), file)
    (bucket,) = profile.buckets
    modelled = ModelledRows(works[0], part).whole()
    assert bucket.whole.latency_ms == pytest.approx(modelled.latency_ms, rel=0.01)
    assert bucket.whole.k_low <= bucket.whole.k <= bucket.whole.k_high
    assert bucket.whole.k == pytest.approx(modelled.k, abs=0.01)
    assert bucket.whole.busy_top_w is not None
    assert modelled.busy_top_w is not None
    assert part.idle_default_w < bucket.whole.busy_top_w <= 1.01 * modelled.busy_top_w  # some waking up
    assert (bucket.whole.from_mhz, bucket.whole.to_mhz) == (part.knee_mhz, part.top_clock_mhz)
    assert len(bucket.partitions) == 3
    assert sum(r.latency_ms for r in bucket.partitions) == pytest.approx(modelled.latency_ms, rel=0.02)
    assert len(bucket.points) == 4 * 4
    assert bucket.operators == ()
    assert bucket.whole.compute_ms is None
    assert gpu.locked_clock_mhz() is None
    assert parse_profile(profile_bytes(profile), "p.json") == profile


def test_a_virtual_gpu_is_never_called_measured(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    profile = measure(source, works, bench(gpu, part), file)
    assert {profile.bases.latency, profile.bases.sensitivity, profile.bases.power} == {Basis.MODELLED}
    assert profile.runtime.name == "virtual"
    assert profile.device is not None
    assert profile.device.virtual


def test_without_permission_only_the_default_clock_is_measured_and_k_stays_modelled(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    gpu.may_lock = False
    profile = measure(source, works, bench(gpu, part), file)
    modelled = ModelledRows(works[0], part).whole()
    row = profile.buckets[0].whole
    assert [point.clock_mhz for point in profile.buckets[0].points] == [part.top_clock_mhz]
    assert (row.k, row.k_low, row.k_high) == (modelled.k, modelled.k_low, modelled.k_high)
    assert row.busy_top_w is not None
    assert (row.busy_knee_w, row.static_w) == (None, None)
    assert profile.bases.sensitivity is Basis.MODELLED


def test_a_throttled_point_is_kept_but_in_no_fit(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    gpu.throttles_above_mhz = part.top_clock_mhz - 1
    profile = measure(source, works, bench(gpu, part), file)
    points = profile.buckets[0].points
    assert [point.throttled for point in points] == [(), (), (), ("SwPowerCap",)]
    row = profile.buckets[0].whole
    assert row.to_mhz == points[2].clock_mhz < part.top_clock_mhz
    assert row.busy_top_w is None
    assert row.k == pytest.approx(ModelledRows(works[0], part).whole().k, abs=0.01)  # of the part's top clock


def test_too_much_throttling_is_an_error_and_only_throttled_points_are_measured_again(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    gpu.throttles_above_mhz = part.knee_mhz
    with pytest.raises(GpuError, match=r"1 of 4 clocks were free of throttling \(SwPowerCap\)"):
        measure(source, works, bench(gpu, part), file)
    assert gpu.locked_clock_mhz() is None
    gpu.throttles_above_mhz = 10_000
    watcher = Quiet()
    profile = measure(source, works, bench(gpu, part), file, watcher)
    assert (watcher.points, watcher.finished, watcher.done) == (4, 1, 3)
    assert not any(point.throttled for point in profile.buckets[0].points)


def test_a_lost_gpu_leaves_the_journal_and_the_next_run_goes_on(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    on = bench(gpu, part)
    gpu.locks_left = 2
    with pytest.raises(GpuLostError):
        measure(source, works, on, file)
    assert gpu.locked_clock_mhz() is None
    with file.open("ab") as stream:
        stream.write(b'{"at": ["infer')  # what a kill leaves of a line
    gpu.locks_left = 1000
    watcher = Quiet()
    profile = measure(source, works, on, file, watcher)
    assert (watcher.finished, watcher.done) == (2, 2)
    assert len(profile.buckets[0].points) == 4


def test_another_measurement_is_refused_with_what_differs(
    source: LoadedModel, works: tuple[Work, ...], gpu: TroubledGpu, part: Part, file: Path
) -> None:
    measure(source, works, bench(gpu, part, driver="550.54"), file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"driver was '550.54' and is '560.35' now"):
        measure(source, works, bench(gpu, part, driver="560.35"), file)
    assert file.read_bytes() == before


def test_a_file_that_is_no_journal_is_left_alone(file: Path) -> None:
    file.write_text("my notes\n")
    with pytest.raises(InputError, match="expected the journal of a measurement"), Journal(file, {}):
        pass
    assert file.read_text() == "my notes\n"


def test_two_runs_never_share_a_journal(file: Path) -> None:
    with (
        Journal(file, {}),
        pytest.raises(InputError, match="another process is measuring"),
        Journal(file, {}),
    ):
        pass


def test_clocks_spread_from_the_knee_to_the_top(gpu: TroubledGpu, part: Part) -> None:
    clocks = choose_clocks(gpu, part, 5)
    assert len(clocks) == 5
    assert (clocks[0], clocks[-1]) == (part.knee_mhz, part.top_clock_mhz)
    gaps = [high - low for low, high in pairwise(clocks)]
    assert max(gaps) - min(gaps) <= 15
    gpu.may_lock = False
    assert choose_clocks(gpu, part, 5) == (part.top_clock_mhz,)


def test_pieces_are_about_equal(works: tuple[Work, ...], part: Part) -> None:
    pieces = [t.modelled for t in targets(works[0], part, 4)][1:]
    total = sum(row.latency_ms for row in pieces)
    assert len(pieces) == 4
    assert all(0.15 < row.latency_ms / total < 0.35 for row in pieces)
    assert even_cuts([], [1.0, 1.0], 4) == ()


def test_another_product_is_refused(gpu: TroubledGpu, part: Part) -> None:
    with pytest.raises(InputError, match="expected Tesla V100-PCIE-16GB, device 0 is Virtual V100-16GB"):
        check_part(gpu, part)


@pytest.fixture
def unlocked(gpu: TroubledGpu) -> Iterator[TroubledGpu]:
    yield gpu
    gpu.unlock_clock()


def test_a_clock_that_is_not_reached_is_throttling(unlocked: TroubledGpu) -> None:
    workload = VirtualRuntime(unlocked).load(None, {}, row_of(2.0, 0.5))  # type: ignore[arg-type]
    unlocked.lock_clock(1380)
    reading = read_workload(workload, unlocked, 945, QUICK)
    assert reading.throttled == ("ran at 1380 MHz",)


def row_of(latency_ms: float, k: float) -> Any:
    class Modelled:
        pass

    row = Modelled()
    row.latency_ms, row.k = latency_ms, k  # type: ignore[attr-defined]
    return row


def test_onnx_runtime_times_real_runs_of_a_whole_and_of_its_pieces(
    works: tuple[Work, ...], part: Part, gpu: TroubledGpu
) -> None:
    runtime = OnnxRuntime(None)
    assert runtime.version.name == "onnxruntime-cpu"
    seconds = []
    for target in targets(works[0], part, 2):
        workload = runtime.load(target.graph(), target.work.sizes, target.modelled)
        workload.run(1)
        seconds.append(min(workload.run(1) for _ in range(3)))
        assert workload.run(3) > 1.5 * seconds[-1]
    whole, *pieces = seconds
    assert whole / 3 < sum(pieces) < 3 * whole  # loose: other programs share this CPU


def test_a_machine_without_cuda_is_one_sentence(works: tuple[Work, ...], part: Part) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    target = next(targets(works[0], part, 1))
    with pytest.raises(InputError, match="onnxruntime-gpu"):
        OnnxRuntime(0).load(target.graph(), target.work.sizes, target.modelled)


REHEARSE = ("resnet-50", "--gpu", "V100-16GB", "--measure", "--virtual", "--batch", "1", "--pieces", "2")


def test_the_command_goes_on_after_a_signal(tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    command = [
        sys.executable,
        "-c",
        "from muplan.cli import main; main()",
        "profile",
        *REHEARSE,
        "-o",
        str(output),
    ]
    journal = tmp_path / "p.json.journal"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on from" in errors
    assert not output.exists()
    kept = journal.read_bytes().splitlines()[1:4]
    result = CliRunner().invoke(main, ["profile", *REHEARSE, "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    assert "VIRTUAL" not in result.stdout
    assert not journal.exists()
    profile = read_profile(output)
    assert json.loads(kept[0])["point"]["latency_ms"] in {p.latency_ms for p in profile.buckets[0].points}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--measure", "--virtual"), "expected --output"),
        (("--virtual",), "--virtual: expected together with --measure"),
        (("--measure", "-o", "{}/p.json"), "driver"),
    ],
)
def test_a_measurement_that_cannot_be_is_one_sentence(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    if complaint == "driver" and Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    filled = [word.format(tmp_path) for word in arguments]
    result = CliRunner().invoke(main, ["profile", "resnet-50", "--gpu", "V100-16GB", *filled])
    assert result.exit_code in (1, 2)
    assert complaint in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())
