"""Streams of the ensemble and its engine on a real Triton, over gRPC, HTTP and the OpenAI interface."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from muplan.deploy.ports import free_ports
from muplan.deploy.running import RunningTriton
from muplan.deploy.serve import ServeOptions, serving
from muplan.load.client import TritonLoadClient
from muplan.openai.chat_form import chatml
from muplan.openai.served import served_models
from muplan.openai.server import openai_endpoint
from muplan.pipeline import generate
from muserve.plan import read_plan
from muserve.token_pieces import pieces
from replicated import write_spec
from small_llm import exactly, metric, stream, until

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]

EMOJI = "🎉 😀𝄞 𠜎𠜱 🏳️‍🌈 🇩🇪 नमस्ते 世界 ü."
CHAT = [
    {"role": "user", "content": "Say it in emoji"},
    {"role": "assistant", "content": "👍"},
    {"role": "user", "content": "More 🎉"},
]
ENTRANCES = pytest.mark.parametrize("entrance", ["llm", "llm_engine"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    triton: RunningTriton
    openai_port: int
    plan_dir: Path

    @contextmanager
    def http(self, port: int | None, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        """An answer whose body has yet to be read; ``port`` None is Triton's own."""
        triton_port = urlsplit(self.triton.http_url).port
        connection = http.client.HTTPConnection("127.0.0.1", port or triton_port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body).encode(), {"Connection": "close"})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def openai(self, path: str, **body: Any) -> AbstractContextManager[http.client.HTTPResponse]:
        return self.http(self.openai_port, path, {"model": "llm"} | body)

    def asked(self, path: str, **body: Any) -> Any:
        with self.openai(path, **body) as response:
            return json.load(response)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One LLM of 8 slots that answers the prompt "emoji", and the chat above, with ``EMOJI``."""
    directory = tmp_path_factory.mktemp("streams")
    prompts = ["emoji", chatml(CHAT)]
    recorded = [{"prompt_sha256": sha256(p.encode()).hexdigest(), "answer": EMOJI} for p in prompts]
    (directory / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in recorded))
    llm = {
        "name": "llm",
        "source": "catalog:opt-1.3b",
        "kind": "generative",
        "slo_ms": 60_000,
        "load": {"rate_rps": 0.1},
        "engine": {"slots": 8, "answers": "answers.jsonl"},
    }
    plan_dir = directory / "plan"
    generate(write_spec(directory, [llm]), plan_dir)
    with serving(plan_dir, ServeOptions(drain_s=2), log=directory / "log") as triton:
        models = served_models(read_plan(plan_dir), plan_dir / "node0", {"llm", "llm_engine"})
        with openai_endpoint(models, triton.grpc_url, "127.0.0.1", 0) as port:
            yield Served(triton=triton, openai_port=port, plan_dir=plan_dir)


def events(response: http.client.HTTPResponse) -> list[dict[str, Any]]:
    """Server-sent events; every single one must be valid UTF-8 and JSON."""
    assert response.status == 200
    lines = [line.strip().removeprefix(b"data: ") for line in response if line.startswith(b"data: ")]
    return [json.loads(line.decode("utf-8", "strict")) for line in lines if line != b"[DONE]"]


@ENTRANCES
def test_characters_of_four_bytes_arrive_whole_over_grpc(served: Served, entrance: str) -> None:
    async def run() -> list[str]:
        client = TritonLoadClient(served.triton.grpc_url)
        found = [text async for text in client.stream(entrance, "emoji")]
        await client.close()
        return found

    texts = asyncio.run(run())
    assert texts == pieces(EMOJI)
    assert "�" not in "".join(texts)


@ENTRANCES
def test_characters_of_four_bytes_arrive_whole_over_http(served: Served, entrance: str) -> None:
    route = f"/v2/models/{entrance}/generate_stream"
    with served.http(None, route, {"text_input": "emoji", "stream": True}) as response:
        assert [event["text_output"] for event in events(response)] == pieces(EMOJI)
    body = {"text_input": "emoji", "exclude_input_in_output": True}
    with served.http(None, f"/v2/models/{entrance}/generate", body) as response:
        assert json.load(response)["text_output"] == EMOJI


def test_a_chat_of_several_rounds_is_answered_over_the_openai_interface(served: Served) -> None:
    answer = served.asked("/v1/chat/completions", messages=CHAT)
    assert answer["choices"][0]["message"]["content"] == EMOJI
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": len(pieces(chatml(CHAT))),
        "completion_tokens": len(pieces(EMOJI)),
        "total_tokens": len(pieces(chatml(CHAT))) + len(pieces(EMOJI)),
    }
    with served.openai("/v1/chat/completions", messages=CHAT, stream=True) as response:
        streamed = events(response)
    texts = [event["choices"][0]["delta"].get("content") for event in streamed]
    assert texts == ["", *pieces(EMOJI), None]


def test_limits_and_errors_of_the_engine_pass_the_openai_interface(served: Served) -> None:
    cut = served.asked("/v1/completions", prompt="x", max_tokens=5, ignore_eos=True)
    assert cut["usage"]["completion_tokens"] == 5
    assert cut["choices"][0]["finish_reason"] == "length"
    stopped = served.asked("/v1/completions", prompt="emoji", max_tokens=99, stop=["😀"])
    assert stopped["choices"][0]["text"] == EMOJI[: EMOJI.index("😀")]
    refused = served.asked("/v1/completions", prompt="x" * 300_000)["error"]
    assert refused["type"] == "invalid_request_error"
    assert "text_input: expected at most 262144 bytes" in refused["message"]


def test_hanging_up_on_the_openai_interface_frees_the_slot(served: Served) -> None:
    before = metric(served.triton, "mu_cancelled_total", "llm")
    body = {"prompt": "x", "max_tokens": 20_000, "ignore_eos": True, "stream": True}
    with served.openai("/v1/completions", **body) as response:
        assert response.readline().startswith(b"data: ")
    asyncio.run(until(lambda: metric(served.triton, "mu_cancelled_total", "llm") == before + 1))


@ENTRANCES
def test_a_client_that_does_not_read_holds_up_nobody(served: Served, entrance: str) -> None:
    """Three clients let thousands of tokens lie: over HTTP, gRPC and the OpenAI interface."""
    body = {"stream": True, "max_tokens": 3000, "ignore_eos": True}
    route = f"/v2/models/{entrance}/generate_stream"
    seen_s: list[float] = []

    async def run() -> None:
        async with stream(served.triton) as lazy:
            lazy.ask(entrance, "lazy", text_input="x", stream=True, sampling_parameters=exactly(3000))
            client = TritonLoadClient(served.triton.grpc_url)
            async for _ in client.stream(entrance, "hello", exactly(150)):
                seen_s.append(time.monotonic())
            await client.close()
            lazy.cancel()

    with (
        served.http(None, route, {"text_input": "x"} | body),
        served.openai("/v1/completions", prompt="x", **body),
        contextlib.suppress(asyncio.CancelledError),
    ):
        asyncio.run(run())
    gaps_s = sorted(b - a for a, b in itertools.pairwise(seen_s))
    assert len(gaps_s) == 149
    assert gaps_s[75] < 0.06, "a token takes 16 ms"
    assert gaps_s[-1] < 1.0


def test_muplan_serve_offers_the_openai_interface(served: Served, tmp_path: Path) -> None:
    """Two servers of one plan are fine: their virtual GPUs are shared."""
    ports, openai = free_ports(), free_ports().http
    command = [sys.executable, "-c", "from muplan.cli import main; main()", "serve", str(served.plan_dir)]
    for name, port in (asdict(ports) | {"openai": openai}).items():
        command += [f"--{name}-port", str(port)]
    with (tmp_path / "out").open("w") as out, (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while f"OpenAI   http://127.0.0.1:{openai}/v1" not in (tmp_path / "out").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        body = {"model": "llm", "messages": CHAT}
        with served.http(openai, "/v1/chat/completions", body) as response:
            assert json.load(response)["choices"][0]["message"]["content"] == EMOJI
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
