"""The configuration of one single-pass partition: what both targets say of it, whichever backend runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muplan.profile.shapes import tensor_specs
from muplan.repository.batching import batching_of
from muplan.repository.model_config import backend_model, triton_tensors
from muplan.repository.triton_model import (
    common_parameters,
    gpu_names,
    replica_parameters,
    stage_instances,
    stage_position,
)
from muplan.staging import StagedModel
from muserve.plan import ModelPlan, Plan


def partition_config(
    backend: str,
    plan: Plan,
    model: ModelPlan,
    staged: StagedModel,
    index: int,
    crowded: frozenset[str],
    parameters: Mapping[str, str],
) -> Any:
    """The ``ModelConfig`` of partition ``index`` of ``model``; ``parameters`` are those of its backend."""
    partition, graph = model.partitions[index], staged.partitions[index].graph
    assert graph is not None, "a single-pass partition has a graph"
    inputs, outputs = tensor_specs(graph)
    return backend_model(
        backend,
        partition.name,
        inputs=triton_tensors(inputs),
        outputs=triton_tensors(outputs),
        parameters={
            **common_parameters(model),
            **replica_parameters(plan, partition),
            **stage_position(model, index),
            **parameters,
        },
        instances=stage_instances(plan, partition, crowded),
        gpu_name=gpu_names((partition,)),
        batching=batching_of(staged),
    )
