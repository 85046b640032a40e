"""Traffic classes, timeouts and cancellation of a generative endpoint on a real Triton."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest

from muplan.deploy.running import RunningTriton
from small_llm import MS_PER_TOKEN, exactly, generate, metric, occupy, queued, stream, until

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]

# A request of one token needs this long itself once it has a slot.
OWN_S = 0.001 * 3 * MS_PER_TOKEN
FREED_S = 0.1
TRIES = 4


def one_token(**terms: Any) -> str:
    return json.dumps({"max_tokens": 1, "ignore_eos": True} | terms)


@pytest.mark.parametrize("entrance", ["aged", "aged_engine"])
def test_classes_go_before_the_order(llm_server: RunningTriton, entrance: str) -> None:
    arrivals = ["batch", "standard", "interactive", "standard", "interactive"]

    async def run() -> list[str]:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "aged", 200)
            for number, name in enumerate(arrivals):
                sampling = one_token(traffic_class=name)
                client.ask(entrance, f"{name} {number}", text_input="x", sampling_parameters=sampling)
                await queued(llm_server, "aged", number + 1)
            return [request_id.split()[0] for request_id, _ in await client.ends(1 + len(arrivals))]

    order = asyncio.run(run())
    assert order == ["blocker", "interactive", "interactive", "standard", "standard", "batch"]
    assert metric(llm_server, "mu_class_slo_met_total", "aged") >= len(arrivals)


def test_an_unknown_class_is_refused(llm_server: RunningTriton) -> None:
    status, body = generate(llm_server, "aged", {"text_input": "x", "traffic_class": "vip"})
    assert status == 400
    assert body["error"].endswith('expected one of interactive, standard, batch, got "vip"')
    status, body = generate(llm_server, "aged", {"text_input": "x", "oracle_tokens": 3})
    assert status == 400
    assert body["error"].endswith("oracle_tokens: only allowed where serving.order is oracle")


@pytest.mark.parametrize("entrance", ["shortest", "shortest_engine"])
def test_a_timeout_ends_a_request_that_runs_and_one_that_waits(
    llm_server: RunningTriton, entrance: str
) -> None:
    async def run() -> tuple[list[str], float]:
        async with stream(llm_server) as client:
            limited = {"max_tokens": 20_000, "ignore_eos": True, "timeout_ms": 400}
            started_s = time.monotonic()
            client.ask(entrance, "runs", text_input="x", sampling_parameters=json.dumps(limited))
            client.ask(entrance, "waits", text_input="x", sampling_parameters=one_token(timeout_ms=300))
            errors = [text for _, text in await client.ends(2)]
            return errors, time.monotonic() - started_s

    errors, took_s = asyncio.run(run())
    assert [error.split(", ")[-1] for error in errors] == [
        "the request's timeout of 300 ms is over",
        "the request's timeout of 400 ms is over",
    ]
    assert 0.4 <= took_s < 0.4 + FREED_S + 0.4  # the answer's way back through a busy machine
    asyncio.run(queued(llm_server, "shortest", 0))


def test_tritons_own_timeout_counts_too(llm_server: RunningTriton) -> None:
    async def run() -> str:
        async with stream(llm_server) as client:
            client.ask("shortest_engine", "x", text_input="x", sampling_parameters=exactly(20_000),
                       request_timeout_us=250_000)  # fmt: skip
            return (await client.ends(1))[0][1]

    assert asyncio.run(run()).endswith("the request's timeout of 250 ms is over")


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_a_slot_is_free_within_100_ms(llm_server: RunningTriton, how: str) -> None:
    """The next request gets its slot; the best of a few tries, since others use this machine too."""

    times_s: list[float] = []
    blocks = {"max_tokens": 20_000, "ignore_eos": True}
    if how == "timed out":
        blocks["timeout_ms"] = 600

    async def once() -> None:
        async with stream(llm_server) as waits, stream(llm_server) as client:
            client.ask("shortest_engine", "blocker", text_input="x", sampling_parameters=json.dumps(blocks),
                       priority=0, predicted_tokens=1.0, arrival_ms=time.time_ns() // 1_000_000)  # fmt: skip
            ends_s = time.monotonic() + 0.6
            await until(lambda: metric(llm_server, "mu_predicted_backlog_seconds", "shortest") > 0)
            waits.ask("shortest_engine", "next", text_input="x", sampling_parameters=one_token())
            await queued(llm_server, "shortest", 1)
            if how == "cancelled":
                ends_s = time.monotonic()
                client.cancel()
            await waits.ends(1)
            times_s.append(time.monotonic() - ends_s - OWN_S)

    for _ in range(TRIES):
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(once())
    assert len(times_s) == TRIES
    assert min(times_s) <= FREED_S, times_s
