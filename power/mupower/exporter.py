"""What the daemon did, as Prometheus metrics on an endpoint of its own, and whether it is alive.

``/metrics`` is for Prometheus. ``/healthz`` answers 200 while control cycles go on, else 503 with the reason.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from mupower.control.law import ClockDecision
from mupower.reading import GpuReading
from mupower.switching import SwitchLatency
from muserve import __version__
from muserve.errors import InputError
from muserve.gpu.protocol import Gpu

logger = logging.getLogger(__name__)


class Telemetry:
    """The daemon's metrics in a registry of their own (``registry``)."""

    def __init__(self, law: str, dry_run: bool, gpus: Mapping[str, Gpu], absent: int = 0) -> None:
        """``absent`` is how many GPUs of the plan are left alone, lost or silent."""
        self.registry = CollectorRegistry(auto_describe=True)
        info = self._gauge("info", "Constant 1: who is deciding.", "law", "dry_run", "version")
        info.labels(law, str(dry_run).lower(), __version__).set(1)
        self._gauge("gpus_absent", "GPUs of the plan that are lost or silent.").set(absent)
        devices = self._gauge("gpu_info", "Constant 1: the device.", "gpu", "uuid", "name", "virtual")
        for name, gpu in gpus.items():
            who = gpu.identity
            devices.labels(name, who.uuid, who.name, str(who.virtual).lower()).set(1)
        self._commanded = self._gauge(
            "clock_commanded_mhz", "SM clock this daemon locked; 0 when it holds no lock.", "gpu"
        )
        self._observed = self._gauge("clock_observed_mhz", "SM clock in force.", "gpu")
        self._power = self._gauge("power_watts", "Board power.", "gpu")
        self._utilisation = self._gauge("utilisation_ratio", "Share of time with work.", "gpu")
        self._energy = self._counter("energy_joules", "Energy since the daemon started.", "gpu")
        self._decisions = self._counter("decisions", "Decisions by cause.", "gpu", "cause")
        self._failures = self._counter("scrape_failures", "Scrapes without usable text.", "endpoint")
        self._cycles = self._counter("cycles", "Control cycles begun.")
        self._energy_j: dict[str, float] = {}
        self._mismatches = self._counter(
            "clock_mismatches", "Cycles in which the clock was not the commanded one.", "gpu", "reason"
        )
        self._cap = self._gauge("power_cap_watts", "Power limit this daemon set; 0 when none.", "gpu")
        self._inert = self._gauge("power_cap_inert", "1 while that limit is above the natural draw.", "gpu")
        self._switch = self._gauge(
            "clock_switch_seconds", "Clock switch measured at start, by phase.", "gpu", "phase"
        )

    def cycle_begun(self) -> None:
        """Count a control cycle."""
        self._cycles.inc()

    def scrape_failed(self, endpoint: str) -> None:
        """Count a scrape of ``endpoint`` that gave nothing usable."""
        self._failures.labels(endpoint).inc()

    def read(self, gpu: str, reading: GpuReading) -> None:
        """Show what a GPU reported."""
        self._observed.labels(gpu).set(reading.clock_mhz)
        self._power.labels(gpu).set(reading.power_w)
        self._utilisation.labels(gpu).set(reading.utilisation)
        spent_j = reading.energy_j - self._energy_j.setdefault(gpu, reading.energy_j)
        self._energy.labels(gpu).inc(max(0.0, spent_j))
        self._energy_j[gpu] = reading.energy_j

    def decided(self, decision: ClockDecision, commanded_mhz: int | None) -> None:
        """Count a decision and show the clock held after it."""
        self._decisions.labels(decision.gpu, decision.cause.value).inc()
        self._commanded.labels(decision.gpu).set(commanded_mhz or 0)

    def mismatched(self, gpu: str, reason: str) -> None:
        """Count a cycle in which ``gpu`` did not run at the commanded clock."""
        self._mismatches.labels(gpu, reason).inc()

    def capped(self, gpu: str, cap_w: float | None, inert: bool) -> None:
        """Show the power limit that holds a GPU (None: none) and whether it changes anything."""
        self._cap.labels(gpu).set(cap_w or 0)
        self._inert.labels(gpu).set(inert)

    def switch_measured(self, gpu: str, latency: SwitchLatency) -> None:
        """Show what a clock switch takes."""
        self._switch.labels(gpu, "call").set(latency.call_ms / 1000)
        self._switch.labels(gpu, "settle").set(latency.settle_ms / 1000)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"mupower_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mupower_{name}", text, labels, registry=self.registry)


class Pulse:
    """Whether control cycles go on: ``beat`` at each of them, ``problem`` tells when one is overdue."""

    def __init__(self, overdue_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._overdue_after_s = overdue_after_s
        self._clock = clock
        self._last_s = clock()

    def beat(self) -> None:
        """A cycle begins."""
        self._last_s = self._clock()

    def problem(self) -> str:
        """Why the daemon is not well; empty when it is."""
        silent_s = self._clock() - self._last_s
        return f"no control cycle for {silent_s:.1f} s" if silent_s > self._overdue_after_s else ""


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` (``[HOST]:PORT`` for IPv6); InputError when it is neither."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--listen: expected HOST:PORT like 127.0.0.1:9105, got {listen!r}")
    return host, int(port)


@contextmanager
def serving(telemetry: Telemetry, listen: str, pulse: Pulse) -> Iterator[None]:
    """Serve metrics and health on ``listen`` while entered; InputError when that cannot be used."""
    host, port = parse_listen(listen)
    family = _IPv6Server if ":" in host else _Server
    try:
        server = make_server(host, port, _application(telemetry, pulse), family, _QuietHandler)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "the port is taken" if taken else error.strerror or str(error)
        raise InputError(f"--listen {listen}: {why}: choose another address or pass --no-exporter") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    logger.info("own metrics at http://%s/metrics", listen)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # a client that never finishes its request costs a thread this long

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is not news."""


def _application(telemetry: Telemetry, pulse: Pulse) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    metrics = make_wsgi_app(telemetry.registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/healthz":
            body: Iterable[bytes] = metrics(environ, start_response)
            return body
        problem = pulse.problem()
        status = "503 Service Unavailable" if problem else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{problem or 'ok'}\n".encode()]

    return answer
