from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from muplan.deploy.environment import (
    STUB,
    Interpreter,
    link_backends,
    link_library,
    python_stub,
    running_interpreter,
    server_environment,
    shared_library,
)
from muplan.deploy.find import FoundTriton
from muserve.errors import ServingError


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    library = tmp_path / "python" / "lib" / "libpython3.11.so.1.0"
    library.parent.mkdir(parents=True)
    library.touch()
    return Interpreter(
        executable=Path("/venv/bin/python"),
        version="3.11",
        bin=Path("/venv/bin"),
        prefix=Path("/venv"),
        library_dirs=(tmp_path / "missing", library.parent),
        numpy="1.26.4",
    )


@pytest.fixture
def wheel(tmp_path: Path) -> FoundTriton:
    """A server as the wheel lays it out: a backend without a stub, and stubs by Python version."""
    backends, stubs = tmp_path / "wheel" / "backends", tmp_path / "wheel" / "python_backend_stubs"
    for file in (backends / "python" / "libtriton_python.so", stubs / "3.10" / STUB, stubs / "3.11" / STUB):
        file.parent.mkdir(parents=True)
        file.touch()
    return FoundTriton(executable=Path("tritonserver"), origin="test", backends=backends, stubs=stubs)


@pytest.fixture
def container(tmp_path: Path) -> FoundTriton:
    """A server as in the container: one stub, linked against Python 3.12."""
    python = tmp_path / "container" / "backends" / "python"
    python.mkdir(parents=True)
    (python / STUB).write_bytes(b"\x7fELF...libpython3.12.so.1.0\0...")
    return FoundTriton(executable=Path("tritonserver"), origin="test", backends=python.parent)


def test_the_library_is_the_interpreters_own(interpreter: Interpreter, tmp_path: Path) -> None:
    assert shared_library(interpreter) == tmp_path / "python" / "lib" / "libpython3.11.so.1.0"


def test_this_very_interpreter_is_described(interpreter: Interpreter) -> None:
    here = running_interpreter()
    assert (here.bin / "python3").exists() or here.executable.exists()
    assert here.library_name.startswith(f"libpython{here.version}")


def test_an_interpreter_without_a_shared_library_is_named(interpreter: Interpreter, tmp_path: Path) -> None:
    static = dataclasses.replace(interpreter, library_dirs=(tmp_path / "missing",))
    with pytest.raises(ServingError, match=r"/venv/bin/python has no shared libpython3\.11\.so\.1\.0"):
        shared_library(static)


def test_the_stub_is_the_one_for_this_python(wheel: FoundTriton, interpreter: Interpreter) -> None:
    assert wheel.stubs is not None
    assert python_stub(wheel, interpreter) == wheel.stubs / "3.11" / STUB


def test_a_python_without_a_stub_is_refused(wheel: FoundTriton, interpreter: Interpreter) -> None:
    newer = dataclasses.replace(interpreter, version="3.14")
    with pytest.raises(ServingError, match=r"no stub for Python 3\.14: expected one of 3\.10, 3\.11"):
        python_stub(wheel, newer)


@pytest.mark.parametrize("numpy", ["2.0.0", "2.4.6", "10.0"])
def test_numpy_2_is_refused_with_the_wheels_stub(
    wheel: FoundTriton, interpreter: Interpreter, numpy: str
) -> None:
    with pytest.raises(ServingError, match=rf"needs numpy<2, but /venv/bin/python has numpy {numpy}"):
        python_stub(wheel, dataclasses.replace(interpreter, numpy=numpy))


def test_an_installed_stub_must_be_of_the_same_python(
    container: FoundTriton, interpreter: Interpreter
) -> None:
    with pytest.raises(ServingError, match=r"runs Python 3\.12, but muServe runs in 3\.11"):
        python_stub(container, interpreter)
    same = dataclasses.replace(interpreter, version="3.12", numpy="2.1.0")
    assert python_stub(container, same) == container.backends / "python" / STUB


def test_a_server_without_a_python_backend_is_refused(
    container: FoundTriton, interpreter: Interpreter
) -> None:
    (container.backends / "python" / STUB).unlink()
    with pytest.raises(ServingError, match="has no Python backend"):
        python_stub(container, interpreter)


def test_backends_are_linked_not_copied(wheel: FoundTriton, interpreter: Interpreter, tmp_path: Path) -> None:
    (wheel.backends / "onnxruntime").mkdir()
    stub = python_stub(wheel, interpreter)
    backends = link_backends(wheel, stub, tmp_path / "run")
    assert (backends / "onnxruntime").is_symlink()
    assert (backends / "python" / "libtriton_python.so").is_symlink()
    assert (backends / "python" / STUB).readlink() == stub


def test_a_server_that_has_its_stub_keeps_its_backends(
    container: FoundTriton, interpreter: Interpreter, tmp_path: Path
) -> None:
    """Triton refuses a linked Python backend under backends that are written in Python."""
    stub = container.backends / "python" / STUB
    assert link_backends(container, stub, tmp_path / "run") == container.backends
    assert not (tmp_path / "run").exists()


def test_the_library_directory_holds_nothing_else(interpreter: Interpreter, tmp_path: Path) -> None:
    (tmp_path / "python" / "lib" / "libssl.so.3").touch()
    run = tmp_path / "run"
    run.mkdir()
    assert [file.name for file in link_library(interpreter, run).iterdir()] == ["libpython3.11.so.1.0"]


def test_the_models_find_this_interpreter_first_and_speak_utf_8(interpreter: Interpreter) -> None:
    base = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/cuda", "PYTHONHOME": "/other", "LC_ALL": "C"}
    environment = server_environment(interpreter, Path("/run/lib"), Path("/plan/vgpu"), base)
    assert environment["PATH"] == "/venv/bin:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/run/lib:/cuda"
    assert environment["VIRTUAL_ENV"] == "/venv"
    assert environment["LC_ALL"] == "C.UTF-8"
    assert environment["MUSERVE_VGPU_DIR"] == "/plan/vgpu"
    assert "PYTHONHOME" not in environment
    assert base["PATH"] == "/usr/bin"


def test_the_users_thread_count_is_kept(interpreter: Interpreter) -> None:
    assert server_environment(interpreter, Path("/l"), None, {})["OMP_NUM_THREADS"] == "1"
    chosen = server_environment(interpreter, Path("/l"), None, {"OMP_NUM_THREADS": "8"})
    assert chosen["OMP_NUM_THREADS"] == "8"
    assert "MUSERVE_VGPU_DIR" not in chosen


def test_the_virtual_gpus_directory_is_absolute(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = server_environment(interpreter, Path("/l"), Path("build/vgpu"), {})
    assert environment["MUSERVE_VGPU_DIR"] == str(tmp_path / "build" / "vgpu")
