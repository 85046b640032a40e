"""The small files by which processes that steer the same GPU know of each other.

Per GPU a ``.lease`` (held by the daemon that steers it) and, while a power limit of ours is in force, a
``.limit`` with the limit that was in force before. Those of a virtual GPU lie beside its state; those of a
real one in ``MUPOWER_RUN_DIR``, else where systemd's ``RuntimeDirectory`` points, else in ``/run/mupower``
(root) or a directory of the user's own. Two containers that share a GPU must share that directory too.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from muserve.errors import GpuBusyError, GpuError
from muserve.plan import GpuPlan, vgpu_dir

RUN_DIR_VARIABLE = "MUPOWER_RUN_DIR"


def run_dir() -> Path:
    """The directory of these files, made if need be; GpuBusyError when it cannot be made or used."""
    chosen = os.environ.get(RUN_DIR_VARIABLE) or os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if chosen:
        directory = Path(chosen)
    elif os.geteuid() == 0:
        directory = Path("/run/mupower")
    else:
        directory = Path(tempfile.gettempdir()) / f"mupower-{os.geteuid()}"
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
    except OSError as error:
        raise GpuBusyError(f"{directory}: expected a directory for leases: {error.strerror}") from error
    if owner not in (os.geteuid(), 0):
        raise GpuBusyError(f"{directory}: belongs to another user: name another one in {RUN_DIR_VARIABLE}")
    return directory


@dataclass(frozen=True, slots=True)
class GpuFiles:
    """Where the files of one GPU are."""

    directory: Path
    device_uuid: str

    @property
    def lease(self) -> Path:
        """Held by whoever steers the GPU."""
        return self.directory / f"{self.device_uuid}.lease"

    @property
    def limit(self) -> Path:
        """The power limit that was found in force, while one of ours is."""
        return self.directory / f"{self.device_uuid}.limit"


def gpu_files(gpu: GpuPlan, device_uuid: str, plan_dir: Path) -> GpuFiles:
    """The files of a plan's GPU; GpuBusyError when there is no directory for them."""
    return GpuFiles(vgpu_dir(plan_dir) if gpu.virtual else run_dir(), device_uuid)


class LimitNote:
    """What a GPU's power limit was before we changed it; outlives the process that noted it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> float | None:
        """The limit in watts; None when none of ours is in force. GpuError when the note is unreadable."""
        try:
            return float(self._file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise GpuError(f"{self._file}: expected a power limit in watts: {error}") from error

    def write(self, limit_w: float) -> None:
        """Note the limit, whole or not at all; GpuError when the disk refuses."""
        fresh = self._file.with_suffix(f".{os.getpid()}")
        try:
            fresh.write_text(repr(limit_w), encoding="ascii")
            fresh.replace(self._file)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise GpuError(f"{self._file}: cannot note the power limit in force: {error.strerror}") from error

    def remove(self) -> None:
        """No limit of ours is in force any more."""
        self._file.unlink(missing_ok=True)
