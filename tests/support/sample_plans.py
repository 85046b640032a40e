"""Small plans for tests: one complete sample of each plan object, and builders that change it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from muserve.plan import (
    PLAN_VERSION,
    Basis,
    GpuPlan,
    ModelKind,
    ModelPlan,
    PartitionPlan,
    Phase,
    Plan,
    ReplicaPlan,
    Sensitivity,
    TimeLaw,
)

SAMPLE_LAW = TimeLaw(
    phase=Phase.INFERENCE,
    latency_ms=5.0,
    sensitivity=Sensitivity(value=0.5, low=0.4, high=0.6, basis=Basis.MODELLED),
    basis=Basis.MODELLED,
)
_GPU = GpuPlan(
    name="node0/gpu0",
    node="node0",
    index=0,
    part="V100-16GB",
    virtual=True,
    uuid="VGPU-node0-0",
    initial_clock_mhz=1200,
    initial_clock_reason="test",
    memory_bytes=16 * 2**30,
    memory_used_bytes=1,
    predicted_utilisation=0.5,
    predicted_power_w=100.0,
)
_PARTITION = PartitionPlan(
    name="sample",
    first_operator="first",
    last_operator="last",
    operators=2,
    input_tensors=("x",),
    output_tensors=("y",),
    flops=1e9,
    weight_bytes=1,
    memory_bytes=1,
    transfer_bytes=1,
    laws=(SAMPLE_LAW,),
    decode_growth_ms=0.0,
    replicas=(),
)
_MODEL = ModelPlan(
    name="sample",
    kind=ModelKind.SINGLE_PASS,
    source="catalog:sample",
    slo_ms=100.0,
    attainment_target=0.95,
    isolated_latency_ms=5.0,
    rate_rps=10.0,
    burstiness_cv=1.0,
    mean_output_tokens=1.0,
    output_cv=0.0,
    slots=1,
    predicted_attainment=0.99,
    cuts=(),
    partitions=(_PARTITION,),
)
_PLAN = Plan(
    version=PLAN_VERSION,
    muserve_version="0",
    spec_sha256="0",
    seed=0,
    objective="energy",
    target="embedded",
    link_gbs=12.0,
    gpus=(_GPU,),
    models=(_MODEL,),
    predicted_power_w=200.0,
    default_clock_power_w=300.0,
    profile_fingerprints={},
)


def sample_gpu(index: int, node: str = "node0", **changes: Any) -> GpuPlan:
    """The virtual V100 ``<node>/gpu<index>``, its start clock 1200 MHz."""
    named = {"name": f"{node}/gpu{index}", "node": node, "index": index, "uuid": f"VGPU-{node}-{index}"}
    return replace(_GPU, **(named | changes))


def sample_partition(name: str, gpus: Iterable[str] = (), **changes: Any) -> PartitionPlan:
    """A partition of 5 ms with one replica on each GPU named in ``gpus``."""
    replicas = tuple(ReplicaPlan(gpus=(gpu,)) for gpu in gpus)
    return replace(_PARTITION, **({"name": name, "replicas": replicas} | changes))


def sample_model(name: str, **changes: Any) -> ModelPlan:
    """A single-pass model with a 100 ms SLO; one partition of its name, without replicas."""
    own = {"name": name, "source": f"catalog:{name}", "partitions": (sample_partition(name),)}
    return replace(_MODEL, **(own | changes))


def sample_plan(gpus: Iterable[GpuPlan], models: Iterable[ModelPlan] = (), **changes: Any) -> Plan:
    """A plan of ``models`` on ``gpus``."""
    return replace(_PLAN, **({"gpus": tuple(gpus), "models": tuple(models)} | changes))
