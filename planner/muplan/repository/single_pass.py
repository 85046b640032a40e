"""A single-pass model in Triton: a model per partition, and an ensemble over several."""

from __future__ import annotations

from collections.abc import Sequence

from muplan.profile.shapes import tensor_specs
from muplan.repository.model_config import Step, ensemble, triton_tensors
from muplan.repository.onnx_stage import onnx_stages
from muplan.repository.python_stage import python_stages
from muplan.repository.triton_model import TritonModel, common_parameters, gpu_names
from muplan.spec import SpecFile
from muplan.spec_serving import Target
from muplan.staging import StagedModel
from muserve.plan import ModelPlan, Plan


def single_pass_configs(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile, crowded: frozenset[str]
) -> Sequence[TritonModel]:
    """The Triton models of ``model``; the first is the one that clients call.

    ``crowded`` names the GPUs on which instances take turns (``muplan.repository.contention``).
    """
    stages = onnx_stages if plan.target == Target.NGC else python_stages
    made = stages(plan, model, staged, spec_file, crowded)
    return made if len(made) == 1 else (_ensemble(model, staged), *made)


def _ensemble(model: ModelPlan, staged: StagedModel) -> TritonModel:
    """Chains the stages by tensor name: each takes the public inputs and earlier results it needs."""
    assert staged.source.graph is not None, "a single-pass model has a graph"
    inputs, outputs = tensor_specs(staged.source.graph)
    steps = [
        Step(model=p.name, inputs=_same(p.input_tensors), outputs=_same(p.output_tensors))
        for p in model.partitions
    ]
    used = {name for partition in model.partitions for name in partition.input_tensors}
    batching = staged.spec.batching
    return TritonModel(
        config=ensemble(
            model.name,
            inputs=[tensor for tensor in triton_tensors(inputs) if tensor.name in used],
            outputs=triton_tensors(outputs),
            steps=steps,
            parameters=common_parameters(model),
            gpu_name=gpu_names(model.partitions),
            max_batch_size=batching.max_batch_size if batching else 0,
        )
    )


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}
