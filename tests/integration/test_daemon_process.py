"""``mupower daemon`` as a real process on virtual GPUs: every way out leaves the clocks unlocked.

Triton is a small HTTP server that says what the test wants.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from muserve.gpu.opening import open_gpus
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import Plan, plan_bytes
from sample_plans import sample_gpu, sample_model, sample_partition, sample_plan

logger = logging.getLogger(__name__)

MUPOWER = str(Path(sys.executable).with_name("mupower"))
PERIOD_S = 0.2
STALE_AFTER_S = 1.0
SUPERVISOR_LEASE_S = 5.0


def small_plan() -> Plan:
    """One single-pass model with a 100 ms SLO on two virtual V100s."""
    gpus = [sample_gpu(0), sample_gpu(1)]
    partition = sample_partition("bert", [gpu.name for gpu in gpus])
    return sample_plan(gpus, [sample_model("bert", partitions=(partition,))])


@dataclass
class FakeTriton:
    """A metrics endpoint whose model completes 25 requests per scrape at ``latency_ms`` each."""

    latency_ms: float = 10.0
    text: str | None = None
    hangs: threading.Event | None = None
    _completed: int = 0
    _duration_us: float = 0.0
    _server: ThreadingHTTPServer | None = field(default=None, repr=False)

    def start(self) -> str:
        triton = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = triton.answer().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(BrokenPipeError):  # the daemon may have given up waiting
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/metrics"

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self) -> str:
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.text is not None:
            return self.text
        self._completed += 25
        self._duration_us += 25 * self.latency_ms * 1000
        return (
            "# TYPE nv_inference_request_success counter\n"
            f'nv_inference_request_success{{model="bert",version="1"}} {self._completed}\n'
            "# TYPE nv_inference_request_duration_us counter\n"
            f'nv_inference_request_duration_us{{model="bert",version="1"}} {self._duration_us}\n'
        )


@dataclass
class Rig:
    """A daemon process, its virtual GPUs, its Triton."""

    process: subprocess.Popen[str]
    gpus: dict[str, VirtualGpu]
    triton: FakeTriton
    log_file: Path
    listen: str

    def log(self) -> str:
        return self.log_file.read_text()

    def locked(self) -> list[int | None]:
        return [gpu.locked_clock_mhz() for gpu in self.gpus.values()]

    def wait_until_locked(self) -> None:
        """Both GPUs are held well below the top clock."""
        eventually(lambda: all(clock is not None and clock < 1200 for clock in self.locked()), 20.0)

    def seconds_until_unlocked(self, at_most_s: float) -> float:
        began_s = time.monotonic()
        eventually(lambda: self.locked() == [None, None], at_most_s)
        return time.monotonic() - began_s

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def supervisor(self) -> psutil.Process:
        (child,) = self.children()
        return psutil.Process(child)


def eventually(condition: Callable[[], bool], within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    monkeypatch.delenv("MUSERVE_VGPU_DIR", raising=False)
    plan = small_plan()
    (tmp_path / "plan.json").write_bytes(plan_bytes(plan))
    rigs: list[Rig] = []

    def start(*options: str, law: str = "miad") -> Rig:
        gpus = {n: g for n, g in open_gpus(plan, tmp_path).items() if isinstance(g, VirtualGpu)}
        triton = FakeTriton()
        listen = f"127.0.0.1:{free_port()}"
        command = [MUPOWER, "daemon", "--plan", str(tmp_path / "plan.json")]
        command += ["--metrics", triton.start(), "--law", law, "--listen", listen]
        command += ["--period", str(PERIOD_S), "--stale-after", str(STALE_AFTER_S), *options]
        log_file = tmp_path / f"daemon{len(rigs)}.log"
        with log_file.open("w") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log, text=True)
        rig = Rig(process=process, gpus=gpus, triton=triton, log_file=log_file, listen=listen)
        rigs.append(rig)
        return rig

    yield start
    for rig in rigs:
        if rig.process.poll() is None:
            rig.process.send_signal(signal.SIGCONT)
            rig.process.kill()
        rig.process.wait(10)
        rig.triton.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_unlocks_and_exits_cleanly(launch: Callable[..., Rig], number: int) -> None:
    rig = launch()
    rig.wait_until_locked()
    supervisor = rig.supervisor()
    rig.process.send_signal(number)
    took_s = rig.seconds_until_unlocked(2.0)
    assert rig.process.wait(5) == 0
    assert f"{signal.Signals(number).name}: unlocking every GPU" in rig.log()
    assert not supervisor.is_running()
    assert "supervisor" not in rig.log()  # it was told goodbye, and left the clocks alone
    logger.info("%s: unlocked after %.0f ms", signal.Signals(number).name, took_s * 1000)


def test_sigkill_is_answered_by_the_supervisor(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    supervisor = rig.supervisor()
    rig.process.kill()
    took_s = rig.seconds_until_unlocked(2.0)
    for gpu in rig.gpus.values():
        last = gpu.history()[-1]
        assert (last.action, last.clock_mhz, last.pid) == ("unlock", None, supervisor.pid)
    eventually(lambda: not _alive(supervisor), 2.0)
    assert "supervisor: the daemon is gone: unlocked node0/gpu0, node0/gpu1" in rig.log()
    logger.info("SIGKILL: unlocked after %.0f ms", took_s * 1000)


def test_stopping_signals_do_not_reach_the_supervisor(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    supervisor = rig.supervisor()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        supervisor.send_signal(number)
    rig.process.kill()
    rig.seconds_until_unlocked(2.0)
    eventually(lambda: not _alive(supervisor), 2.0)


def test_a_killed_supervisor_is_replaced(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    first = rig.supervisor()
    first.kill()
    eventually(lambda: rig.children() not in ([], [first.pid]), 10.0)
    assert "starting another one" in rig.log()
    rig.process.kill()  # perhaps while the new supervisor still starts: it must unlock all the same
    rig.seconds_until_unlocked(10.0)


def test_a_stopped_daemon_loses_its_lease_and_takes_the_clocks_up_again(
    launch: Callable[..., Rig],
) -> None:
    rig = launch()
    rig.wait_until_locked()
    rig.process.send_signal(signal.SIGSTOP)
    took_s = rig.seconds_until_unlocked(SUPERVISOR_LEASE_S + 2.0)
    logger.info("SIGSTOP: unlocked after %.1f s", took_s)
    rig.process.send_signal(signal.SIGCONT)
    rig.wait_until_locked()
    assert "locks may be gone" in rig.log()


def test_metrics_that_stop_unlock_when_stale(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    rig.triton.stop()
    took_s = rig.seconds_until_unlocked(STALE_AFTER_S + 2.0)
    assert took_s > STALE_AFTER_S - 2 * PERIOD_S
    assert rig.process.poll() is None
    eventually(lambda: "Connection refused" in rig.log(), 2.0)
    assert re.search(r"node0/gpu0: unlocked \(was at \d+ MHz\): no metrics for 1\.\d s", rig.log())
    logger.info("metrics gone, stale after %g s: unlocked after %.2f s", STALE_AFTER_S, took_s)


def test_metrics_that_hang_unlock_when_stale(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    rig.triton.hangs = threading.Event()
    rig.seconds_until_unlocked(STALE_AFTER_S + 2.0)
    rig.process.terminate()
    assert rig.process.wait(5) == 0
    rig.triton.hangs.set()


def test_corrupt_metrics_unlock_at_once_with_one_sentence(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    rig.triton.text = "nv_inference_request_success{model="
    took_s = rig.seconds_until_unlocked(STALE_AFTER_S)
    assert rig.process.poll() is None
    eventually(lambda: rig.log().count("not Prometheus text") == 2, 2.0)  # one per GPU
    assert "Traceback" not in rig.log()
    rig.triton.text = None
    rig.wait_until_locked()
    logger.info("corrupt metrics: unlocked after %.0f ms", took_s * 1000)


def test_a_missed_slo_means_the_top_clock(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    rig.triton.latency_ms = 500.0
    tops = [gpu.supported_clocks_mhz()[-1] for gpu in rig.gpus.values()]
    eventually(lambda: rig.locked() == tops, 3.0)
    assert "500 ms, 500% of its 100 ms SLO" in rig.log()


def test_without_metrics_it_keeps_running_unlocked(launch: Callable[..., Rig]) -> None:
    rig = launch("--metrics", f"http://127.0.0.1:{free_port()}/metrics")
    eventually(lambda: "kept unlocked: no metrics yet" in rig.log(), 10.0)
    assert rig.process.poll() is None
    assert rig.locked() == [None, None]


def test_a_start_unlocks_what_was_left_locked(launch: Callable[..., Rig]) -> None:
    first = launch()
    first.wait_until_locked()
    supervisor = first.supervisor()
    supervisor.kill()
    supervisor.wait(5)
    first.process.kill()
    first.process.wait(5)
    assert None not in first.locked()  # nobody was left to unlock
    launch(law="default")
    first.seconds_until_unlocked(10.0)


def test_a_dry_run_commands_nothing(launch: Callable[..., Rig]) -> None:
    rig = launch("--dry-run")
    eventually(lambda: "would be locked at" in rig.log(), 10.0)
    assert psutil.Process(rig.process.pid).children() == []
    rig.process.terminate()
    assert rig.process.wait(5) == 0
    assert all(gpu.history() == () for gpu in rig.gpus.values())


def test_the_exporter_and_status_show_what_is_locked(launch: Callable[..., Rig], tmp_path: Path) -> None:
    rig = launch(law="static")
    eventually(lambda: None not in rig.locked(), 20.0)
    held = rig.locked()[0]
    time.sleep(2 * PERIOD_S)
    with urllib.request.urlopen(f"http://{rig.listen}/metrics") as response:
        text = response.read().decode()
    assert f'mupower_clock_commanded_mhz{{gpu="node0/gpu0"}} {float(held or 0)}' in text
    assert f'mupower_clock_observed_mhz{{gpu="node0/gpu0"}} {float(held or 0)}' in text
    command = [MUPOWER, "status", "--json"]
    done = subprocess.run([*command, "--plan", str(tmp_path)], capture_output=True, text=True, check=True)
    assert [row["locked_mhz"] for row in json.loads(done.stdout)] == [held, held]


def _alive(process: psutil.Process) -> bool:
    """False for a zombie: after SIGKILL of its parent nobody may have reaped it yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
