"""Tensor parallel engines: their laws, and a 70B model on GPUs of which none could hold it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muplan.architecture.generative import GenerativeModel
from muplan.pipeline import plan_spec
from muplan.plan_model import cluster_from_plan
from muplan.profile.llm import decode_law
from muplan.profile.tensor_parallel import all_reduces_ms, sharded_law
from muplan.sources import load_source
from muplan.spec import SpecFile, parse_spec
from muserve.errors import InfeasiblePlanError, InputError
from muserve.gpu.parts import load_part


def llama_spec(directory: Path, size: str = "7b", part: str = "V100-16GB", **engine: Any) -> SpecFile:
    document = {
        "cluster": {
            "nodes": [{"name": "n", "gpus": [{"part": part, "count": 8}]}],
            "link_gbs": 300,
        },
        "models": [
            {
                "name": "llama",
                "source": f"catalog:llama-2-{size}",
                "kind": "generative",
                "slo_ms": 60_000,
                "attainment": 0.9,
                "engine": {"model": f"meta-llama/Llama-2-{size}-hf", **engine},
                "load": {"rate_rps": 0.1},
            }
        ],
        "serving": {"target": "ngc"},
    }
    path = directory / "spec.yaml"
    return SpecFile(path=path, spec=parse_spec(document, path), sha256="0" * 64)


@pytest.fixture(scope="module")
def llama() -> GenerativeModel:
    llm = load_source("catalog:llama-2-7b", Path()).llm
    assert llm is not None
    return llm


def test_work_is_shared_and_communication_does_not_follow_the_clock(llama: GenerativeModel) -> None:
    whole = decode_law(llama, load_part("A100-80GB"), 1, 500)
    half = sharded_law(whole, 2, all_reduces_ms(llama, 2, 1, 300))
    assert whole.latency_ms / 2 < half.latency_ms < whole.latency_ms
    clocked_ms = whole.latency_ms * whole.sensitivity.value
    assert half.latency_ms * half.sensitivity.value == pytest.approx(clocked_ms / 2)
    assert sharded_law(whole, 1, all_reduces_ms(llama, 1, 1, 300)) == whole


def test_all_reduces_of_a_prompt_are_bound_by_the_link(llama: GenerativeModel) -> None:
    """Llama-2-7b, 32 layers of 4096 fp16: 1000 tokens over a 12 GB/s link, two rings a layer of 8.2 MB."""
    assert all_reduces_ms(llama, 2, 1000, 12) == pytest.approx(64 * (0.01 + 8.192 / 12), rel=1e-6)
    assert all_reduces_ms(llama, 4, 1000, 12) / all_reduces_ms(llama, 2, 1000, 12) == pytest.approx(
        1.5, rel=0.01
    )


def test_a_70b_model_is_planned_on_80_gb_gpus(tmp_path: Path) -> None:
    plan = plan_spec(llama_spec(tmp_path, "70b", "A100-80GB")).plan
    (partition,) = plan.models[0].partitions
    (replica,) = partition.replicas
    assert len(replica.gpus) in (2, 4, 8)
    assert len(replica.gpus) * partition.memory_bytes > 138e9
    for name in replica.gpus:
        assert 0 < plan.gpu(name).memory_used_bytes <= plan.gpu(name).memory_bytes
    clocks = {plan.gpu(name).initial_clock_mhz for name in replica.gpus}
    assert len(clocks) == 1
    model, assignment, at = cluster_from_plan(plan)
    assert model.point(assignment, at).power_w == pytest.approx(plan.predicted_power_w, abs=0.01)


def test_the_spec_may_fix_the_degree(tmp_path: Path) -> None:
    plan = plan_spec(llama_spec(tmp_path, tensor_parallel=8)).plan
    assert len(plan.models[0].partitions[0].replicas[0].gpus) == 8


@pytest.mark.parametrize(
    ("degree", "expected"),
    [(1, "llama_engine needs"), (3, "engine.tensor_parallel: expected a divisor of the 32 attention heads")],
)
def test_a_degree_that_cannot_be_is_one_sentence(tmp_path: Path, degree: int, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        plan_spec(llama_spec(tmp_path, tensor_parallel=degree))


def test_a_cluster_without_enough_gpus_on_one_node_is_infeasible(tmp_path: Path) -> None:
    spec_file = llama_spec(tmp_path, tensor_parallel=8)
    document = json.loads(spec_file.spec.model_dump_json(exclude_unset=True))
    document["cluster"]["nodes"] = [
        {"name": name, "gpus": [{"part": "V100-16GB", "count": 4}]} for name in ("n", "m")
    ]
    fewer = replace(spec_file, spec=parse_spec(document, spec_file.path))
    with pytest.raises(InfeasiblePlanError, match="model llama: it needs 8 GPUs of one part on one node"):
        plan_spec(fewer)
