"""One daemon per GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mupower.lease import holder, leases
from mupower.run_files import gpu_key, run_dir
from muserve.errors import GpuBusyError
from sample_plans import sample_gpu

KEYS = {"node0/gpu0": "GPU-0", "node0/gpu1": "GPU-1"}


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    with leases(tmp_path, KEYS):
        first = holder(tmp_path, "GPU-1")
        assert first is not None
        assert first.pid == os.getpid()
        sentence = rf"^node0/gpu1 is already steered by process {first.pid} \(.+\) since \d{{4}}-.+: stop"
        with pytest.raises(GpuBusyError, match=sentence), leases(tmp_path, {"node0/gpu1": "GPU-1"}):
            pytest.fail("two holders")
    assert holder(tmp_path, "GPU-1") is None
    with leases(tmp_path, KEYS):
        pass


def test_who_is_refused_one_gpu_holds_none(tmp_path: Path) -> None:
    with leases(tmp_path, {"node0/gpu1": "GPU-1"}):
        with pytest.raises(GpuBusyError), leases(tmp_path, KEYS):
            pytest.fail("two holders")
        assert holder(tmp_path, "GPU-0") is None


def test_a_lease_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mupower.lease import leases\n"
        f"with leases(Path({str(tmp_path)!r}), {{'g': 'GPU-0'}}):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(GpuBusyError, match=f"process {process.pid} "), leases(tmp_path, {"g": "GPU-0"}):
            pytest.fail("two holders")
    finally:
        process.kill()
        process.communicate()
    with leases(tmp_path, {"g": "GPU-0"}):
        pass


def test_a_lease_without_a_readable_holder_holds_all_the_same(tmp_path: Path) -> None:
    with leases(tmp_path, KEYS):
        (tmp_path / "GPU-0.lease").write_text("")
        with (
            pytest.raises(GpuBusyError, match=r"already steered by process 0 \(unknown\)"),
            leases(tmp_path, KEYS),
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


def test_virtual_gpus_of_two_plans_are_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSERVE_VGPU_DIR", raising=False)
    here, there = (gpu_key(sample_gpu(0), "VGPU-0", tmp_path / name) for name in ("a", "b"))
    assert here != there
    assert gpu_key(sample_gpu(0, virtual=False), "GPU-7", tmp_path) == "GPU-7"
