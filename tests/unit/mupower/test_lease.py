"""One daemon per GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mupower.lease import holder, leases
from mupower.run_files import gpu_files, run_dir
from muserve.errors import GpuBusyError
from sample_plans import sample_gpu


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {f"node0/gpu{index}": tmp_path / f"GPU-{index}.lease" for index in (0, 1)}


def test_a_second_holder_is_told_who_the_first_is(files: dict[str, Path]) -> None:
    with leases(files):
        first = holder(files["node0/gpu1"])
        assert first is not None
        assert first.pid == os.getpid()
        sentence = rf"^node0/gpu1 is already steered by process {first.pid} \(.+\) since \d{{4}}-.+: stop"
        with pytest.raises(GpuBusyError, match=sentence), leases({"node0/gpu1": files["node0/gpu1"]}):
            pytest.fail("two holders")
    assert holder(files["node0/gpu1"]) is None
    with leases(files):
        pass


def test_who_is_refused_one_gpu_holds_none(files: dict[str, Path]) -> None:
    with leases({"node0/gpu1": files["node0/gpu1"]}):
        with pytest.raises(GpuBusyError), leases(files):
            pytest.fail("two holders")
        assert holder(files["node0/gpu0"]) is None


def test_a_lease_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mupower.lease import leases\n"
        f"with leases({{'g': Path({str(tmp_path / 'GPU-0.lease')!r})}}):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(GpuBusyError, match=f"process {process.pid} "),
            leases({"g": tmp_path / "GPU-0.lease"}),
        ):
            pytest.fail("two holders")
    finally:
        process.kill()
        process.communicate()
    with leases({"g": tmp_path / "GPU-0.lease"}):
        pass


def test_a_lease_without_a_readable_holder_holds_all_the_same(files: dict[str, Path]) -> None:
    with leases(files):
        files["node0/gpu0"].write_text("")
        with (
            pytest.raises(GpuBusyError, match=r"already steered by process 0 \(unknown\)"),
            leases(files),
        ):
            pytest.fail("two holders")


def test_the_directory_is_chosen_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/systemd:{tmp_path}/other")
    monkeypatch.delenv("MUPOWER_RUN_DIR", raising=False)
    assert run_dir() == tmp_path / "systemd"
    monkeypatch.setenv("MUPOWER_RUN_DIR", str(tmp_path / "own"))
    assert run_dir() == tmp_path / "own"
    assert (tmp_path / "own").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUPOWER_RUN_DIR", str(tmp_path / "file"))
    with pytest.raises(GpuBusyError, match="expected a directory for leases: File exists"):
        run_dir()


def test_the_files_of_a_virtual_gpu_lie_beside_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUSERVE_VGPU_DIR", raising=False)
    monkeypatch.setenv("MUPOWER_RUN_DIR", str(tmp_path / "run"))
    assert gpu_files(sample_gpu(0), "VGPU-0", tmp_path).lease == tmp_path / "vgpu/VGPU-0.lease"
    assert not (tmp_path / "run").exists()
    real = gpu_files(sample_gpu(0, virtual=False), "GPU-7.x", tmp_path)
    assert (real.lease, real.limit) == (tmp_path / "run/GPU-7.x.lease", tmp_path / "run/GPU-7.x.limit")
