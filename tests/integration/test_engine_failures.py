"""A generative endpoint on a real Triton while its processes die or are replaced."""

from __future__ import annotations

import asyncio
import queue
import signal
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton_grpc

from muplan.deploy.running import RunningTriton
from muplan.deploy.stubs import living_stubs
from small_llm import ONE_TOKEN, exactly, generate, inputs, is_final, metric, occupy, queued, stream, until

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]


def engine_stub(server: RunningTriton, model: str) -> psutil.Process:
    (pid,) = [pid for pid, stub in living_stubs(server.pid).items() if stub.model == model]
    return psutil.Process(pid)


def answers_again(server: RunningTriton, model: str) -> bool:
    status, body = generate(server, model, {"text_input": "x", "max_tokens": 1})
    assert status == 200 or "is not healthy" in body["error"] or "not ready" in body["error"], body
    return status == 200


@pytest.mark.parametrize("model", ["shortest_engine", "shortest_length_predictor"])
def test_a_killed_process_fails_requests_until_it_is_back(llm_server: RunningTriton, model: str) -> None:
    engine_stub(llm_server, model).send_signal(signal.SIGKILL)
    asyncio.run(until(lambda: answers_again(llm_server, "shortest"), timeout_s=60.0))


def test_a_stream_whose_engine_is_killed_ends_by_the_clients_deadline_and_only_once(
    llm_server: RunningTriton,
) -> None:
    """Triton 2.51 never tells a decoupled request that its process died, so clients need a deadline."""
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(llm_server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=8.0)
        tensors = inputs({"text_input": "x", "stream": True, "sampling_parameters": exactly(1000)})
        client.async_stream_infer("shortest_engine", tensors, request_id="cut")
        for _ in range(3):
            assert answers.get(timeout=5.0)[1] is None
        engine_stub(llm_server, "shortest_engine").send_signal(signal.SIGKILL)
        asyncio.run(until(lambda: answers_again(llm_server, "shortest_engine"), timeout_s=60.0))
        tokens = 3
        while True:
            result, error = answers.get(timeout=20.0)
            if error is not None:
                break
            assert not is_final(result)
            tokens += 1
        assert tokens < 1000
        assert "Deadline Exceeded" in str(error)


def test_without_a_predictor_the_engine_serves_first_come_first_served(llm_server: RunningTriton) -> None:
    before = metric(llm_server, "mu_fallback_total", "shortest")

    async def run() -> list[str]:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "shortest", 800)
            engine_stub(llm_server, "shortest_length_predictor").send_signal(signal.SIGKILL)
            for number in range(3):
                client.ask("shortest_engine", str(number), text_input="x", sampling_parameters=ONE_TOKEN)
            return [request_id for request_id, _ in await client.ends(4)]

    assert asyncio.run(run()) == ["blocker", "0", "1", "2"]
    assert metric(llm_server, "mu_fallback_total", "shortest") > before
    asyncio.run(until(lambda: answers_again(llm_server, "shortest"), timeout_s=60.0))


def test_a_reload_lets_what_runs_and_waits_finish(llm_server: RunningTriton) -> None:
    async def run() -> list[tuple[str, str]]:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "shortest", 200)
            for number in range(5):
                client.ask("shortest_engine", str(number), text_input="x", sampling_parameters=exactly(20),
                           priority=number, predicted_tokens=1.0, arrival_ms=1)  # fmt: skip
            await queued(llm_server, "shortest", 5)
            await asyncio.to_thread(reload, llm_server, "shortest_engine")
            return await client.ends(6)

    ended = asyncio.run(run())
    assert [request_id for request_id, _ in ended] == ["blocker", *"01234"]
    assert answers_again(llm_server, "shortest")


def reload(server: RunningTriton, model: str) -> None:
    """As after a change of a file: Triton starts the new process beside the old one."""
    for file in repository_of(server).glob(f"{model}/1/model.py"):
        file.touch()
    request = urllib.request.Request(f"{server.http_url}/v2/repository/models/{model}/load", b"{}")
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def repository_of(server: RunningTriton) -> Path:
    arguments = psutil.Process(server.pid).cmdline()
    (option,) = [argument for argument in arguments if argument.startswith("--model-repository=")]
    return Path(option.split("=", 1)[1])
