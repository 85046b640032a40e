"""The fake driver library of ``tests/data/fake_nvml.c``: built, told what goes wrong, asked what it holds."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pynvml
import pytest

SOURCE = Path(__file__).parents[1] / "data/fake_nvml.c"
_GPU = struct.Struct("<IIIIIIQQ")
_MAX_GPUS = 16


def build_fake_nvml(directory: Path, *flags: str) -> Path:
    """Compile the library into ``directory``; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake NVML library with")
    library = directory / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, *flags, "-o", str(library), str(SOURCE)], check=True)
    return library


@dataclass(frozen=True)
class FakeDriver:
    """One machine's driver. Its orders and its state are two files in ``folder``."""

    library: Path
    folder: Path

    def __post_init__(self) -> None:
        self.tell()
        self._state.write_bytes(b"\0" * (_GPU.size * _MAX_GPUS))

    @property
    def _state(self) -> Path:
        return self.folder / "driver.state"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs for ``pynvml`` to find this driver."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "FAKE_NVML_CONTROL": str(self.folder / "driver.orders"),
            "FAKE_NVML_STATE": str(self._state),
        }

    def tell(self, *orders: str) -> None:
        """Replace all orders (see the head of the C file); none: everything works."""
        fresh = self.folder / ".driver.orders"
        fresh.write_text("".join(f"{order}\n" for order in orders))
        os.replace(fresh, self.folder / "driver.orders")

    def locked_mhz(self, index: int) -> int | None:
        """The clock lock that the driver holds."""
        return self._gpu(index)[0] or None

    def limit_mw(self, index: int) -> int | None:
        """The power limit that was set; None when none ever was."""
        return self._gpu(index)[2] or None

    def clock_commands(self, index: int) -> int:
        """How many locks and unlocks the driver has carried out."""
        return int(self._gpu(index)[3])

    def limit_commands(self, index: int) -> int:
        """How many power limits the driver has set."""
        return int(self._gpu(index)[4])

    def last_change_s(self, index: int) -> float:
        """When a clock command or a power limit was last carried out, on the monotonic clock."""
        return max(self._gpu(index)[6:8]) / 1e9

    def _gpu(self, index: int) -> tuple[int, ...]:
        return _GPU.unpack_from(self._state.read_bytes(), index * _GPU.size)


def load_fake_nvml(library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Put the library where pynvml would after finding it; undone after the test."""
    driver = FakeDriver(library, folder)
    # A copy is a library of its own: dlopen knows files by inode, and the state of another test would stay.
    own = shutil.copy(library, folder / "nvml.so")
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(own)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    return driver
