"""``mupower daemon`` as a real process on the real NVML binding with a fake driver: every way out unlocks.

The driver's locks and limits live in a file, so that they outlive the daemon as in a real driver.
"""

from __future__ import annotations

import json
import os
import re
import resource
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

from fake_nvml import FakeDriver, build_fake_nvml
from muserve.plan import plan_bytes
from sample_plans import sample_gpu, sample_model, sample_partition, sample_plan

MUPOWER = str(Path(sys.executable).with_name("mupower"))
LEASE_S = 5.0  # what a dead or hung daemon may cost
PERIOD_S = 0.2
_CRASH = """
import sys, time, mupower.daemon
seen = 0
observe = mupower.daemon.observe_gpu
def crash(*arguments, **more):
    global seen
    seen += 1
    if seen > 16:
        print('crash at', time.monotonic(), file=sys.stderr, flush=True)
        raise {error}
    return observe(*arguments, **more)
mupower.daemon.observe_gpu = crash
"""


class Triton:
    """A metrics endpoint whose one model completes 25 fast requests per scrape."""

    def __init__(self) -> None:
        self.completed = 0
        triton = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                triton.completed += 25
                body = (
                    "# TYPE nv_inference_request_success counter\n"
                    f'nv_inference_request_success{{model="bert"}} {triton.completed}\n'
                    "# TYPE nv_inference_request_duration_us counter\n"
                    f'nv_inference_request_duration_us{{model="bert"}} {triton.completed * 10_000}\n'
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(BrokenPipeError):
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/metrics"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Rig:
    """A daemon process, its driver, its log."""

    process: subprocess.Popen[bytes]
    driver: FakeDriver
    log_file: Path
    listen: str
    show: Callable[[str], None]
    supervisors: list[psutil.Process] = field(default_factory=list)

    def log(self) -> str:
        return self.log_file.read_text()

    def held(self) -> list[int | None]:
        return [self.driver.locked_mhz(index) for index in (0, 1)]

    def wait_until_locked(self) -> None:
        """Both GPUs are held below the clocks that the start measures at."""
        eventually(lambda: all(clock is not None and clock < 1150 for clock in self.held()), 30.0, self.log)
        self.supervisors = psutil.Process(self.process.pid).children()

    def unlocked_after(self, event: str, at_most_s: float, since_s: float | None = None) -> None:
        """Everything is unlocked ``at_most_s`` after ``since_s`` (now); shows when the driver did it."""
        began_s = time.monotonic() if since_s is None else since_s
        eventually(lambda: self.held() == [None, None], at_most_s, self.log)
        took_s = max(self.driver.last_change_s(index) for index in (0, 1)) - began_s
        assert took_s <= at_most_s
        self.show(f"{event}: unlocked after {took_s * 1000:.1f} ms")


def eventually(condition: Callable[[], bool], within_s: float, log: Callable[[], str] = str) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s} s\n{log()}"
        time.sleep(0.005)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path) -> FakeDriver:
    return FakeDriver(library, tmp_path)


@pytest.fixture
def launch(
    driver: FakeDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Rig]]:
    gpus = [sample_gpu(index, virtual=False, uuid=None, initial_clock_mhz=1140) for index in (0, 1)]
    partition = sample_partition("bert", [gpu.name for gpu in gpus])
    plan = sample_plan(gpus, [sample_model("bert", partitions=(partition,))])
    (tmp_path / "plan.json").write_bytes(plan_bytes(plan))
    triton = Triton()
    rigs: list[Rig] = []

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n    {line}", end="", flush=True)  # noqa: T201

    def start(*options: str, crash: str = "", log: Path | None = None, **process: Any) -> Rig:
        listen = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-c", "from mupower.cli import main; main()"]
        if crash:
            command[2] = f"{_CRASH.format(error=crash)}\n{command[2]}"
        command += ["daemon", "--plan", str(tmp_path / "plan.json"), "--metrics", triton.url]
        command += ["--listen", listen, "--period", str(PERIOD_S), "--stale-after", "1", *options]
        environment = os.environ | driver.environment | {"MUPOWER_RUN_DIR": str(tmp_path / "run")}
        log_file = log or tmp_path / f"daemon{len(rigs)}.log"
        with log_file.open("wb") as out:
            process_ = subprocess.Popen(command, stdout=out, stderr=out, env=environment, **process)
        rigs.append(Rig(process=process_, driver=driver, log_file=log_file, listen=listen, show=show))
        return rigs[-1]

    yield start
    driver.tell()
    for rig in rigs:
        if rig.process.poll() is None:
            rig.process.send_signal(signal.SIGCONT)
            rig.process.kill()
        rig.process.wait(10)
        for supervisor in rig.supervisors:
            with suppress(psutil.NoSuchProcess):
                supervisor.wait(10)
    triton.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal(launch: Callable[..., Rig], number: signal.Signals) -> None:
    rig = launch()
    rig.wait_until_locked()
    began_s = time.monotonic()
    rig.process.send_signal(number)
    rig.unlocked_after(number.name, 2.0, began_s)
    assert rig.process.wait(5) == 0
    assert f"{number.name}: unlocking every GPU" in rig.log()


def test_sigkill(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    began_s = time.monotonic()
    rig.process.kill()
    rig.unlocked_after("SIGKILL", LEASE_S, began_s)


def test_a_stopped_daemon(launch: Callable[..., Rig]) -> None:
    rig = launch()
    rig.wait_until_locked()
    began_s = time.monotonic()
    rig.process.send_signal(signal.SIGSTOP)
    rig.unlocked_after("SIGSTOP (lease 4.5 s)", LEASE_S, began_s)
    rig.process.send_signal(signal.SIGCONT)
    rig.wait_until_locked()


@pytest.mark.parametrize("error", ["ZeroDivisionError('a bug')", "MemoryError()", "KeyboardInterrupt()"])
def test_an_exception(launch: Callable[..., Rig], error: str) -> None:
    rig = launch(crash=error)
    assert rig.process.wait(30) != 0
    crashed = re.search(r"crash at ([\d.]+)", rig.log())
    assert crashed is not None
    assert "locked at" in rig.log()
    rig.unlocked_after(error, 2.0, since_s=float(crashed[1]))


def test_a_permission_lost_underway(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    """Locking is refused from now on, unlocking is not: the GPU goes to full speed and the daemon stays."""
    rig = launch()
    rig.wait_until_locked()
    driver.tell("fail nvmlDeviceSetGpuLockedClocks 4")
    rig.unlocked_after("lost permission to lock", 5.0)
    assert rig.process.poll() is None
    assert "changing clocks or power limits needs root" in rig.log()
    driver.tell()
    rig.wait_until_locked()


def test_every_permission_lost_and_given_back_at_the_end(
    launch: Callable[..., Rig], driver: FakeDriver
) -> None:
    """Nobody can unlock without permission: it is said, and the supervisor goes on trying for a while."""
    rig = launch()
    rig.wait_until_locked()
    driver.tell("fail nvmlDeviceSetGpuLockedClocks 4", "fail nvmlDeviceResetGpuLockedClocks 10")
    eventually(lambda: "may still be held" in rig.log(), 10.0, rig.log)
    rig.process.terminate()
    threading.Timer(1.0, driver.tell).start()
    rig.unlocked_after("SIGTERM while the driver times out for 1 s", 8.0)
    assert rig.process.wait(10) == 1


def test_a_full_disk(launch: Callable[..., Rig]) -> None:
    """No byte can be written to any file: neither the log nor the lease's text."""

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    rig = launch(log=Path("/dev/full"), preexec_fn=fill)
    rig.log = str  # type: ignore[method-assign]  # there is none
    rig.wait_until_locked()
    began_s = time.monotonic()
    rig.process.terminate()
    rig.unlocked_after("SIGTERM on a full disk", 2.0, began_s)
    rig.process.wait(5)


def test_a_lost_gpu_leaves_the_other_steered(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    rig = launch()
    rig.wait_until_locked()
    driver.tell("lose 1")
    eventually(lambda: "fallen off the bus" in rig.log(), 5.0, rig.log)
    eventually(lambda: driver.locked_mhz(0) == 945, 20.0, rig.log)
    assert rig.process.poll() is None
    driver.tell()
    began_s = time.monotonic()
    rig.process.terminate()
    rig.unlocked_after("SIGTERM after a GPU was lost for a while", 2.0, began_s)


def test_a_hung_driver_call_does_not_hold_up_the_end(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    rig = launch()
    rig.wait_until_locked()
    driver.tell("hang nvmlDeviceGetClockInfo 1")
    eventually(lambda: "the driver did not answer (clock) within 2 s" in rig.log(), 8.0, rig.log)
    began_s = time.monotonic()
    rig.process.terminate()
    eventually(lambda: driver.locked_mhz(0) is None, 2.0, rig.log)
    assert rig.process.wait(10) == 1, "one GPU could not be unlocked by the daemon itself"
    rig.show(
        f"SIGTERM with a hung call: the process ended after {(time.monotonic() - began_s) * 1000:.0f} ms"
    )
    rig.unlocked_after("SIGTERM with a hung call", LEASE_S, began_s)


def test_an_unlock_that_hangs_is_tried_again_by_the_supervisor(
    launch: Callable[..., Rig], driver: FakeDriver
) -> None:
    rig = launch()
    rig.wait_until_locked()
    driver.tell("hang nvmlDeviceResetGpuLockedClocks 0")
    began_s = time.monotonic()
    rig.process.terminate()
    threading.Timer(3.0, driver.tell).start()
    eventually(lambda: driver.locked_mhz(1) is None, 3.0, rig.log)
    assert rig.process.wait(10) == 1
    rig.unlocked_after("SIGTERM, unlock call that hangs for 3 s", 3.0 + LEASE_S, began_s)


def test_a_gpu_lost_at_the_start_is_left_alone(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    driver.tell("lose 0")
    rig = launch()
    eventually(lambda: (driver.locked_mhz(1) or 9999) < 1150, 30.0, rig.log)
    assert "node0/gpu0: left alone until the next start or reload: " in rig.log()
    began_s = time.monotonic()
    rig.process.terminate()
    rig.unlocked_after("SIGTERM with one GPU lost from the start", 2.0, began_s)
    assert rig.process.wait(5) == 0


def test_a_second_daemon_names_the_first(launch: Callable[..., Rig]) -> None:
    first = launch()
    first.wait_until_locked()
    second = launch()
    assert second.process.wait(20) == 1
    said = second.log()
    assert f"Error: node0/gpu0 is already steered by process {first.process.pid} (" in said
    assert re.search(r"daemon --plan .+\) since \d{4}-\d\d-\d\dT[\d:]{8}.+: stop that one first", said)
    assert None not in first.held()


def test_where_clocks_may_not_be_locked_power_is_limited(
    launch: Callable[..., Rig], driver: FakeDriver, tmp_path: Path
) -> None:
    driver.tell("fail nvmlDeviceSetGpuLockedClocks 3", "draw 0 170000", "draw 1 60000")
    rig = launch()
    eventually(lambda: all(0 < (driver.limit_mw(i) or 0) < 160_000 for i in (0, 1)), 30.0, rig.log)
    assert "by power limit: node0/gpu0, node0/gpu1" in rig.log()
    eventually(lambda: "node0/gpu1: its power limit of" in rig.log(), 10.0, rig.log)
    assert re.search(r"node0/gpu1: its power limit of \d+ W is inert: it draws less by itself", rig.log())
    rig.supervisors = psutil.Process(rig.process.pid).children()
    began_s = time.monotonic()
    rig.process.kill()
    eventually(lambda: [driver.limit_mw(i) for i in (0, 1)] == [250_000, 250_000], LEASE_S, rig.log)
    took_s = max(driver.last_change_s(index) for index in (0, 1)) - began_s
    rig.show(f"SIGKILL, power limit: back after {took_s * 1000:.1f} ms")
    eventually(lambda: not list((tmp_path / "run").glob("*.limit")), 2.0)


def test_health_and_measured_switch_time(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    driver.tell("call_ms 5", "settle_ms 20")
    rig = launch("--law", "static")
    rig.wait_until_locked()
    found = re.search(
        r"node0/gpu0: a clock switch takes ([\d.]+) ms to call and ([\d.]+) ms to settle", rig.log()
    )
    assert found is not None
    assert 5 <= float(found[1]) < 40
    assert 19 <= float(found[2]) < 80
    assert "before it is lowered again" in rig.log()
    with urllib.request.urlopen(f"http://{rig.listen}/healthz") as response:
        assert response.read() == b"ok\n"
    with urllib.request.urlopen(f"http://{rig.listen}/metrics") as response:
        text = response.read().decode()
    assert 'mupower_clock_switch_seconds{gpu="node0/gpu0",phase="call"} 0.0' in text
    rig.process.send_signal(signal.SIGSTOP)
    rig.process.send_signal(signal.SIGCONT)


def test_every_cycle_may_lower_when_the_dwell_is_one_period(launch: Callable[..., Rig]) -> None:
    """From the plan's clock to the knee in steps of 30 MHz: 1110, 1080, ..., 960, 945."""
    rig = launch("--period", "0.5")
    eventually(lambda: rig.held() == [945, 945], 40.0, rig.log)
    assert "a clock is kept for 0.5 s before it is lowered again" in rig.log()
    lowered = re.findall(r"^([\d-]+ [\d:,]+) .*node0/gpu0: locked at (\d+) MHz", rig.log(), re.MULTILINE)
    assert [int(clock) for _, clock in lowered] == [1110, 1080, 1050, 1020, 990, 960, 945]


def test_a_slow_driver_slows_the_rhythm(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    driver.tell("call_ms 20", "settle_ms 80")
    rig = launch("--law", "static", "--stale-after", "5")
    eventually(lambda: "period raised from 0.2 to" in rig.log(), 20.0, rig.log)
    raised = re.search(r"period raised from 0\.2 to ([\d.]+) s", rig.log())
    assert raised is not None
    assert 0.5 <= float(raised[1]) < 0.9


def test_a_throttled_gpu_is_said_with_its_reason(launch: Callable[..., Rig], driver: FakeDriver) -> None:
    rig = launch("--law", "static")
    rig.wait_until_locked()
    driver.tell("observe 1 600", "reasons 1 0x40")
    said = "node0/gpu1: its clock is not the commanded 1140 MHz: HwThermalSlowdown (now 600 MHz"
    eventually(lambda: said in rig.log(), 5.0, rig.log)
    commands = driver.clock_commands(1)
    time.sleep(3 * PERIOD_S)
    assert driver.clock_commands(1) == commands


def test_sighup_reloads_and_a_bad_file_changes_nothing(
    launch: Callable[..., Rig], driver: FakeDriver, tmp_path: Path
) -> None:
    config = tmp_path / "mupower.yaml"
    config.write_text("law: static\n")
    rig = launch("--config", str(config))
    rig.wait_until_locked()
    config.write_text("laws: default\n")
    rig.process.send_signal(signal.SIGHUP)
    said = f"reload: {config}: laws: unknown key, did you mean law?: the old settings stay"
    eventually(lambda: said in rig.log(), 5.0, rig.log)
    assert rig.held() == [1140, 1140]
    config.write_text("law: default\n")
    rig.process.send_signal(signal.SIGHUP)
    eventually(lambda: "law default every" in rig.log(), 10.0, rig.log)
    assert rig.held() == [None, None]
    config.write_text("law: static\n")
    rig.process.send_signal(signal.SIGHUP)
    rig.wait_until_locked()
    began_s = time.monotonic()
    rig.process.terminate()
    rig.unlocked_after("SIGTERM after two reloads", 2.0, began_s)
    assert rig.process.wait(5) == 0


def test_systemd_hears_and_logs_are_json(
    launch: Callable[..., Rig], driver: FakeDriver, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        os.environ["NOTIFY_SOCKET"], os.environ["MUPOWER_LOG_FORMAT"] = str(tmp_path / "notify"), "json"
        try:
            rig = launch()
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["MUPOWER_LOG_FORMAT"]
        heard = [manager.recv(4096).decode() for _ in range(3)]
        rig.wait_until_locked()
        rig.process.terminate()
        while heard[-1] != "STOPPING=1":
            heard.append(manager.recv(4096).decode())
    ready = [message for message in heard if message.startswith("READY=1\nSTATUS=law miad")]
    assert len(ready) == 1
    assert heard.count("WATCHDOG=1") > 3
    assert rig.process.wait(5) == 0
    records = [json.loads(line) for line in rig.log().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(records[0])
    assert any("locked at" in record["message"] for record in records)
