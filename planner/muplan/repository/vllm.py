"""A generative model on target ngc: an ensemble around an engine that Triton's vLLM backend runs.

Format: ``src/model.py`` of https://github.com/triton-inference-server/vllm_backend. That backend hands vLLM
no priority of a request, so there is no length predictor in front of it: nothing could use its answer, and
requests are served in the order of vLLM's own scheduler. The ensemble gives the model the name, inputs and
outputs that it has on target embedded, and request durations that last until the final token.
"""

from __future__ import annotations

import json

from muplan.repository.generative import ANSWER, PUBLIC, memory_share, same
from muplan.repository.model_config import Step, Tensor, backend_model, ensemble
from muplan.repository.triton_model import (
    TritonModel,
    common_parameters,
    gpu_names,
    replica_instances,
    replica_parameters,
)
from muplan.spec import SpecFile
from muplan.spec_paths import engine_model
from muplan.staging import StagedModel, longest_request
from muserve.errors import InputError
from muserve.plan import ModelPlan, Plan

ENGINE_FILE = "model.json"
# Triton's OpenAI-compatible front end sets them with every request to a model of the vLLM kind.
TOKEN_COUNTS = tuple(
    Tensor(name=f"return_num_{side}_tokens", dtype="BOOL", dims=(1,), optional=True)
    for side in ("input", "output")
)
VLLM_PUBLIC = (*PUBLIC, *TOKEN_COUNTS)
_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_ORDER = "vllm: first come, first served (its backend takes no priority of a request)"


def vllm_configs(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile
) -> tuple[TritonModel, ...]:
    """The ensemble that clients call, and the engine.

    Raises InputError for several replicas of which one has several GPUs: the backend takes the devices of a
    tensor-parallel instance from a parameter, which all instances of a model share.
    """
    partition = model.partitions[0]
    wide = [replica for replica in partition.replicas if len(replica.gpus) > 1]
    if wide and len(partition.replicas) > 1:
        raise InputError(
            f"{model.name}: target ngc serves one tensor-parallel replica or any number of replicas with one "
            f"GPU each, the plan has {len(partition.replicas)} replicas, one of {len(wide[0].gpus)} GPUs"
        )
    return _ensemble(model), _engine(plan, model, staged, engine_model(staged.spec, spec_file))


def _ensemble(model: ModelPlan) -> TritonModel:
    step = Step(model=model.partitions[0].name, inputs=same(*VLLM_PUBLIC), outputs=same(ANSWER))
    return TritonModel(
        config=ensemble(
            model.name,
            inputs=VLLM_PUBLIC,
            outputs=(ANSWER,),
            steps=(step,),
            parameters=common_parameters(model),
            gpu_name=gpu_names(model.partitions),
        )
    )


def _engine(plan: Plan, model: ModelPlan, staged: StagedModel, loaded: str) -> TritonModel:
    partition = model.partitions[0]
    instances = replica_instances(plan, partition)
    parameters = {
        **common_parameters(model),
        **replica_parameters(plan, partition),
        "queue_order": _ORDER,
        "REPORT_CUSTOM_METRICS": "true",
    }
    if len(instances[0].gpus) > 1:
        parameters["GPU_DEVICE_IDS"] = ",".join(map(str, instances[0].gpus))
    return TritonModel(
        config=backend_model(
            "vllm",
            partition.name,
            inputs=VLLM_PUBLIC,
            outputs=(ANSWER,),
            parameters=parameters,
            instances=instances,
            gpu_name=gpu_names(model.partitions),
            decoupled=True,
        ),
        version_files={ENGINE_FILE: _engine_arguments(plan, model, staged, loaded)},
    )


def _engine_arguments(plan: Plan, model: ModelPlan, staged: StagedModel, loaded: str) -> bytes:
    """vLLM's ``AsyncEngineArgs``: the model, and what the plan gives it of its GPUs."""
    assert staged.source.llm is not None, "a generative source has an architecture"
    partition = model.partitions[0]
    arguments = {
        "model": loaded,
        "dtype": _DTYPES.get(staged.source.llm.dtype, "auto"),
        "tensor_parallel_size": len(partition.replicas[0].gpus),
        "max_num_seqs": model.slots,
        "max_model_len": longest_request(staged.spec, staged.source.llm),
        "gpu_memory_utilization": memory_share(plan, partition),
        "scheduling_policy": "priority",
        "disable_log_stats": False,
    }
    return (json.dumps(arguments, indent=2, sort_keys=True) + "\n").encode()
