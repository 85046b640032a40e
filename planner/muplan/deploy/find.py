"""Which tritonserver to run: one the user names, one that is installed, or the one in a wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muserve.errors import TritonNotFoundError

TRITONSERVER_VARIABLE = "TRITONSERVER"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTriton:
    """A tritonserver, how it was found, and where its backends are.

    ``stubs`` is set for the server of the nvidia-pytriton wheel, which ships one Python stub for each
    Python version; elsewhere the stub lies beside the Python backend.
    """

    executable: Path
    origin: str
    backends: Path
    stubs: Path | None = None


def find_triton(wanted: Path | None = None, environment: Mapping[str, str] | None = None) -> FoundTriton:
    """The tritonserver to use: ``wanted``, ``$TRITONSERVER``, ``PATH``, the nvidia-pytriton wheel.

    Raises TritonNotFoundError when a named one is not there (the next place is not tried then), or
    when there is none at all.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(TRITONSERVER_VARIABLE)
    if wanted is not None:
        return _installed(wanted, "--tritonserver")
    if named:
        return _installed(Path(named), f"${TRITONSERVER_VARIABLE}")
    on_path = shutil.which("tritonserver", path=environment.get("PATH", ""))
    if on_path:
        return _installed(Path(on_path), "PATH")
    embedded = _embedded()
    if embedded:
        return embedded
    raise TritonNotFoundError(
        f"no tritonserver: --tritonserver is not given, ${TRITONSERVER_VARIABLE} is not set, PATH has "
        "none, and nvidia-pytriton is not installed; run inside NVIDIA's Triton container, or "
        "`pip install 'muserve[triton]'` to get a server from a wheel"
    )


def _installed(executable: Path, origin: str) -> FoundTriton:
    if not (executable.is_file() and os.access(executable, os.X_OK)):
        raise TritonNotFoundError(f"{origin}: expected the path of a tritonserver program, got {executable}")
    executable = executable.resolve()
    home = executable.parent.parent
    stubs = home / "python_backend_stubs"
    return FoundTriton(
        executable=executable,
        origin=origin,
        backends=home / "backends",
        stubs=stubs if stubs.is_dir() else None,
    )


def _embedded() -> FoundTriton | None:
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        return None
    executable = Path(package.submodule_search_locations[0], "tritonserver", "bin", "tritonserver")
    if not executable.is_file():
        return None
    return _installed(executable, "the nvidia-pytriton wheel")
