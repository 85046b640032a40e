"""What the Python backend needs in order to run the models in *this* interpreter.

Triton's Python backend starts one stub process for each model instance. The stub embeds Python: it
links ``libpython3.X.so.1.0`` and finds its standard library and its packages through the first
``python3`` on ``PATH``. Left alone, library and packages come from two different Pythons, and imports
as plain as ``ssl`` fail. Here both are made to be the running interpreter's.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from muplan.deploy.find import FoundTriton
from muserve.errors import ServingError
from muserve.plan import GRPC_URL_VARIABLE, VGPU_DIR_VARIABLE

STUB = "triton_python_backend_stub"
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so\.1\.0\0")
# The stub of the 2.51 wheel is built against NumPy 1. Under NumPy 2 it hands out wrong numbers (every
# element the first one) and aborts on strings.
_NUMPY_LIMIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The Python that the models run in.

    ``version`` is ``3.X``; ``bin`` holds its ``python3`` (the virtual environment's, if there is one);
    ``library_dirs`` are where its shared library may lie, best first.
    """

    executable: Path
    version: str
    bin: Path
    prefix: Path
    library_dirs: tuple[Path, ...]
    numpy: str | None

    @property
    def library_name(self) -> str:
        """File name of the shared library that the stub links."""
        return f"libpython{self.version}.so.1.0"


def running_interpreter() -> Interpreter:
    """The interpreter that executes this line."""
    directory = sysconfig.get_config_var("LIBDIR")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    candidates = [Path(sys.base_prefix, "lib")]
    if directory:
        candidates.insert(0, Path(directory))
        if multiarch:
            candidates.append(Path(directory, multiarch))
    try:
        numpy = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        numpy = None
    return Interpreter(
        executable=Path(sys.executable),
        version=f"{sys.version_info.major}.{sys.version_info.minor}",
        bin=Path(sys.executable).parent,
        prefix=Path(sys.prefix),
        library_dirs=tuple(dict.fromkeys(candidates)),
        numpy=numpy,
    )


def shared_library(interpreter: Interpreter) -> Path:
    """The interpreter's own libpython; ServingError when it was built without one."""
    for directory in interpreter.library_dirs:
        library = directory / interpreter.library_name
        if library.is_file():
            return library
    looked = ", ".join(str(directory) for directory in interpreter.library_dirs)
    raise ServingError(
        f"{interpreter.executable} has no shared {interpreter.library_name} (looked in {looked}), which "
        "Triton's Python backend needs: use a Python built with --enable-shared, or on Debian and "
        f"Ubuntu `apt install libpython{interpreter.version}`"
    )


def python_stub(triton: FoundTriton, interpreter: Interpreter) -> Path:
    """The backend's stub for this Python version.

    Raises ServingError when the server has none, or when the stub cannot work with the installed
    NumPy (the wheel's stub needs NumPy 1).
    """
    if triton.stubs is None:
        return _installed_stub(triton, interpreter)
    stub = triton.stubs / interpreter.version / STUB
    if not stub.is_file():
        versions = ", ".join(sorted((p.name for p in triton.stubs.iterdir()), key=_version_key))
        raise ServingError(
            f"{triton.executable} has no stub for Python {interpreter.version}: expected one of {versions}"
        )
    if interpreter.numpy and _version_key(interpreter.numpy)[0] >= _NUMPY_LIMIT:
        raise ServingError(
            f"the Python backend of {triton.executable} needs numpy<2, but {interpreter.executable} has "
            f"numpy {interpreter.numpy}: `pip install 'muserve[triton]'` installs a version that works"
        )
    return stub


def _installed_stub(triton: FoundTriton, interpreter: Interpreter) -> Path:
    stub = triton.backends / "python" / STUB
    if not stub.is_file():
        raise ServingError(
            f"{triton.executable} has no Python backend: expected {stub}, which NVIDIA's Triton container has"
        )
    linked = {match.decode() for match in _LIBPYTHON.findall(stub.read_bytes())}
    if linked and interpreter.version not in linked:
        raise ServingError(
            f"the Python backend of {triton.executable} runs Python {', '.join(sorted(linked))}, but muServe "
            f"runs in {interpreter.version}: install muServe into that version, or put a stub built for "
            f"{interpreter.version} at {stub}"
        )
    return stub


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def link_backends(triton: FoundTriton, stub: Path, directory: Path) -> Path:
    """A directory that has all of the server's backends and ``stub``: its own, or one under ``directory``.

    Everything in the latter is a symbolic link: the backend library finds its neighbours through its own
    location, so it must not be copied. Triton refuses such a link to it for backends that are themselves
    written in Python, as vLLM's is; a server that has them brings its stub.
    """
    if stub == triton.backends / "python" / STUB:
        return triton.backends
    backends = directory / "backends"
    python = backends / "python"
    python.mkdir(parents=True)
    for backend in triton.backends.iterdir():
        if backend.name != "python":
            (backends / backend.name).symlink_to(backend)
    for part in (triton.backends / "python").iterdir():
        if part.name not in (STUB, "__pycache__"):
            (python / part.name).symlink_to(part)
    (python / STUB).symlink_to(stub)
    return backends


def link_library(interpreter: Interpreter, directory: Path) -> Path:
    """A directory under ``directory`` that holds a link to the interpreter's libpython and no more.

    For ``LD_LIBRARY_PATH``: the interpreter's own library directory may hold other libraries that
    would take the place of the server's.
    """
    libraries = directory / "lib"
    libraries.mkdir()
    (libraries / interpreter.library_name).symlink_to(shared_library(interpreter))
    return libraries


def server_environment(
    interpreter: Interpreter,
    libraries: Path,
    vgpu_dir: Path | None,
    base: Mapping[str, str],
    grpc_url: str | None = None,
) -> dict[str, str]:
    """Environment of the tritonserver process; its stubs inherit it.

    The locale is UTF-8 because the stub would otherwise read and print ASCII. One thread for each
    model's CPU work, unless the user says otherwise: many stubs share the machine. ``grpc_url``: where the
    server will listen, for models that call it themselves.
    """
    environment = dict(base)
    environment.pop("PYTHONHOME", None)
    environment["PATH"] = _prepend(str(interpreter.bin), base.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _prepend(str(libraries), base.get("LD_LIBRARY_PATH"))
    environment["VIRTUAL_ENV"] = str(interpreter.prefix)
    environment["LC_ALL"] = "C.UTF-8"
    environment.setdefault("OMP_NUM_THREADS", "1")
    if vgpu_dir is not None:
        environment[VGPU_DIR_VARIABLE] = str(vgpu_dir.absolute())
    if grpc_url is not None:
        environment[GRPC_URL_VARIABLE] = grpc_url
    return environment


def _prepend(first: str, rest: str | None) -> str:
    return ":".join(part for part in (first, rest) if part)
