"""GPUs that too many single-pass partitions share: which ones may run one partition at a time only.

Instances that run at once on a GPU share it by time slicing: with n of them, each takes n times as long.
A GPU is oversubscribed when that alone can make a request of one of its models miss the SLO. Its instances
then hold a resource of Triton's rate limiter while they run, of which there is one for each GPU: they take
turns, and the first to come finishes as if it were alone.

Engines of generative models take no part. They return from ``execute`` at once, so a resource would not be
held for their work, and a model that others call through BLS may deadlock over one
(https://github.com/triton-inference-server/server/issues/8358).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from muserve.gpu.parts import Part
from muserve.physics import slowdown
from muserve.plan import ModelKind, ModelPlan, PartitionPlan, Phase, Plan


def oversubscribed_gpus(plan: Plan, parts: Mapping[str, Part]) -> frozenset[str]:
    """Names of the GPUs whose single-pass instances have to take turns; ``parts`` are those of the plan."""
    models = [model for model in plan.models if model.kind is ModelKind.SINGLE_PASS]
    instances = Counter(
        replica.gpu for model in models for partition in model.partitions for replica in partition.replicas
    )
    return frozenset(
        gpu
        for model in models
        if _sliced_latency_ms(plan, model, instances, parts) > model.slo_ms
        for gpu in _gpus(model)
        if instances[gpu] > 1
    )


def _sliced_latency_ms(
    plan: Plan, model: ModelPlan, instances: Counter[str], parts: Mapping[str, Part]
) -> float:
    """Latency through the slowest replicas while everything on their GPUs runs, at the planned clocks."""
    return sum(
        max(
            instances[replica.gpu] * _latency_ms(plan, partition, replica.gpu, parts)
            for replica in partition.replicas
        )
        for partition in model.partitions
    )


def _latency_ms(plan: Plan, partition: PartitionPlan, name: str, parts: Mapping[str, Part]) -> float:
    gpu, law = plan.gpu(name), partition.law(Phase.INFERENCE)
    return law.latency_ms * slowdown(parts[gpu.part], law.sensitivity.value, gpu.initial_clock_mhz)


def _gpus(model: ModelPlan) -> set[str]:
    return {replica.gpu for partition in model.partitions for replica in partition.replicas}
