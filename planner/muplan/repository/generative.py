"""A generative model on target embedded: an ensemble of the length predictor and the engine.

Inputs and outputs are those of Triton's vLLM backend. The predictor hands its estimate and the priority
made from it to the engine as tensors; the engine's inputs for them are optional, so that it can be
called directly as well.
"""

from __future__ import annotations

import json
import math

from muplan.repository.model_config import Instance, Step, Tensor, backend_model, ensemble
from muplan.repository.triton_model import (
    TritonModel,
    common_parameters,
    gpu_names,
    number,
    replica_instances,
    replica_parameters,
    shim,
)
from muplan.spec import Spec, SpecFile
from muplan.spec_paths import engine_environment, engine_model, engine_name
from muplan.staging import StagedModel, longest_request
from muserve.plan import ModelPlan, PartitionPlan, Phase, Plan
from muserve.queue_order import PARAMETERS_OF

TEXT = Tensor(name="text_input", dtype="STRING", dims=(1,))
STREAM = Tensor(name="stream", dtype="BOOL", dims=(1,), optional=True)
SAMPLING = Tensor(name="sampling_parameters", dtype="STRING", dims=(1,), optional=True)
EXCLUDE = Tensor(name="exclude_input_in_output", dtype="BOOL", dims=(1,), optional=True)
ANSWER = Tensor(name="text_output", dtype="STRING", dims=(-1,))
PREDICTED = Tensor(name="predicted_tokens", dtype="FP32", dims=(1,), optional=True)
PRIORITY = Tensor(name="priority", dtype="UINT64", dims=(1,), optional=True)
ARRIVAL = Tensor(name="arrival_ms", dtype="UINT64", dims=(1,), optional=True)

PUBLIC = (TEXT, STREAM, SAMPLING, EXCLUDE)
_ADVICE = (PREDICTED, PRIORITY, ARRIVAL)


def generative_configs(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile
) -> tuple[TritonModel, ...]:
    """The ensemble that clients call, the predictor and the engine."""
    return (
        _ensemble(model),
        predictor_model(model, spec_file),
        _engine(plan, model, staged, spec_file),
    )


def _ensemble(model: ModelPlan) -> TritonModel:
    predictor = Step(
        model=_predictor_name(model),
        inputs=same(TEXT, SAMPLING),
        outputs=same(*_ADVICE),
    )
    engine = Step(model=model.partitions[0].name, inputs=same(*PUBLIC, *_ADVICE), outputs=same(ANSWER))
    return TritonModel(
        config=ensemble(
            model.name,
            inputs=PUBLIC,
            outputs=(ANSWER,),
            steps=(predictor, engine),
            parameters=common_parameters(model),
            gpu_name=gpu_names(model.partitions),
        )
    )


def predictor_model(model: ModelPlan, spec_file: SpecFile) -> TritonModel:
    """The length predictor in front of a generative model."""
    engine = model.partitions[0]
    # Order matters when the engine is busy: a token then costs a step with all slots running.
    growth_ms = engine.decode_growth_ms * (model.slots - 1)
    parameters = {
        **common_parameters(model),
        "gpu": gpu_names(model.partitions),
        "const_ms": number(engine.law(Phase.PREFILL).latency_ms),
        "ms_per_token": number(engine.law(Phase.DECODE).latency_ms + growth_ms),
        "alpha": number(spec_file.spec.order_parameters.alpha),
    }
    node_files = {}
    if spec_file.spec.predictor.file is not None:
        parameters["predictor_file"] = "predictor"
        node_files["predictor"] = spec_file.resolve(spec_file.spec.predictor.file)
    return TritonModel(
        config=backend_model(
            "python",
            _predictor_name(model),
            inputs=(TEXT, SAMPLING),
            outputs=_ADVICE,
            parameters=parameters,
            instances=(Instance(),),
            gpu_name=gpu_names(model.partitions),
        ),
        version_files={"model.py": shim("length_predictor")},
        node_files=node_files,
    )


def _engine(plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile) -> TritonModel:
    engine = staged.spec.token_engine
    name = engine_name(staged.spec, spec_file.spec.serving.target)
    partition = model.partitions[0]
    prefill, decode = partition.law(Phase.PREFILL), partition.law(Phase.DECODE)
    parameters = {
        **common_parameters(model),
        **replica_parameters(plan, partition),
        "engine": name,
        "batching": engine.batching,
        "slots": str(engine.slots),
        "queue_limit": str(engine.queue_limit),
        "queue_order": spec_file.spec.order,
        "alpha": number(spec_file.spec.order_parameters.alpha),
        **_order_parameters(spec_file.spec),
        "prefill_ms": number(prefill.latency_ms),
        "prefill_sensitivity": number(prefill.sensitivity.value),
        "decode_ms": number(decode.latency_ms),
        "decode_sensitivity": number(decode.sensitivity.value),
        "decode_ms_per_running_request": number(partition.decode_growth_ms),
        "predictor_model": _predictor_name(model),
    }
    if engine.max_queue_delay_ms:
        parameters["max_queue_delay_ms"] = number(engine.max_queue_delay_ms)
    if name != "replay":
        parameters |= _loaded(plan, model, staged, spec_file)
    node_files = {}
    if engine.answers is not None:
        answers = f"answers/{model.name}.jsonl"
        parameters["answers_file"] = answers
        node_files[answers] = spec_file.resolve(engine.answers)
    if staged.spec.tokenizer is not None:
        tokenizer = f"tokenizers/{model.name}.json"
        parameters["tokenizer_file"] = tokenizer
        node_files[tokenizer] = spec_file.resolve(staged.spec.tokenizer)
    return TritonModel(
        config=backend_model(
            "python",
            partition.name,
            inputs=(*PUBLIC, *_ADVICE),
            outputs=(ANSWER,),
            parameters=parameters,
            instances=replica_instances(plan, partition),
            gpu_name=gpu_names(model.partitions),
            decoupled=True,
        ),
        version_files={"model.py": shim("llm_engine")},
        node_files=node_files,
    )


def _loaded(plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile) -> dict[str, str]:
    """What an engine that loads a model is told, and the environment that Triton runs it in."""
    assert staged.source.llm is not None, "a generative source has an architecture"
    engine = staged.spec.token_engine
    parameters = {
        "engine_model": engine_model(staged.spec, spec_file),
        "max_model_len": str(longest_request(staged.spec, staged.source.llm)),
        "gpu_memory_utilization": number(memory_share(plan, model.partitions[0])),
    }
    if engine.arguments:
        parameters["engine_arguments"] = json.dumps(engine.arguments, sort_keys=True)
    environment = engine_environment(engine, spec_file)
    if environment is not None:
        parameters["EXECUTION_ENV_PATH"] = str(environment)
    return parameters


def memory_share(plan: Plan, partition: PartitionPlan) -> float:
    """The planned share of a GPU's memory, rounded up; vLLM's cache fills what the weights leave of it."""
    smallest = min(plan.gpu(name).memory_bytes for name in partition.replicas[0].gpus)
    return math.ceil(partition.memory_bytes / smallest * 1000) / 1000


def _predictor_name(model: ModelPlan) -> str:
    return f"{model.name}_length_predictor"


def same(*tensors: Tensor) -> dict[str, str]:
    """The tensor map of an ensemble step whose tensors have the names that the ensemble gives them."""
    return {tensor.name: tensor.name for tensor in tensors}


def _order_parameters(spec: Spec) -> dict[str, str]:
    return {name: number(getattr(spec.order_parameters, name)) for name in PARAMETERS_OF[spec.order]}
