"""The three ports of a Triton server: free ones, and who holds one that is not."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import psutil

from muserve.errors import InputError

_OUTSIDE_EPHEMERAL = range(20_000, 32_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """TCP ports of the HTTP, gRPC and metrics endpoints, and of the OpenAI interface where there is one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    openai: int | None = None


def free_ports(address: str = "127.0.0.1") -> Ports:
    """Three ports nobody listens on. Another process may still take one before the server does.

    They are below those that systems hand out by themselves (Linux: from 32768), of which one may be taken
    by a model that opens connections while it loads, before Triton listens.
    """
    free: list[int] = []
    with ExitStack() as held:
        for port in random.sample(_OUTSIDE_EPHEMERAL, len(_OUTSIDE_EPHEMERAL)):
            probe = held.enter_context(_probe(address))
            with suppress(OSError):
                probe.bind((address, port))
                free.append(port)
            if len(free) == 3:
                http, grpc, metrics = free
                return Ports(http=http, grpc=grpc, metrics=metrics)
    raise InputError(f"{address}: expected an address of this machine with three free ports")


def require_free(ports: Ports, address: str) -> None:
    """InputError naming the first port that is taken, and by which process if that may be known."""
    chosen = {"--http-port": ports.http, "--grpc-port": ports.grpc, "--metrics-port": ports.metrics}
    if ports.openai is not None:
        chosen["--openai-port"] = ports.openai
    if len(set(chosen.values())) < len(chosen):
        raise InputError(
            f"{', '.join(chosen)}: expected different ports, got "
            + ", ".join(str(port) for port in chosen.values())
        )
    for option, port in chosen.items():
        with _probe(address) as probe:
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise InputError(
                        f"{option}: cannot listen on {address}:{port}: {error.strerror}"
                    ) from error
                raise InputError(
                    f"{option}: port {port} is taken by {port_owner(port)}; stop it or choose another port"
                ) from error


def reachable(address: str) -> str:
    """An address to call a server at that listens on ``address``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def port_owner(port: int) -> str:
    """Name and pid of the process that listens on ``port``, as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another process"
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return "a process of another user"
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                break
    return "another process"


def _probe(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe
