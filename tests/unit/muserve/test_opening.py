"""From a plan to open devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from muserve.errors import GpuNotFoundError, InputError
from muserve.gpu.opening import open_gpus
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import VGPU_DIR_VARIABLE
from sample_plans import sample_gpu, sample_plan


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VGPU_DIR_VARIABLE, raising=False)


def test_virtual_gpus_are_made_beside_the_plan_and_shared(tmp_path: Path) -> None:
    wanted = sample_plan([sample_gpu(0), sample_gpu(1)])
    gpus = open_gpus(wanted, tmp_path)
    assert list(gpus) == ["node0/gpu0", "node0/gpu1"]
    assert (tmp_path / "vgpu/VGPU-node0-1.vgpu").is_file()
    gpus["node0/gpu1"].lock_clock(945)
    again = open_gpus(wanted, tmp_path)
    assert again["node0/gpu1"].locked_clock_mhz() == 945
    assert again["node0/gpu0"].locked_clock_mhz() is None
    assert again["node0/gpu1"].identity.index == 1


def test_only_the_gpus_of_one_node_are_opened(tmp_path: Path) -> None:
    wanted = sample_plan([sample_gpu(0, "a"), sample_gpu(0, "b")])
    assert list(open_gpus(wanted, tmp_path, node="b")) == ["b/gpu0"]
    assert not (tmp_path / "vgpu/VGPU-a-0.vgpu").exists()


def test_the_state_directory_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VGPU_DIR_VARIABLE, str(tmp_path / "elsewhere"))
    (gpu,) = open_gpus(sample_plan([sample_gpu(0, "a")]), tmp_path).values()
    assert isinstance(gpu, VirtualGpu)
    assert (tmp_path / "elsewhere/VGPU-a-0.vgpu").is_file()


def test_a_real_gpu_is_asked_of_the_driver(tmp_path: Path) -> None:
    """Index 63 exists on no machine, with or without a driver."""
    with pytest.raises(GpuNotFoundError):
        open_gpus(sample_plan([sample_gpu(63, "a", virtual=False, uuid=None)]), tmp_path)


def test_an_unknown_part_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown GPU part"):
        open_gpus(sample_plan([sample_gpu(0, "a", part="Voodoo2")]), tmp_path)
