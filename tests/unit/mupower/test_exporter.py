"""The daemon's own metrics, scraped over HTTP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from mupower.control.law import Cause, ClockDecision
from mupower.exporter import Pulse, Telemetry, parse_listen, serving
from mupower.metrics import parse_metrics
from mupower.reading import read_gpu
from muserve.errors import InputError


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_what_is_exported(make_gpu: Callable[..., Any]) -> None:
    gpu = make_gpu()
    telemetry = Telemetry("miad", False, {"n/gpu0": gpu})
    telemetry.read("n/gpu0", read_gpu(gpu))
    gpu.lock_clock(1200)
    telemetry.read("n/gpu0", read_gpu(gpu))
    decision = ClockDecision(gpu="n/gpu0", clock_mhz=1200, cause=Cause.SLACK, reason="r")
    telemetry.decided(decision, 1200)
    telemetry.scrape_failed("http://t/metrics")
    telemetry.cycle_begun()
    listen = f"127.0.0.1:{free_port()}"
    with (
        serving(telemetry, listen, Pulse(5.0)),
        urllib.request.urlopen(f"http://{listen}/metrics") as response,
    ):
        snapshot = parse_metrics(response.read().decode(), 0.0, "")
    gauges = {
        name: snapshot.gauge_values(f"mupower_{name}", gpu="n/gpu0")
        for name in ("clock_commanded_mhz", "clock_observed_mhz", "power_watts", "utilisation_ratio")
    }
    assert gauges == {
        "clock_commanded_mhz": (1200.0,),
        "clock_observed_mhz": (1200.0,),
        "power_watts": (50.0,),
        "utilisation_ratio": (0.5,),
    }
    assert snapshot.gauge_values("mupower_info", law="miad", dry_run="false") == (1.0,)
    assert snapshot.gauge_values("mupower_gpu_info", uuid="TEST-0", virtual="true") == (1.0,)
    assert list(snapshot.counters["mupower_energy_joules"].values()) == [1.0]
    assert snapshot.has_series("mupower_decisions", gpu="n/gpu0", cause="slack")
    assert snapshot.has_series("mupower_scrape_failures")
    assert snapshot.has_series("mupower_cycles")


def test_a_taken_port_is_one_sentence(make_gpu: Callable[..., Any]) -> None:
    telemetry = Telemetry("miad", False, {})
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=f"--listen {listen}: the port is taken: choose another"),
            serving(telemetry, listen, Pulse(5.0)),
        ):
            pass


def test_health_follows_the_control_cycles() -> None:
    now_s = 100.0
    pulse = Pulse(5.0, lambda: now_s)
    host, port = "127.0.0.1", free_port()
    with serving(Telemetry("miad", False, {}), f"{host}:{port}", pulse):
        url = f"http://{host}:{port}/healthz"
        with urllib.request.urlopen(url) as response:
            assert (response.status, response.read()) == (200, b"ok\n")
        now_s = 105.5
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url)
        assert (caught.value.code, caught.value.read()) == (503, b"no control cycle for 5.5 s\n")
        caught.value.close()
        pulse.beat()
        with urllib.request.urlopen(url) as response:
            assert response.status == 200


def test_ipv6_is_served_where_there_is_any() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            port = server.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(Telemetry("miad", False, {}), f"[::1]:{port}", Pulse(5.0)):
        assert urllib.request.urlopen(f"http://[::1]:{port}/metrics").read()


@pytest.mark.parametrize("listen", ["", "9105", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "h:0", "h:70000"])
def test_bad_addresses_are_refused(listen: str) -> None:
    with pytest.raises(InputError, match="--listen: expected HOST:PORT"):
        parse_listen(listen)


def test_addresses() -> None:
    assert parse_listen("127.0.0.1:9105") == ("127.0.0.1", 9105)
    assert parse_listen("[::1]:9105") == ("::1", 9105)
