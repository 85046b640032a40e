"""The demo, shortened: real Triton, real daemon, real prompts, virtual GPUs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from muserve.gpu.opening import open_gpus
from muserve.plan import read_plan

pytestmark = [pytest.mark.triton, pytest.mark.timeout(280)]

ARMS = ["FCFS + default clocks", "SSJF + miad"]
COMMAND = [sys.executable, "-c", "from muplan.cli import main; main()", "demo", "--seconds", "6"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("demo") / "out"
    run = subprocess.run(
        [*COMMAND, "-o", str(output), "--json"], capture_output=True, text=True, timeout=240, check=False
    )
    return output, run


@pytest.fixture(scope="module")
def report(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    output, run = demo
    assert run.returncode == 0, run.stderr
    document: dict[str, Any] = json.loads(run.stdout)
    assert document == json.loads((output / "report.json").read_text())
    return document


def test_both_arms_answer_the_same_requests(report: dict[str, Any]) -> None:
    assert list(report["arms"]) == ARMS
    baseline, ours = report["arms"].values()
    for model, counts in baseline["requests"].items():
        assert counts["arrived"] == ours["requests"][model]["arrived"]
        assert counts["completed"] == counts["arrived"], baseline["errors"]
        assert ours["requests"][model]["failed"] == 0, ours["errors"]
    assert set(baseline["requests"]) == {"bert-base", "resnet-50", "opt-1.3b"}
    assert baseline["requests"]["opt-1.3b"]["arrived"] >= 3


def test_energy_is_counted_over_the_same_window(report: dict[str, Any]) -> None:
    baseline, ours = report["arms"].values()
    assert ours["window_s"] == pytest.approx(baseline["window_s"], abs=0.5)
    for arm in (baseline, ours):
        assert arm["window_s"] >= 5.9
        assert arm["average_power_w"] == pytest.approx(arm["energy_j"] / arm["window_s"])
        assert 40 < arm["average_power_w"] < 600
    assert report["setup"]["virtual"] is True


def test_the_baseline_keeps_its_clocks_and_the_daemon_lowers_ours(report: dict[str, Any]) -> None:
    baseline, ours = (arm["mean_clock_mhz"] for arm in report["arms"].values())
    assert set(baseline.values()) == {1380.0}
    assert min(ours.values()) < 1380


def test_nothing_stays_locked(demo: tuple[Path, object], report: dict[str, Any]) -> None:
    output, _ = demo
    for slug in ("fcfs-default", "ssjf-miad"):
        _require_unlocked(output / slug)


def test_the_page_is_written_and_progress_goes_to_stderr(
    demo: tuple[Path, subprocess.CompletedProcess[str]], report: dict[str, Any]
) -> None:
    output, run = demo
    page = (output / "report.html").read_text()
    assert "The GPUs are virtual." in page
    assert all(arm in page for arm in ARMS)
    assert "SSJF + miad: warming up" in run.stderr


@pytest.fixture
def running_demo(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    output = tmp_path / "out"
    with subprocess.Popen(
        [*COMMAND, "-o", str(output)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        yield output, process
        process.kill()


def test_ctrl_c_under_load_leaves_nothing_behind(
    running_demo: tuple[Path, subprocess.Popen[str]],
) -> None:
    output, process = running_demo
    assert process.stderr is not None
    assert any("requests, then drain" in line for line in process.stderr)
    time.sleep(2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 5  # Triton, its stubs, the daemon and its supervisor
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=40) == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    _require_unlocked(output / "fcfs-default")
    assert not (output / "report.json").exists()


def _require_unlocked(plan_dir: Path) -> None:
    gpus = open_gpus(read_plan(plan_dir), plan_dir)
    assert gpus
    assert [gpu.locked_clock_mhz() for gpu in gpus.values()] == [None] * len(gpus)
