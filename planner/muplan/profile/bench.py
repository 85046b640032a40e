"""Where a profile is measured: a GPU, opened and known to be the part, and the runtime on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from muplan.profile.runtime import OnnxRuntime, Runtime, VirtualRuntime
from muplan.profile.stopwatch import Patience
from muserve.errors import GpuPermissionError, GpuUnsupportedError, InputError
from muserve.gpu.parts import Part, part_bytes, part_names
from muserve.gpu.protocol import Gpu
from muserve.gpu.virtual import VirtualGpu

REHEARSAL = Patience(window_s=0.03, settle_s=0.05, cool_s=0.0)
"""A virtual GPU's time has no noise and its counters no steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The device under test (``driver``: its version), the part it should be, what runs on it, and how.

    ``clocks_mhz`` ascend; a single one means that the clock is left as it is. ``partitions`` is about how
    many pieces of each model are timed beside the whole.
    """

    gpu: Gpu
    driver: str
    part: Part
    runtime: Runtime
    clocks_mhz: tuple[int, ...]
    partitions: int
    patience: Patience

    @property
    def locks(self) -> bool:
        """Whether clocks are locked."""
        return len(self.clocks_mhz) > 1


def open_bench(part: Part, device: int, clocks: int, partitions: int) -> Bench:
    """The GPU of NVML index ``device`` with ONNX Runtime on it, to be measured at about ``clocks`` clocks.

    Raises GpuError without a driver or such a device, InputError when the device is not the ``part``.
    """
    # Imported here so that a machine without a driver never loads NVML.
    from muserve.gpu.nvml import NvmlGpu, driver_version

    gpu = NvmlGpu.open(device)
    check_part(gpu, part)
    return Bench(
        gpu=gpu,
        driver=driver_version(),
        part=part,
        runtime=OnnxRuntime(device),
        clocks_mhz=choose_clocks(gpu, part, clocks),
        partitions=partitions,
        patience=Patience(),
    )


@contextmanager
def virtual_bench(part: Part, clocks: int, partitions: int) -> Iterator[Bench]:
    """The same with a virtual GPU of the ``part``, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="muplan-profile-") as name:
        folder = Path(name)
        if part.name not in part_names():
            folder.joinpath(f"{part.name}.json").write_bytes(part_bytes(part))
        gpu = VirtualGpu.create(folder / "gpu.vgpu", part.name, 0, "VGPU-profile-0", part_dir=folder)
        yield Bench(
            gpu=gpu,
            driver="none",
            part=part,
            runtime=VirtualRuntime(gpu),
            clocks_mhz=choose_clocks(gpu, part, clocks),
            partitions=partitions,
            patience=REHEARSAL,
        )


def check_part(gpu: Gpu, part: Part) -> None:
    """InputError unless ``gpu`` is the product ``part``, with its top clock."""
    device, top_mhz = gpu.identity, gpu.supported_clocks_mhz()[-1]
    if device.name != part.product:
        raise InputError(
            f"--gpu {part.name}: expected {part.product}, device {device.index} is {device.name}"
        )
    if top_mhz != part.top_clock_mhz:
        raise InputError(
            f"--gpu {part.name}: expected a top clock of {part.top_clock_mhz} MHz, "
            f"device {device.index} ({device.name}) has {top_mhz} MHz"
        )


def choose_clocks(gpu: Gpu, part: Part, count: int) -> tuple[int, ...]:
    """Clocks to measure at, ascending: ``count`` from the knee to the top, evenly apart.

    The top clock alone when the device refuses to be locked: it then runs at its default.
    """
    supported = gpu.supported_clocks_mhz()
    try:
        gpu.lock_clock(supported[-1])
        gpu.unlock_clock()
    except (GpuPermissionError, GpuUnsupportedError):
        return (supported[-1],)
    working = [clock for clock in supported if clock >= part.knee_mhz]
    steps = max(count, 2) - 1
    goals = [working[0] + (working[-1] - working[0]) * step / steps for step in range(steps + 1)]
    return tuple(sorted({min(working, key=lambda clock: abs(clock - goal)) for goal in goals}))
