"""A generative model under ``serving.queue: native``: Triton's own priority queue orders its requests.

For engines that do not order requests themselves, as Triton's vLLM and TensorRT-LLM backends:

    <llm>                    ensemble of the front; its metrics show true durations
    <llm>_front              predicts, waits for a slot with the priority, calls the engine, all over gRPC
    <llm>_length_predictor   as everywhere
    <llm>_slots              an instance for each request the engine takes; Triton queues by priority here
    <llm>_engine             first come, first served: what it gets, it starts at once

On target embedded the replay engine, told to serve first come first served, stands in for such an engine.

Triton fixes the priority on arrival, so there is no alpha that follows the backlog; each slot is a process
of about 41 MB; tokens take a hop more than from the engine. That is why it is not the default.
"""

from __future__ import annotations

from typing import Any

from muplan.repository.generative import (
    ANSWER,
    PUBLIC,
    generative_configs,
    predictor_model,
    same,
)
from muplan.repository.model_config import Instance, Step, Tensor, backend_model, ensemble
from muplan.repository.triton_model import TritonModel, common_parameters, gpu_names, shim
from muplan.repository.vllm import VLLM_PUBLIC, vllm_configs
from muplan.spec import SpecFile
from muplan.spec_serving import Target
from muplan.staging import StagedModel
from muserve.errors import InputError
from muserve.plan import ModelPlan, Plan
from muserve.queue_order import Order

# A level for each key; a request without a priority comes last, so that nobody jumps the queue without one.
PRIORITY_LEVELS = 2**64 - 1
DEFAULT_LEVEL = 2**63 - 1
MOST_SLOTS = 256
TICKET = Tensor(name="ticket", dtype="STRING", dims=(1,))
SERVED = Tensor(name="served", dtype="BOOL", dims=(1,))
_FIXED_ALPHA = {Order.FCFS: "0", Order.SSJF: "inf"}


def native_configs(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile
) -> tuple[TritonModel, ...]:
    """The ensemble that clients call, front, predictor, slots and engine.

    Raises InputError for more slots than can each be a process.
    """
    slots = model.slots * len(model.partitions[0].replicas)
    if slots > MOST_SLOTS:
        raise InputError(
            f"{spec_file.path}: {model.name}: queue native runs a process for each of engine.slots x "
            f"replicas, expected at most {MOST_SLOTS}, got {slots}"
        )
    predictor = predictor_model(model, spec_file)
    ours = plan.target != Target.NGC
    if ours:
        *_, engine = generative_configs(plan, model, staged, spec_file)
        engine.config.parameters["queue_order"].string_value = "fcfs"
    else:
        _, engine = vllm_configs(plan, model, staged, spec_file)
    parameters = {key: value.string_value for key, value in predictor.config.parameters.items()}
    alpha = _FIXED_ALPHA.get(spec_file.spec.order, parameters["alpha"])
    predictor.config.parameters["alpha"].string_value = parameters["alpha"] = alpha
    common = common_parameters(model)
    front_name, slots_name = staged.spec.native_names
    gpu = gpu_names(model.partitions)
    public = PUBLIC if ours else VLLM_PUBLIC
    step = Step(model=front_name, inputs=same(*public), outputs=same(ANSWER))
    whole = ensemble(
        model.name, inputs=public, outputs=(ANSWER,), steps=(step,), parameters=common, gpu_name=gpu
    )
    front = parameters | {
        "predictor_model": predictor.config.name,
        "slots_model": slots_name,
        "engine_model": engine.config.name,
        "slots": str(slots),
        "queue_limit": str(staged.spec.token_engine.queue_limit),
        "engine_is_ours": "true" if ours else "false",
    }
    return (
        TritonModel(config=whole),
        _python("front", _config(front_name, public, ANSWER, front, gpu, decoupled=True)),
        predictor,
        _python("slots", _queued(_config(slots_name, (TICKET,), SERVED, common, gpu), slots)),
        engine,
    )


def _python(package: str, config: Any) -> TritonModel:
    return TritonModel(config=config, version_files={"model.py": shim(package)})


def _config(
    name: str,
    inputs: tuple[Tensor, ...],
    output: Tensor,
    parameters: dict[str, str],
    gpu: str,
    *,
    decoupled: bool = False,
) -> Any:
    return backend_model(
        "python",
        name,
        inputs=inputs,
        outputs=(output,),
        parameters=parameters,
        instances=(Instance(),),
        gpu_name=gpu,
        decoupled=decoupled,
    )


def _queued(config: Any, instances: int) -> Any:
    """``config`` with so many instances, fed by a priority queue one request at a time."""
    config.instance_group[0].count = instances
    config.dynamic_batching.priority_levels = PRIORITY_LEVELS
    config.dynamic_batching.default_priority_level = DEFAULT_LEVEL
    return config
