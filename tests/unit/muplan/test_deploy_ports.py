from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from muplan.deploy.ports import Ports, free_ports, port_owner, reachable, require_free
from muserve.errors import InputError

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def test_free_ports_are_three_and_free() -> None:
    ports = free_ports(HOST)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    require_free(ports, HOST)


@pytest.mark.parametrize("option", ["http", "grpc", "metrics"])
def test_a_taken_port_names_option_port_and_process(taken: int, option: str) -> None:
    free = free_ports(HOST)
    chosen = {"http": free.http, "grpc": free.grpc, "metrics": free.metrics, option: taken}
    with pytest.raises(InputError) as caught:
        require_free(Ports(**chosen), HOST)
    assert str(caught.value).startswith(f"--{option}-port: port {taken} is taken by ")
    assert f"(pid {os.getpid()})" in str(caught.value)


def test_ports_must_differ() -> None:
    with pytest.raises(InputError, match="different ports, got 8000, 8000, 8002"):
        require_free(Ports(http=8000, grpc=8000, metrics=8002), HOST)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match=r"--http-port: cannot listen on 192\.0\.2\.1"):
        require_free(free_ports(HOST), "192.0.2.1")


def test_nobody_owns_a_free_port() -> None:
    assert port_owner(free_ports(HOST).http) == "another process"


def test_a_server_on_every_address_is_called_on_the_loopback() -> None:
    assert [reachable(address) for address in ("0.0.0.0", "::", "10.0.0.7")] == [
        "127.0.0.1",
        "::1",
        "10.0.0.7",
    ]
