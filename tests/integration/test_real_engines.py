"""Engines that really generate, in a real Triton: transformers, and vLLM's CPU build.

They run in the Python environment that ``MUSERVE_VLLM_ENV`` names: a directory with muServe itself, vLLM,
torch and transformers, and numpy<2. The transformers engine takes torch from here when it is not set.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tritonclient.grpc import aio

from muplan.deploy.running import RunningTriton, running_triton
from muserve.gpu.virtual import VirtualGpu
from small_llm import GPU_UUID, Stream, generate, metric, stream, until, write_llm

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(400)]

SUPPORT = Path(__file__).parents[1] / "support"
GREEDY = json.dumps({"temperature": 0, "max_tokens": 24})
PROMPTS = ("the heron", "a fish of the water and the other", "see", "water water water")


@dataclass
class Served:
    server: RunningTriton
    engine: str


def environment_of(engine: str) -> str:
    """The directory to run ``engine`` in; empty for this interpreter's own."""
    directory = os.environ.get("MUSERVE_VLLM_ENV", "")
    if directory:
        return directory
    if engine == "vllm":
        pytest.skip("needs MUSERVE_VLLM_ENV, a Python environment with vLLM")
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        pytest.skip("needs torch and transformers here, or MUSERVE_VLLM_ENV")
    return ""


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine: str = request.param
    environment = environment_of(engine)
    plan_dir = tmp_path_factory.mktemp(engine)
    model = plan_dir / "model"
    model.mkdir()
    python = f"{environment}/bin/python" if environment else sys.executable
    write = "import pathlib, sys, tiny_llm; tiny_llm.write_model(pathlib.Path(sys.argv[1]), dtype='float32')"
    subprocess.run(
        [python, "-c", write, str(model)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
        capture_output=True,
    )
    repository = plan_dir / "node0" / "model_repository"
    common = {
        "engine": engine,
        "engine_model": str(model),
        "max_model_len": "256",
        "EXECUTION_ENV_PATH": environment,
        "prefill_ms": "0.1",
        "decode_ms": "10",
    }
    write_llm(repository, "one", 30.0, slots="1", **common)
    if engine == "transformers":
        write_llm(repository, "four", 30.0, slots="4", **common)
        write_llm(
            repository, "static", 30.0, slots="4", batching="dynamic", max_queue_delay_ms="50", **common
        )
    state_file = plan_dir / "vgpu" / f"{GPU_UUID}.vgpu"
    state_file.parent.mkdir()
    VirtualGpu.create(state_file, "V100-16GB", 0, GPU_UUID)
    with running_triton(repository, plan_dir=plan_dir, config_name=None, log=plan_dir / "log") as running:
        yield Served(running, engine)


def ask(served: Served, prompt: str, model: str = "one", **body: Any) -> str:
    status, answer = generate(served.server, model, {"text_input": prompt, **body}, timeout_s=200.0)
    assert status == 200, answer
    text: str = answer["text_output"]
    return text


def test_an_answer_comes_after_the_prompt_unless_the_client_excludes_it(served: Served) -> None:
    alone = ask(served, "the heron", sampling_parameters=GREEDY, exclude_input_in_output=True)
    assert alone
    assert ask(served, "the heron", sampling_parameters=GREEDY) == "the heron" + alone
    assert ask(served, "the heron", "one_engine", sampling_parameters=GREEDY) == "the heron" + alone


def test_a_stream_is_the_answer_and_every_piece_is_valid_text(served: Served) -> None:
    async def pieces() -> list[str]:
        async with stream(served.server) as client:
            client.ask("one", "x", text_input="the heron", stream=True, sampling_parameters=GREEDY)
            texts = []
            while True:
                result, error = await asyncio.wait_for(anext(client._responses), 60)
                assert error is None, error
                texts.append(result.as_numpy("text_output")[0].decode("utf-8", "strict"))
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return texts

    got = asyncio.run(pieces())
    assert len(got) > 4, "tokens are sent as they are made"
    assert "".join(got) == ask(served, "the heron", sampling_parameters=GREEDY, exclude_input_in_output=True)


def test_a_stop_string_ends_the_answer_before_it(served: Served) -> None:
    whole = ask(served, "the heron", sampling_parameters=GREEDY, exclude_input_in_output=True)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    limited = json.dumps({"temperature": 0, "max_tokens": 24, "stop": [stop]})
    cut = ask(served, "the heron", sampling_parameters=limited, exclude_input_in_output=True)
    assert cut == whole[: whole.index(stop)]


def test_a_prompt_too_long_is_the_clients_mistake(served: Served) -> None:
    status, answer = generate(served.server, "one", {"text_input": "\n" * 300})
    assert status == 400, answer
    assert "256" in answer["error"] or "255" in answer["error"]


def test_requests_start_in_the_order_of_their_priority(served: Served) -> None:
    async def order() -> list[str]:
        now_ms = time.time_ns() // 1_000_000
        async with stream(served.server) as client:

            def send(name: str, priority: int, tokens: int) -> None:
                client.ask(
                    "one_engine",
                    name,
                    text_input="the heron",
                    sampling_parameters=json.dumps({"max_tokens": tokens, "ignore_eos": True}),
                    priority=now_ms + priority,
                    predicted_tokens=3.0,
                    arrival_ms=now_ms,
                )

            for number in range(3):  # long enough for the rest to come
                send(f"busy {number}", number, 200)
            for priority in (50, 20, 60, 10, 40, 30):
                send(str(priority), priority, 3)
            return [name for name, _ in await client.ends(9)]

    expected = ["busy 0", "busy 1", "busy 2", "10", "20", "30", "40", "50", "60"]
    assert asyncio.run(order()) == expected


def test_a_client_that_goes_frees_its_slot(served: Served) -> None:
    def value(name: str) -> float:
        return metric(served.server, name, "one")

    async def leave() -> None:
        async with aio.InferenceServerClient(served.server.grpc_url) as connection:
            client = Stream(connection)
            endless = json.dumps({"max_tokens": 240, "ignore_eos": True, "temperature": 0})
            asked = {"text_input": "a", "sampling_parameters": endless, "stream": True}
            for number in range(20):
                client.ask("one_engine", str(number), **asked)
            feeding = asyncio.ensure_future(anext(client._responses))
            await until(lambda: value("mu_queue_length") >= 10)
            await asyncio.wait_for(feeding, 60)
            client.cancel()
            await until(lambda: value("mu_cancelled_total") >= 5 and not value("mu_queue_length"))
        await asyncio.to_thread(ask, served, "see", sampling_parameters=GREEDY)

    asyncio.run(leave())


def test_when_vllms_process_dies_the_next_request_starts_it_again(served: Served) -> None:
    if served.engine != "vllm":
        pytest.skip("runs in Triton's own process")
    before = ask(served, "the heron", sampling_parameters=GREEDY)
    children = psutil.Process(served.server.pid).children(recursive=True)
    (core,) = (child for child in children if child.name().startswith("VLLM::EngineCor"))
    core.kill()
    status, answer = generate(served.server, "one_engine", {"text_input": "a", "sampling_parameters": GREEDY})
    assert status != 200, answer
    assert "vLLM's process has died" in answer["error"]
    assert ask(served, "the heron", sampling_parameters=GREEDY) == before


@pytest.mark.parametrize("model", ["four", "static"])
def test_in_company_everybody_gets_the_answer_of_being_alone(served: Served, model: str) -> None:
    if served.engine == "vllm":
        pytest.skip("vLLM's own batching")

    async def together() -> dict[str, str]:
        async with stream(served.server) as client:
            for place, prompt in enumerate(PROMPTS * 3):
                client.ask(
                    f"{model}_engine",
                    f"{place % len(PROMPTS)}/{place}",
                    text_input=prompt,
                    sampling_parameters=GREEDY,
                )
            return dict(await client.ends(3 * len(PROMPTS)))

    alone = [ask(served, prompt, sampling_parameters=GREEDY) for prompt in PROMPTS]
    for name, text in asyncio.run(together()).items():
        assert text == alone[int(name.split("/")[0])]
