"""``serving.queue: native`` on a real Triton: what the planner writes, in front of the replay engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator
from hashlib import sha256

import pytest

from mubackend.length_predictor.predictor import LengthPredictor
from muplan.deploy.running import RunningTriton
from muplan.deploy.serve import ServeOptions, serving
from muplan.pipeline import generate
from replicated import write_spec
from small_llm import ONE_TOKEN, Stream, exactly, metric, stream, until
from small_llm import generate as post

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]

SLOTS = 4
QUEUE_LIMIT = 40
EMOJI = "🎉 😀 𝄞 🏳️‍🌈 世界 ü"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """One LLM, shortest predicted first, whose prompt of emoji is answered with emoji."""

    directory = tmp_path_factory.mktemp("native")
    recorded = {"prompt_sha256": sha256(b"emoji").hexdigest(), "answer": EMOJI}
    (directory / "answers.jsonl").write_text(json.dumps(recorded) + "\n")
    llm = {
        "name": "llm",
        "source": "catalog:opt-1.3b",
        "kind": "generative",
        "slo_ms": 60_000,
        "load": {"rate_rps": 0.1},
        "engine": {"slots": SLOTS, "queue_limit": QUEUE_LIMIT, "answers": "answers.jsonl"},
    }
    world = {"serving": {"queue": "native"}, "predictor": {"alpha": 1e6}}
    generate(write_spec(directory, [llm], **world), directory / "plan")
    with serving(directory / "plan", ServeOptions(drain_s=2), log=directory / "log") as triton:
        yield triton


async def answered(client: Stream) -> str:
    """The id of the next request that is answered whole; none of them streams."""
    result, error = await asyncio.wait_for(anext(client._responses), 60)
    assert error is None
    return str(result.get_response().id)


def prompts() -> list[str]:
    """Prompts with clearly different predictions, longest first."""
    predictor = LengthPredictor.load()
    texts = [
        f"{verb} {amount} {what}"
        for verb in ("Write", "List", "Is it true that")
        for amount in ("one", "200")
        for what in ("words", "poems about power", "lines of SQL")
    ]
    chosen: list[str] = []
    for text in sorted(texts, key=predictor.predict, reverse=True):
        if not chosen or predictor.predict(chosen[-1]) > 1.05 * predictor.predict(text):
            chosen.append(text)
    return chosen


@pytest.mark.parametrize("entrance", ["llm", "llm_front"])
def test_the_order_of_completion_follows_the_predicted_length(server: RunningTriton, entrance: str) -> None:
    """Sent longest first while all slots are taken; K slots start within K places of the queue's order."""
    waiting = prompts()
    assert len(waiting) >= 6

    async def run() -> list[str]:
        async with stream(server) as client:
            for number in range(SLOTS):
                client.ask(
                    entrance,
                    f"blocker{number}",
                    text_input="x",
                    sampling_parameters=exactly(150 + 40 * number),
                )
            await until(lambda: metric(server, "mu_predicted_backlog_seconds", "llm") > 0)
            await asyncio.sleep(0.3)
            for prompt in waiting:
                client.ask(entrance, prompt, text_input=prompt, sampling_parameters=ONE_TOKEN)
            return [await answered(client) for _ in range(SLOTS + len(waiting))]

    ended = asyncio.run(run())
    order = [name for name in ended if not name.startswith("blocker")]
    expected = waiting[::-1]
    misplaced = [abs(order.index(prompt) - expected.index(prompt)) for prompt in expected]
    assert max(misplaced) < SLOTS, (order, expected)
    assert sum(misplaced) <= len(waiting), "nearly as predicted; sent in the opposite order"


def test_tokens_stream_through_it_whole(server: RunningTriton) -> None:
    whole = post(server, "llm", {"text_input": "emoji", "exclude_input_in_output": True})[1]["text_output"]
    assert whole == EMOJI
    body = {"text_input": "emoji", "stream": True}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/llm/generate_stream", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        events = [json.loads(line[6:]) for line in response.read().decode().splitlines() if line]
    texts = [event["text_output"] for event in events if "text_output" in event]
    assert "".join(texts) == EMOJI
    assert len(texts) > 3


def test_the_tokens_come_one_after_the_other(server: RunningTriton) -> None:
    """Not all at the end: the first is there long before the last."""
    body = {"text_input": "x", "stream": True, "max_tokens": 60, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/llm/generate_stream", json.dumps(body).encode()
    )
    at_s = []
    with urllib.request.urlopen(request, timeout=30) as response:
        for line in response:
            if line.startswith(b"data:"):
                at_s.append(time.monotonic())
    assert len(at_s) >= 60
    spread = at_s[-1] - at_s[0]
    assert at_s[30] - at_s[0] == pytest.approx(spread / 2, rel=0.5)


@pytest.mark.parametrize("entrance", ["llm", "llm_front"])
def test_an_error_of_the_engine_is_the_clients(server: RunningTriton, entrance: str) -> None:
    status, answer = post(server, entrance, {"text_input": "x", "max_tokens": 0})
    assert 400 <= status < 600
    assert "max_tokens: expected a whole number from 1 to" in answer["error"]
    assert "Traceback" not in answer["error"]
    assert post(server, entrance, {"text_input": "x", "max_tokens": 1})[0] == 200


def test_a_client_that_goes_leaves_the_queue_and_its_slot(server: RunningTriton) -> None:
    """All slots taken by answers of five minutes, and ten more waiting: gone, and the slots are free."""
    before = metric(server, "mu_cancelled_total", "llm")

    async def cancelled() -> None:
        async with stream(server) as client:
            for number in range(SLOTS + 10):
                client.ask("llm_front", str(number), text_input="x", sampling_parameters=exactly(20_000))
            await until(lambda: metric(server, "mu_predicted_backlog_seconds", "llm") > 0)
            await asyncio.sleep(0.5)
            client.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(cancelled())
    started_s = time.monotonic()
    assert post(server, "llm", {"text_input": "x", "max_tokens": 1})[0] == 200
    assert time.monotonic() - started_s < 3.0
    asyncio.run(until(lambda: metric(server, "mu_cancelled_total", "llm") == before + SLOTS + 10))


def test_a_full_queue_answers_unavailable_with_the_expected_wait(server: RunningTriton) -> None:
    async def run() -> None:
        async with stream(server) as client:
            for number in range(SLOTS + QUEUE_LIMIT):
                client.ask("llm_front", str(number), text_input="x", sampling_parameters=exactly(400))
            await asyncio.sleep(1.5)
            for entrance in ("llm", "llm_front"):
                started_s = time.monotonic()
                status, answer = await asyncio.to_thread(post, server, entrance, {"text_input": "x"})
                assert time.monotonic() - started_s < 1.0
                assert status >= 400
                expected = f"the queue of llm is full: {QUEUE_LIMIT} requests are waiting, expected wait "
                assert expected in answer["error"]
            client.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())
