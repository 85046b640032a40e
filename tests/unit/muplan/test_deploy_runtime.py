"""What a killed owner leaves is removed by the next start; what a living one has is not touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from muplan.deploy import tether
from muplan.deploy.runtime import (
    SHARED_MEMORY,
    processes_of,
    runtime_directory,
    shared_memory_option,
    shared_memory_prefix,
    sweep_leftovers,
)

# An owner with one "stub" that ignores its death, and one shared memory file. Prints its directory.
OWNER = """
import subprocess, sys, time
from muplan.deploy.runtime import SHARED_MEMORY, runtime_directory, shared_memory_prefix
with runtime_directory() as directory:
    name = shared_memory_prefix(directory) + "1"
    (SHARED_MEMORY / name).touch()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", name])
    print(directory, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def owner(own_temporary_directory: None) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()
    sweep_leftovers()


def shared_files(directory: Path) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{shared_memory_prefix(directory)}*"))


def test_a_living_owner_keeps_everything(owner: tuple[subprocess.Popen[str], Path]) -> None:
    _, directory = owner
    sweep_leftovers()
    assert directory.is_dir()
    assert len(shared_files(directory)) == 1
    assert len(processes_of(directory)) == 1


def test_a_killed_owners_processes_and_files_are_removed(
    owner: tuple[subprocess.Popen[str], Path],
) -> None:
    process, directory = owner
    left = processes_of(directory)
    process.kill()
    process.wait()
    with runtime_directory() as fresh:
        assert fresh != directory
        assert not directory.exists()
        assert not shared_files(directory)
        assert len(left) == 1
        assert all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in left)


def test_a_clean_end_removes_directory_and_shared_memory() -> None:
    with runtime_directory() as directory:
        (SHARED_MEMORY / f"{shared_memory_prefix(directory)}7").touch()
    assert not directory.exists()
    assert not shared_files(directory)


def test_only_the_servers_own_arguments_count(tmp_path: Path) -> None:
    with runtime_directory() as directory:
        mentions = f"{directory}: look at {shared_memory_option(directory)}"
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", mentions]) as bystander:
            assert processes_of(directory) == []
            bystander.kill()


def test_a_tethered_command_ends_with_its_owner() -> None:
    owner = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, {tether.__file__!r}, str(os.getpid()), sys.executable, '-c',\n"
        "           'import time; print(1, flush=True); time.sleep(60)']\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    _, alive = psutil.wait_procs([child], timeout=5)
    assert not alive


def test_a_tethered_command_does_not_start_without_its_owner() -> None:
    command = [sys.executable, tether.__file__, "1", sys.executable, "-c", "print('started')"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "is gone" in ended.stderr
