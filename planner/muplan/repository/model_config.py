"""Triton model configurations, built as ``ModelConfig`` protobufs and printed as ``config.pbtxt``.

Format: https://github.com/triton-inference-server/common/blob/r24.10/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from muplan.profile.shapes import TensorSpec
from muserve.errors import InputError

# ONNX names of element types -> Triton's, where they differ by more than the prefix.
_TRITON_TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "DOUBLE": "FP64", "BFLOAT16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of a Triton model: ``dtype`` without its ``TYPE_`` prefix, -1 for sizes that vary."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance of a model and the numbers of its GPUs on the node: none on the CPU, several at once.

    ``resource`` is what it holds while it runs, of which the server has one, when Triton limits rates.
    """

    gpus: tuple[int, ...] = ()
    resource: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How many requests Triton may join along the leading axis, and how long it waits for them."""

    max_batch_size: int
    max_queue_delay_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an ensemble; the maps go from the step's tensor names to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def triton_tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Inputs or outputs of an ONNX graph as Triton tensors, the batch axis included.

    Raises InputError for what Triton cannot carry: scalars and some element types.
    """
    return tuple(_triton_tensor(spec) for spec in specs)


def backend_model(
    backend: str,
    name: str,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    parameters: Mapping[str, str],
    instances: Sequence[Instance],
    gpu_name: str,
    decoupled: bool = False,
    batching: Batching | None = None,
) -> Any:
    """A model that ``backend`` runs, with an instance group for each of ``instances``, in their order.

    An instance of one GPU is of KIND_GPU. One of several is of KIND_MODEL: Triton leaves the choice of
    devices to the model then. With ``batching`` every tensor has the batch axis first.
    """
    config = _config(
        name, inputs, outputs, parameters, gpu_name, max_batch_size=batching.max_batch_size if batching else 0
    )
    config.backend = backend
    if batching is not None:
        # No priority levels, no queue policies: with few instances Triton stalls half a second on them.
        delay_us = round(batching.max_queue_delay_ms * 1000)
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    if decoupled:
        config.model_transaction_policy.decoupled = True
    for instance in instances:
        group = config.instance_group.add(count=1, kind=_kind(instance))
        if len(instance.gpus) == 1:
            group.gpus.extend(instance.gpus)
        if instance.resource is not None:
            # Global, since the resources of instances on the CPU would all be those of device 0.
            resource = group.rate_limiter.resources.add(name=instance.resource, count=1)
            setattr(resource, "global", True)
    return config


def ensemble(
    name: str,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    steps: Sequence[Step],
    parameters: Mapping[str, str],
    gpu_name: str,
    max_batch_size: int = 0,
) -> Any:
    """An ensemble; it is decoupled by itself when one of its steps is, and batches when all of them do."""
    config = _config(name, inputs, outputs, parameters, gpu_name, max_batch_size=max_batch_size)
    config.platform = "ensemble"
    for step in steps:
        entry = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        entry.input_map.update(step.inputs)
        entry.output_map.update(step.outputs)
    return config


def add_warm_up(config: Any, batch_size: int, dims: Mapping[str, tuple[int, ...]]) -> None:
    """One request of zeros before the model is ready; ``dims`` without the batch axis when it batches."""
    warm_up = config.model_warmup.add(name=f"zeros_{batch_size}", batch_size=batch_size, count=1)
    for tensor in config.input:
        entry = warm_up.inputs[tensor.name]
        entry.data_type = tensor.data_type
        entry.dims.extend(dims[tensor.name])
        entry.zero_data = True


def on_cpu(config: Any) -> Any:
    """The same model with its instances on the CPU: what ``--model-config-name=cpu`` selects."""
    copy = model_config_pb2.ModelConfig()
    copy.CopyFrom(config)
    for group in copy.instance_group:
        group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
        del group.gpus[:]
    return copy


def config_bytes(config: Any) -> bytes:
    """``config.pbtxt``. Text format drops zeros, but without max_batch_size Triton would guess one."""
    text = text_format.MessageToString(config)
    if config.max_batch_size == 0:
        text += "max_batch_size: 0\n"
    return text.encode()


def parse_config(text: bytes) -> Any:
    """The ``ModelConfig`` of a ``config.pbtxt``; ``google.protobuf.text_format.ParseError`` if it is none."""
    return text_format.Parse(text.decode(), model_config_pb2.ModelConfig())


def _config(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    parameters: Mapping[str, str],
    gpu_name: str,
    *,
    max_batch_size: int,
) -> Any:
    axes = slice(1 if max_batch_size else 0, None)
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=max_batch_size)
    config.version_policy.latest.num_versions = 1
    config.response_cache.enable = False
    for tensor in inputs:
        entry = config.input.add(name=tensor.name, dims=tensor.dims[axes], optional=tensor.optional)
        entry.data_type = model_config_pb2.DataType.Value(f"TYPE_{tensor.dtype}")
    for tensor in outputs:
        output = config.output.add(name=tensor.name, dims=tensor.dims[axes])
        output.data_type = model_config_pb2.DataType.Value(f"TYPE_{tensor.dtype}")
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    config.metric_tags["gpu"] = gpu_name
    return config


def _kind(instance: Instance) -> int:
    kinds = model_config_pb2.ModelInstanceGroup
    if not instance.gpus:
        return int(kinds.KIND_CPU)
    return int(kinds.KIND_GPU if len(instance.gpus) == 1 else kinds.KIND_MODEL)


def _triton_tensor(spec: TensorSpec) -> Tensor:
    from onnx import TensorProto

    if not spec.dims:
        raise InputError(f"tensor {spec.name}: Triton cannot carry scalars, expected at least one axis")
    onnx_type = TensorProto.DataType.Name(spec.onnx_dtype)
    dtype = _TRITON_TYPES.get(onnx_type, onnx_type)
    if f"TYPE_{dtype}" not in model_config_pb2.DataType.keys():  # noqa: SIM118 - an enum wrapper, no dict
        raise InputError(f"tensor {spec.name}: Triton has no element type {onnx_type}")
    return Tensor(name=spec.name, dtype=dtype, dims=tuple(-1 if d is None else d for d in spec.dims))
