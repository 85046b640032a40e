"""From a plan to open devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from muserve.errors import GpuNotFoundError, InputError
from muserve.gpu.opening import open_gpus
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import PLAN_VERSION, VGPU_DIR_VARIABLE, GpuPlan, Plan


def gpu_plan(node: str, index: int, *, virtual: bool = True, part: str = "V100-16GB") -> GpuPlan:
    return GpuPlan(
        name=f"{node}/gpu{index}",
        node=node,
        index=index,
        part=part,
        virtual=virtual,
        uuid=f"VGPU-{node}-{index}" if virtual else None,
        initial_clock_mhz=1380,
        initial_clock_reason="test",
        memory_bytes=16 * 2**30,
        memory_used_bytes=0,
        predicted_utilisation=0.0,
        predicted_power_w=45.0,
    )


def plan(*gpus: GpuPlan) -> Plan:
    return Plan(
        version=PLAN_VERSION,
        muserve_version="0",
        spec_sha256="",
        seed=0,
        objective="energy",
        gpus=gpus,
        models=(),
        predicted_power_w=0.0,
        default_clock_power_w=0.0,
        profile_fingerprints={},
    )


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VGPU_DIR_VARIABLE, raising=False)


def test_virtual_gpus_are_made_beside_the_plan_and_shared(tmp_path: Path) -> None:
    wanted = plan(gpu_plan("node0", 0), gpu_plan("node0", 1))
    gpus = open_gpus(wanted, tmp_path)
    assert list(gpus) == ["node0/gpu0", "node0/gpu1"]
    assert (tmp_path / "vgpu/VGPU-node0-1.vgpu").is_file()
    gpus["node0/gpu1"].lock_clock(945)
    again = open_gpus(wanted, tmp_path)
    assert again["node0/gpu1"].locked_clock_mhz() == 945
    assert again["node0/gpu0"].locked_clock_mhz() is None
    assert again["node0/gpu1"].identity.index == 1


def test_only_the_gpus_of_one_node_are_opened(tmp_path: Path) -> None:
    wanted = plan(gpu_plan("a", 0), gpu_plan("b", 0))
    assert list(open_gpus(wanted, tmp_path, node="b")) == ["b/gpu0"]
    assert not (tmp_path / "vgpu/VGPU-a-0.vgpu").exists()


def test_the_state_directory_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VGPU_DIR_VARIABLE, str(tmp_path / "elsewhere"))
    (gpu,) = open_gpus(plan(gpu_plan("a", 0)), tmp_path).values()
    assert isinstance(gpu, VirtualGpu)
    assert (tmp_path / "elsewhere/VGPU-a-0.vgpu").is_file()


def test_a_real_gpu_is_asked_of_the_driver(tmp_path: Path) -> None:
    """Index 63 exists on no machine, with or without a driver."""
    with pytest.raises(GpuNotFoundError):
        open_gpus(plan(gpu_plan("a", 63, virtual=False)), tmp_path)


def test_an_unknown_part_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown GPU part"):
        open_gpus(plan(gpu_plan("a", 0, part="Voodoo2")), tmp_path)
