from __future__ import annotations

from pathlib import Path

import pytest

from muplan.deploy.find import find_triton
from muserve.errors import TritonNotFoundError


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A server laid out as in NVIDIA's container."""
    program = tmp_path / "opt" / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "opt" / "backends").mkdir()
    return program


def test_the_named_server_wins_over_environment_and_path(installed: Path, tmp_path: Path) -> None:
    environment = {"TRITONSERVER": str(tmp_path / "other"), "PATH": str(tmp_path / "elsewhere")}
    found = find_triton(installed, environment)
    assert found.executable == installed
    assert found.origin == "--tritonserver"
    assert found.backends == tmp_path / "opt" / "backends"
    assert found.stubs is None


def test_the_variable_wins_over_path(installed: Path, tmp_path: Path) -> None:
    found = find_triton(None, {"TRITONSERVER": str(installed), "PATH": ""})
    assert (found.executable, found.origin) == (installed, "$TRITONSERVER")


def test_a_server_on_path_is_followed_through_links(installed: Path, tmp_path: Path) -> None:
    link = tmp_path / "bin" / "tritonserver"
    link.parent.mkdir()
    link.symlink_to(installed)
    found = find_triton(None, {"PATH": str(link.parent)})
    assert (found.executable, found.origin) == (installed, "PATH")


@pytest.mark.parametrize("environment", [{}, {"PATH": "/usr/bin"}])
def test_a_named_server_that_is_missing_is_an_error_and_nothing_else_is_tried(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(TritonNotFoundError, match=r"--tritonserver: expected .* got .*nothing-here"):
        find_triton(tmp_path / "nothing-here", environment)
    with pytest.raises(TritonNotFoundError, match=r"\$TRITONSERVER: expected"):
        find_triton(None, {**environment, "TRITONSERVER": str(tmp_path / "nothing-here")})


def test_a_file_that_cannot_be_executed_is_refused(installed: Path) -> None:
    installed.chmod(0o644)
    with pytest.raises(TritonNotFoundError, match="expected the path of a tritonserver program"):
        find_triton(installed, {})
