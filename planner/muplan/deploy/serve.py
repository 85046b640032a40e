"""``muplan serve``: a generated repository on a real Triton, from the first check to a clean stop."""

from __future__ import annotations

import json
import logging
import math
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from muplan.deploy.ports import Ports, reachable
from muplan.deploy.running import CPU_CONFIG, RunningTriton, running_triton
from muplan.deploy.server import LogSink
from muserve.errors import InputError, ServingError
from muserve.plan import ModelKind, Plan, read_plan

REPOSITORY = "model_repository"
_POLL_S = 0.2
_MOST_EXAMPLE_VALUES = 64
_EXAMPLE_TOKENS = 8
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What a user may choose.

    ``node``: None when the plan has one only; ``ports``: None for free ones; ``drain_s``: how long
    requests in flight may take to finish at the end.
    """

    node: str | None = None
    tritonserver: Path | None = None
    ports: Ports | None = None
    address: str = "127.0.0.1"
    drain_s: int = 10


def serve(plan_dir: Path, options: ServeOptions, *, out: Callable[[str], None], log: LogSink) -> None:
    """Serve one node of the plan in ``plan_dir`` until SIGINT, SIGTERM or SIGHUP.

    ``out`` gets the endpoints once every model is ready, ``log`` each line of Triton's log. A second
    signal ends Triton at once. Raises InputError, TritonNotFoundError and ServingError as
    ``running_triton`` does, and ServingError when Triton ends by itself. Main thread only.
    """
    with _stop_signals() as stop:
        try:
            with (
                serving(plan_dir, options, log=log, stop=stop) as triton,
                _openai(plan_dir, options, triton) as openai_url,
            ):
                out(endpoints_text(read_plan(plan_dir), triton, openai_url))
                while not stop.wait(_POLL_S):
                    if triton.server.exit_code() is not None:
                        raise ServingError(triton.server.ending())
                logger.info("stopping Triton; requests in flight may finish, a second signal ends it at once")
        except ServingError:
            if not stop.is_set():
                raise
    logger.info("stopped")


@contextmanager
def serving(
    plan_dir: Path,
    options: ServeOptions,
    *,
    log: Path | LogSink | None = None,
    stop: threading.Event | None = None,
) -> Iterator[RunningTriton]:
    """One node of the plan in ``plan_dir`` on a real Triton, with its virtual GPUs made first.

    Raises what ``running_triton`` raises, and InputError when the plan, its node or its repository is
    missing.
    """
    plan = read_plan(plan_dir)
    node = _node(plan, options.node)
    repository = plan_dir / node / REPOSITORY
    if not repository.is_dir():
        raise InputError(f"{plan_dir}: expected {repository}, which `muplan generate` writes")
    virtual = create_virtual_gpus(plan, plan_dir, node)
    with running_triton(
        repository,
        ports=options.ports,
        address=options.address,
        tritonserver=options.tritonserver,
        plan_dir=plan_dir,
        config_name=CPU_CONFIG if virtual else None,
        log=log,
        stop=stop,
        drain_s=options.drain_s,
    ) as triton:
        yield triton


@contextmanager
def _openai(plan_dir: Path, options: ServeOptions, triton: RunningTriton) -> Iterator[str | None]:
    """The OpenAI interface's URL; None when no port was given for it."""
    port = options.ports.openai if options.ports else None
    if port is None:
        yield None
        return
    from muplan.openai.served import served_models
    from muplan.openai.server import openai_endpoint

    plan = read_plan(plan_dir)
    node_dir = plan_dir / _node(plan, options.node)
    loaded = {state.name for state in triton.server.control.index() if state.ready}
    models = served_models(plan, node_dir, loaded)
    host = reachable(options.address)
    host = f"[{host}]" if ":" in host else host
    with openai_endpoint(models, triton.grpc_url, options.address, port):
        yield f"http://{host}:{port}/v1"


def create_virtual_gpus(plan: Plan, plan_dir: Path, node: str) -> int:
    """Make the state files of the node's virtual GPUs, keeping those that exist; returns how many."""
    from muserve.gpu.opening import open_gpu

    virtual = [gpu for gpu in plan.gpus if gpu.node == node and gpu.virtual]
    for gpu in virtual:
        open_gpu(gpu, plan_dir)
    return len(virtual)


def _node(plan: Plan, wanted: str | None) -> str:
    nodes = sorted({gpu.node for gpu in plan.gpus})
    if wanted is None and len(nodes) == 1:
        return nodes[0]
    if wanted not in nodes:
        raise InputError(f"--node: expected one of {', '.join(nodes)}, got {wanted or 'none'}")
    return wanted


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the stop signals set; the second signal raises KeyboardInterrupt instead."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in _STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def endpoints_text(plan: Plan, triton: RunningTriton, openai_url: str | None = None) -> str:
    """Where the server listens, and for each model a request to copy."""
    lines = [
        f"HTTP     {triton.http_url}",
        f"gRPC     {triton.grpc_url}",
        f"metrics  {triton.metrics_url}",
    ]
    if openai_url is not None:
        lines.append(f"OpenAI   {openai_url}")
    served = {state.name for state in triton.server.control.index()}
    for model in plan.models:
        if model.name not in served:
            continue
        url = f"{triton.http_url}/v2/models/{model.name}"
        if model.kind is ModelKind.GENERATIVE:
            request = _curl(f"{url}/generate", {"text_input": "Why is the sky blue?", "stream": False})
        else:
            request = _single_pass_example(url, triton.server.control.inputs(model.name))
        lines += ["", model.name, f"  {request}"]
    return "\n".join(lines)


def _single_pass_example(url: str, inputs: tuple[Mapping[str, Any], ...]) -> str:
    """An infer request of ones; for an input too large to type, the call that describes the inputs."""
    tensors = []
    for tensor in inputs:
        shape = [
            1 if axis == 0 else _EXAMPLE_TOKENS if n < 0 else n for axis, n in enumerate(tensor["shape"])
        ]
        count = math.prod(shape)
        if count > _MOST_EXAMPLE_VALUES:
            return f"curl -s {url}"
        value = "text" if tensor["datatype"] == "BYTES" else 1
        tensors.append({**tensor, "shape": shape, "data": [value] * count})
    return _curl(f"{url}/infer", {"inputs": tensors})


def _curl(url: str, body: Mapping[str, Any]) -> str:
    return f"curl -s -d {shlex.quote(json.dumps(body))} {url}"
