"""A whole server as a context manager: found, started, ready, watched, and gone at the end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from muplan.deploy.environment import (
    link_backends,
    link_library,
    python_stub,
    running_interpreter,
    server_environment,
)
from muplan.deploy.find import find_triton
from muplan.deploy.ports import Ports, free_ports, reachable, require_free
from muplan.deploy.runtime import runtime_directory, shared_memory_option
from muplan.deploy.server import LogSink, ServerCommand, TritonServer
from muplan.deploy.watch import StubWatch
from muserve.errors import ServingError
from muserve.plan import vgpu_dir

CPU_CONFIG = "cpu"
READY_TIMEOUT_S = 600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTriton:
    """A server that answers: ``http_url`` and ``metrics_url`` are URLs, ``grpc_url`` is host:port."""

    http_url: str
    grpc_url: str
    metrics_url: str
    pid: int
    server: TritonServer


@contextmanager
def running_triton(
    repository: Path,
    *,
    ports: Ports | None = None,
    address: str = "127.0.0.1",
    tritonserver: Path | None = None,
    plan_dir: Path | None = None,
    config_name: str | None = CPU_CONFIG,
    log: Path | LogSink | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
    drain_s: int = 10,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[RunningTriton]:
    """Serve ``repository`` with a real Triton for as long as the context lasts.

    ``ports``: three free ones when None. ``plan_dir``: what ``muplan generate`` wrote, so that the models
    find its virtual GPUs, which must exist already (``muplan.deploy.serve.serving`` makes them too).
    ``config_name``: which ``configs/<name>.pbtxt`` to prefer; None for real GPUs. ``log``: a file for
    Triton's log, or a function that gets each line. ``drain_s``: how long requests in flight may take to
    finish at the end; Triton waits that long for idle HTTP keep-alive connections too, so close them.
    Models whose Python process dies are loaded again. KeyboardInterrupt ends the server at once.

    Enter it in the thread that owns the server: Triton is told to stop when that thread ends.
    Raises InputError when a port is taken, TritonNotFoundError when there is no Triton, and
    ServingError with Triton's own reason when it cannot serve every model of the repository.
    """
    triton = find_triton(tritonserver)
    logger.info("Triton from %s: %s", triton.origin, triton.executable)
    if not repository.is_dir():
        raise ServingError(f"{repository}: expected a Triton model repository")
    with ExitStack() as stack:
        directory = stack.enter_context(runtime_directory())
        ports = ports or free_ports(address)
        require_free(ports, address)
        sink = stack.enter_context(_log_sink(log))
        interpreter = running_interpreter()
        vgpus = vgpu_dir(plan_dir) if plan_dir else None
        command = ServerCommand(
            executable=triton.executable,
            repository=repository,
            backends=link_backends(triton, python_stub(triton, interpreter), directory),
            ports=ports,
            address=address,
            shared_memory_option=shared_memory_option(directory),
            config_name=config_name,
            drain_s=drain_s,
            limits_rates=_names_resources(repository),
        )
        libraries = link_library(interpreter, directory)
        host = reachable(address)
        host = f"[{host}]" if ":" in host else host
        grpc_url = f"{host}:{ports.grpc}"
        environment = server_environment(interpreter, libraries, vgpus, os.environ, grpc_url)
        server = stack.enter_context(_ending(TritonServer(command, environment, sink)))
        stop = stop or threading.Event()
        if not server.wait_until_ready(ready_timeout_s, on_progress or _log_progress, stop):
            raise ServingError("stopped before Triton was ready")
        stack.enter_context(StubWatch(server, repository))
        yield RunningTriton(
            http_url=f"http://{host}:{ports.http}",
            grpc_url=grpc_url,
            metrics_url=f"http://{host}:{ports.metrics}/metrics",
            pid=server.pid,
            server=server,
        )


@contextmanager
def _ending(server: TritonServer) -> Iterator[TritonServer]:
    """The server, stopped at the end; whoever interrupts does not wait for requests in flight."""
    try:
        yield server
    except KeyboardInterrupt:
        server.kill()
        raise
    finally:
        server.stop()


def _names_resources(repository: Path) -> bool:
    """Whether a model of the repository holds a resource while it runs; Triton ignores them by default."""
    return any(b"rate_limiter" in config.read_bytes() for config in repository.glob("*/config.pbtxt"))


def _log_progress(loaded: int, total: int) -> None:
    logger.info("%d of %d models loaded", loaded, total)


@contextmanager
def _log_sink(log: Path | LogSink | None) -> Iterator[LogSink]:
    if log is None:
        yield lambda line: logger.debug("triton | %s", line)
    elif isinstance(log, Path):
        with log.open("a", encoding="utf-8", buffering=1) as file:
            yield lambda line: print(line, file=file)
    else:
        yield log
