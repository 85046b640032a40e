"""Several replicas on a real Triton: each instance works on the GPU that it is planned on, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from muplan.deploy.running import RunningTriton
from muplan.deploy.serve import ServeOptions, serving
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import Phase, Plan, vgpu_dir
from replicated import rows_answer, write_replicated, write_rows_onnx, write_spec
from small_llm import exactly, metric, stream

pytestmark = pytest.mark.triton

REQUESTS = 24
TOKENS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicated:
    """A served plan: ``rows`` and ``llm`` on both GPUs, ``wide`` on both GPUs at once."""

    server: RunningTriton
    plan: Plan
    gpus: tuple[VirtualGpu, ...]
    model_file: Path

    def busy_ms(self) -> tuple[float, ...]:
        return tuple(gpu.busy_s() * 1000 for gpu in self.gpus)

    def law_ms(self, partition: str, phase: Phase) -> float:
        parts = {part.name: part for model in self.plan.models for part in model.partitions}
        return parts[partition].law(phase).latency_ms


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
    directory = tmp_path_factory.mktemp("replicas")
    write_rows_onnx(directory / "rows.onnx")
    rows = {"name": "rows", "source": "onnx:rows.onnx", "kind": "single-pass", "slo_ms": 100}
    llm = {"source": "catalog:opt-1.3b", "kind": "generative", "slo_ms": 60_000, "load": {"rate_rps": 0.1}}
    spec_file = write_spec(
        directory,
        [
            rows | {"dims": {"batch": 1}, "load": {"rate_rps": 1}},
            llm | {"name": "llm", "engine": {"slots": 1}},
            llm | {"name": "wide", "engine": {"slots": 1}},
        ],
    )
    placed = {"rows": [(0,), (1,)], "llm_engine": [(1,), (0,)], "wide_engine": [(0, 1)]}
    plan = write_replicated(spec_file, placed, directory / "plan")
    with serving(directory / "plan", ServeOptions(drain_s=2), log=directory / "log") as server:
        files = [vgpu_dir(directory / "plan") / f"{gpu.uuid}.vgpu" for gpu in plan.gpus]
        yield Replicated(
            server=server,
            plan=plan,
            gpus=tuple(VirtualGpu(file) for file in files),
            model_file=directory / "rows.onnx",
        )


def test_each_replica_of_a_stage_spends_the_time_of_its_own_gpu(replicated: Replicated) -> None:
    before = replicated.busy_ms()
    x = np.random.default_rng(1).standard_normal((1, 8)).astype(np.float32)
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    with (
        triton.InferenceServerClient(replicated.server.grpc_url) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: client.infer("rows", [tensor]).as_numpy("y"), range(REQUESTS)))
    expected = rows_answer(replicated.model_file, x)
    assert all(np.abs(answer - expected).max() < 1e-4 for answer in answers)
    spent = np.subtract(replicated.busy_ms(), before)
    assert min(spent) > 0, "both replicas work"
    assert sum(spent) == pytest.approx(REQUESTS * replicated.law_ms("rows", Phase.INFERENCE), rel=0.05)


def test_each_replica_of_an_engine_has_its_own_gpu_and_queue(replicated: Replicated) -> None:
    before = replicated.busy_ms()
    asyncio.run(_ask(replicated.server, "llm", REQUESTS))
    spent = np.subtract(replicated.busy_ms(), before)
    step_ms = replicated.law_ms("llm_engine", Phase.DECODE)
    prefill_ms = replicated.law_ms("llm_engine", Phase.PREFILL)
    assert min(spent) > sum(spent) / 3, "a burst is shared between the replicas"
    assert sum(spent) == pytest.approx(REQUESTS * (prefill_ms + TOKENS * step_ms), rel=0.05)
    assert metric(replicated.server, "mu_slo_met_total", "llm") == REQUESTS


def test_a_replica_of_two_gpus_works_on_both_at_once(replicated: Replicated) -> None:
    before = replicated.busy_ms()
    asyncio.run(_ask(replicated.server, "wide", 2))
    spent = np.subtract(replicated.busy_ms(), before)
    wanted_ms = 2 * (
        replicated.law_ms("wide_engine", Phase.PREFILL)
        + TOKENS * replicated.law_ms("wide_engine", Phase.DECODE)
    )
    assert list(spent) == pytest.approx([wanted_ms, wanted_ms], rel=0.05)


async def _ask(server: RunningTriton, model: str, count: int) -> None:
    async with stream(server) as client:
        for number in range(count):
            client.ask(model, str(number), text_input="x", sampling_parameters=exactly(TOKENS))
        ends = await client.ends(count)
    assert sorted(name for name, _ in ends) == sorted(str(number) for number in range(count)), ends
