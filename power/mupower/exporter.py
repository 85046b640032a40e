"""What the daemon did, as Prometheus metrics on an endpoint of its own."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from mupower.control.law import ClockDecision
from mupower.reading import GpuReading
from muserve import __version__
from muserve.errors import InputError
from muserve.gpu.protocol import Gpu

logger = logging.getLogger(__name__)


class Telemetry:
    """The daemon's metrics in a registry of their own (``registry``)."""

    def __init__(self, law: str, dry_run: bool, gpus: Mapping[str, Gpu]) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        info = self._gauge("info", "Constant 1: who is deciding.", "law", "dry_run", "version")
        info.labels(law, str(dry_run).lower(), __version__).set(1)
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

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"mupower_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mupower_{name}", text, labels, registry=self.registry)


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` (``[HOST]:PORT`` for IPv6); InputError when it is neither."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--listen: expected HOST:PORT like 127.0.0.1:9105, got {listen!r}")
    return host, int(port)


@contextmanager
def serving(telemetry: Telemetry, listen: str) -> Iterator[None]:
    """Serve the metrics on ``listen`` while entered; InputError when that address cannot be used."""
    host, port = parse_listen(listen)
    try:
        server, thread = start_http_server(port, host, telemetry.registry)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "the port is taken" if taken else error.strerror or str(error)
        raise InputError(f"--listen {listen}: {why}: choose another address or pass --no-exporter") from error
    logger.info("own metrics at http://%s/metrics", listen)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
