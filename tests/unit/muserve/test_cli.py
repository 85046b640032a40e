"""Both command lines: light ``--help``, expected errors in one line, bugs with their traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from muserve.cli import LazyGroup

_MODULE = """
import click
from muserve.errors import InputError

@click.command()
@click.argument("what")
def command(what):
    if what == "bug":
        raise ZeroDivisionError("a bug")
    raise InputError("spec.yaml: colour: unknown key")
"""

_HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "matplotlib", "lightgbm", "tritonclient")


_MODULE_NAME = "lazily_imported_command"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    (tmp_path / f"{_MODULE_NAME}.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, _MODULE_NAME, raising=False)
    return LazyGroup(name="tool", lazy_commands={"act": (_MODULE_NAME, "Act on it.")})


def test_expected_error_is_one_line_and_its_exit_code(group: click.Group) -> None:
    result = CliRunner().invoke(group, ["act", "input"])

    assert result.exit_code == 2
    assert result.stderr == "Error: spec.yaml: colour: unknown key\n"
    assert result.stdout == ""


def test_bug_keeps_its_traceback(group: click.Group) -> None:
    assert isinstance(CliRunner().invoke(group, ["act", "bug"]).exception, ZeroDivisionError)


def test_help_lists_commands_without_importing_them(group: click.Group) -> None:
    result = CliRunner().invoke(group, ["--help"])

    assert "act  Act on it." in result.stdout
    assert _MODULE_NAME not in sys.modules


@pytest.mark.parametrize("tool", ["muplan", "mupower"])
def test_help_imports_nothing_heavy(tool: str) -> None:
    program = f"import sys\nfrom {tool}.cli import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    program += f"print([m for m in {_HEAVY!r} if m in sys.modules])"

    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert out.stdout.splitlines()[-1] == "[]"
