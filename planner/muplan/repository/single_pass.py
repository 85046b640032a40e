"""A single-pass model in Triton: a Python-backend model per partition, and an ensemble over several."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

from muplan.profile.shapes import tensor_specs
from muplan.repository.model_config import Step, Tensor, backend_model, ensemble, triton_tensors
from muplan.repository.triton_model import (
    TritonModel,
    common_parameters,
    gpu_names,
    number,
    replica_instances,
    replica_parameters,
    shim,
)
from muplan.spec import SpecFile, WeightsSpec
from muplan.splitting import save_model
from muplan.staging import StagedModel
from muserve.plan import ModelPlan, PartitionPlan, Phase, Plan

# ONNX Runtime threads of one stage. One: the stages of a node run side by side.
_THREADS = 1
GRAPH_FILE = "partition.onnx"


def single_pass_configs(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile
) -> tuple[TritonModel, ...]:
    """The Triton models of ``model``; the first is the one that clients call."""
    stages = tuple(_stage(plan, model, staged, spec_file, index) for index in range(len(model.partitions)))
    if len(stages) == 1:
        return stages
    return (_ensemble(model, staged), *stages)


def _stage(plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile, index: int) -> TritonModel:
    partition, graph = model.partitions[index], staged.partitions[index].graph
    assert graph is not None, "a single-pass partition has a graph"
    inputs, outputs = tensor_specs(graph)
    weights, node_files = _weights(plan, model, staged, spec_file)
    return TritonModel(
        config=backend_model(
            "python",
            partition.name,
            inputs=triton_tensors(inputs),
            outputs=triton_tensors(outputs),
            parameters={
                **common_parameters(model),
                **replica_parameters(plan, partition),
                **_stage_parameters(partition, index, len(model.partitions)),
                **weights,
            },
            instances=replica_instances(plan, partition),
            gpu_name=gpu_names((partition,)),
        ),
        version_files={"model.py": shim("stage"), GRAPH_FILE: partial(save_model, graph)},
        node_files=node_files,
    )


def _stage_parameters(partition: PartitionPlan, index: int, count: int) -> dict[str, str]:
    law = partition.law(Phase.INFERENCE)
    return {
        "stage_index": str(index),
        "stage_count": str(count),
        "latency_ms": number(law.latency_ms),
        "sensitivity": number(law.sensitivity.value),
        "graph_file": GRAPH_FILE,
        "threads": str(_THREADS),
    }


def _weights(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile
) -> tuple[dict[str, str], dict[str, Path]]:
    """Parameters that say where missing weights come from, and the file to bring along."""
    if staged.source.has_weights:
        return {}, {}
    weights = staged.spec.weights or WeightsSpec(seed=plan.seed)
    if weights.file is None:
        return {"weights_seed": str(weights.seed)}, {}
    source = spec_file.resolve(weights.file)
    name = str(PurePosixPath("weights", model.name + source.suffix))
    return {"weights_file": name}, {name: source}


def _ensemble(model: ModelPlan, staged: StagedModel) -> TritonModel:
    """Chains the stages by tensor name: each takes the public inputs and earlier results it needs."""
    assert staged.source.graph is not None, "a single-pass model has a graph"
    inputs, outputs = tensor_specs(staged.source.graph)
    steps = [
        Step(model=p.name, inputs=_same(p.input_tensors), outputs=_same(p.output_tensors))
        for p in model.partitions
    ]
    used = {name for partition in model.partitions for name in partition.input_tensors}
    taken: list[Tensor] = [tensor for tensor in triton_tensors(inputs) if tensor.name in used]
    return TritonModel(
        config=ensemble(
            model.name,
            inputs=taken,
            outputs=triton_tensors(outputs),
            steps=steps,
            parameters=common_parameters(model),
            gpu_name=gpu_names(model.partitions),
        )
    )


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}
