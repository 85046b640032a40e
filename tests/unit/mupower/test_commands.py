"""The command line: bad input is one sentence, status and reset work on virtual GPUs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mupower.cli import main
from muserve.gpu.opening import open_gpus
from muserve.plan import Plan, plan_bytes

URL = "http://127.0.0.1:9/metrics"


def mupower(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def complaint(result: Result) -> str:
    """The one sentence of a refused command."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]


def test_status_is_a_table(plan_file: Path) -> None:
    result = mupower("status", "--plan", plan_file)
    assert result.exit_code == 0
    assert "node0/gpu0" in result.stdout
    assert "virtual" in result.stdout.lower()


def test_status_as_json(plan_file: Path, plan: Plan) -> None:
    gpus = open_gpus(plan, plan_file.parent)
    gpus["node0/gpu1"].lock_clock(945)
    result = mupower("status", "--plan", plan_file.parent, "--json")
    rows = json.loads(result.stdout)
    assert [(r["gpu"], r["virtual"], r["models"], r["locked_mhz"]) for r in rows] == [
        ("node0/gpu0", True, ["bert"], None),
        ("node0/gpu1", True, ["bert", "llm"], 945),
    ]
    assert {"clock_mhz", "top_mhz", "power_w", "limit_w", "energy_j", "utilisation", "uuid"} <= set(rows[0])


def test_reset_unlocks_every_gpu(plan_file: Path, plan: Plan) -> None:
    gpus = open_gpus(plan, plan_file.parent)
    for gpu in gpus.values():
        gpu.lock_clock(945)
    result = mupower("reset", "--plan", plan_file)
    assert result.exit_code == 0
    assert result.stdout.count("unlocked") == 2
    assert all(gpu.locked_clock_mhz() is None for gpu in gpus.values())


@pytest.mark.parametrize("command", ["status", "reset", "daemon"])
def test_bad_plans_are_one_sentence(command: str, tmp_path: Path) -> None:
    more = ("--metrics", URL) if command == "daemon" else ()
    missing = tmp_path / "none.json"
    assert str(missing) in complaint(mupower(command, "--plan", missing, *more))
    missing.write_text("{")
    assert "not valid JSON" in complaint(mupower(command, "--plan", missing, *more))


def test_an_unknown_node_is_one_sentence(plan_file: Path) -> None:
    said = complaint(mupower("reset", "--plan", plan_file, "--node", "node7"))
    assert said == "Error: --node: expected one of node0, got 'node7'"


def test_an_unknown_part_names_the_gpu(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    odd = replace(plan.gpus[0], part="V1000")
    file.write_bytes(plan_bytes(replace(plan, gpus=(odd,), models=())))
    assert "V1000" in complaint(mupower("reset", "--plan", file))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--metrics", "127.0.0.1:8002"], "--metrics: expected a URL"),
        (["--metrics", URL, "--period", "0.1"], "--period: expected 0.1225 to 3600 seconds"),
        (["--metrics", URL, "--period", "nan"], "--period: input should be a finite number"),
        (["--metrics", URL, "--stale-after", "1"], "--stale-after: expected at least two periods"),
        (["--metrics", URL, "--listen", "9105"], "--listen: expected HOST:PORT"),
    ],
)
def test_bad_options_are_one_sentence(plan_file: Path, options: list[str], part: str) -> None:
    assert part in complaint(mupower("daemon", "--plan", plan_file, *options))


def test_a_period_that_the_watchdog_would_kill_is_refused(
    plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    result = mupower("daemon", "--plan", plan_file, "--metrics", URL, "--no-exporter", "--law", "default")
    assert result.exit_code == 2
    assert "--period: expected at most half of systemd's WatchdogSec (1 s), got 1" in result.stderr


def test_what_the_daemon_must_know_may_come_from_nowhere(plan_file: Path) -> None:
    assert "--metrics: required: as a flag, as MUPOWER_METRICS" in complaint(
        mupower("daemon", "--plan", plan_file)
    )


def test_an_unknown_law_is_refused(plan_file: Path) -> None:
    result = mupower("daemon", "--plan", plan_file, "--metrics", URL, "--law", "pid")
    assert result.exit_code == 2
    assert "'default', 'static', 'miad'" in result.stderr


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_exporter_port_is_one_sentence(plan_file: Path) -> None:
    with taken_port() as port:
        listen = f"127.0.0.1:{port}"
        said = complaint(mupower("daemon", "--plan", plan_file, "--metrics", URL, "--listen", listen))
    assert said == (
        f"Error: --listen {listen}: the port is taken: choose another address or pass --no-exporter"
    )


def test_the_daemon_imports_no_heavy_library() -> None:
    code = (
        "import sys, mupower.commands.daemon, mupower.supervisor, mupower.commands.status\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'pynvml', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_no_command() -> None:
    code = (
        "import sys\nfrom mupower.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "assert not [m for m in sys.modules if m.startswith('mupower.commands.')], 'eager'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("daemon", "status", "check", "reset"):
        assert command in done.stdout


def test_the_systemd_unit_ships_and_resets_after_every_stop() -> None:
    unit = resources.files("mupower").joinpath("systemd", "mupower.service").read_text()
    assert "\nExecStopPost=mupower reset --plan ${MUPOWER_PLAN}" in unit
    assert "\nKillMode=mixed\n" in unit
    assert "\nType=notify\n" in unit
    assert "\nRuntimeDirectoryPreserve=yes\n" in unit, "limits found in force must outlast a crash"
