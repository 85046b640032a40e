"""Weightless ONNX graphs: the real graph of a network, without its weights.

A weightless graph keeps each big floating-point initialiser as a ``TensorProto`` with name, dims and
dtype whose data location is EXTERNAL, but there is no data file: its ``location`` says instead how to draw
stand-in data, ``muserve-weightless:MEAN:DEVIATION``. The scale follows the operator that consumes the
tensor in the whole graph, so that activations stay finite and of order one, and stays with the tensor when
the graph is cut. ``muserve.weights`` supplies the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muserve.errors import InputError, one_line
from muserve.tensor_data import dense_bytes, refer_to_data, without_base_directory

if TYPE_CHECKING:
    import onnx

TRANSPOSED_SUFFIX = ".transposed"
"""An initialiser ``NAME.transposed`` holds parameter ``NAME`` transposed; weight files may hold either."""

_PREFIX = "muserve-weightless:"
_EMBEDDING_DEVIATION = 0.02  # Devlin et al. 2019 (BERT), initializer_range
_SHIFT_DEVIATION = 0.02  # biases: small, but not zero, so that a dropped bias shows in the outputs
_PASSES_THROUGH = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})


def load_model(file: Path) -> onnx.ModelProto:
    """The ONNX model in ``file``; big data beside it is referred to, not read.

    Weightless initialisers stay weightless. Raises InputError when the file or its data is missing or
    broken; the graph itself is not checked.
    """
    model = parse_model(file)
    refer_to_weights(model, file)
    return model


def parse_model(file: Path) -> onnx.ModelProto:
    """The ONNX model in ``file`` as it is stored. Raises InputError when it cannot be read or is none."""
    import onnx

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: expected a readable ONNX file: {error.strerror}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise InputError(f"{file}: not an ONNX model: {one_line(error)}") from error
    return model


def refer_to_weights(model: onnx.ModelProto, file: Path) -> None:
    """Find the data of all external initialisers of ``model``, which was parsed from ``file``.

    Raises InputError when the data of one is missing or of another size.
    """
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        try:
            if is_weightless(tensor):
                without_base_directory(tensor)
                stand_in_scale(tensor)
            else:
                refer_to_data(tensor, file.parent)
        except InputError as error:
            raise InputError(f"{file}: initialiser {tensor.name}: {error}") from error


def strip_weights(model: onnx.ModelProto, largest_inline_bytes: int) -> onnx.ModelProto:
    """A copy of ``model`` without the data of floating-point initialisers above the given size.

    Integer initialisers (shapes, indices) and small constants stay inline: they are part of the
    graph's meaning and cannot be invented from a seed.
    """
    return hollow_weights(
        model,
        frozenset(
            tensor.name
            for tensor in model.graph.initializer
            if np.issubdtype(initialiser_dtype(tensor), np.floating)
            and dense_bytes(tensor.data_type, tensor.dims) > largest_inline_bytes
        ),
    )


def hollow_weights(
    model: onnx.ModelProto, names: frozenset[str], tables: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """A copy of ``model`` without the data of the initialisers called ``names``; weightless ones stay so.

    ``tables`` are those that rows are looked up in, in the whole network if not in this part of it.
    """
    import onnx

    hollow = onnx.ModelProto()
    hollow.CopyFrom(model)
    uses = _uses(model)
    for tensor in hollow.graph.initializer:
        if tensor.name not in names or is_weightless(tensor):
            continue
        use = _Use("Gather", 0, False) if tensor.name in tables else uses.get(tensor.name)
        mean, deviation = _scale(tuple(tensor.dims), use)
        empty = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        empty.data_location = onnx.TensorProto.EXTERNAL
        empty.external_data.add(key="location", value=f"{_PREFIX}{mean:.6g}:{deviation:.6g}")
        tensor.CopyFrom(empty)
    return hollow


def is_weightless(tensor: onnx.TensorProto) -> bool:
    """Whether the data of ``tensor`` was stripped."""
    return _location(tensor).startswith(_PREFIX)


def missing_weights(model: onnx.ModelProto) -> tuple[onnx.TensorProto, ...]:
    """The initialisers of ``model`` that need data from a seed or a file, in graph order."""
    return tuple(t for t in model.graph.initializer if is_weightless(t))


def stand_in_scale(tensor: onnx.TensorProto) -> tuple[float, float]:
    """(mean, standard deviation) of the stand-in data of a weightless initialiser.

    Raises InputError when its location does not say.
    """
    try:
        mean, deviation = (float(part) for part in _location(tensor).removeprefix(_PREFIX).split(":"))
    except ValueError as error:
        raise InputError(f"expected {_PREFIX}MEAN:DEVIATION, got {_location(tensor)!r}") from error
    return mean, deviation


def initialiser_dtype(tensor: onnx.TensorProto) -> np.dtype[Any]:
    """NumPy's dtype of an initialiser."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


@dataclass(frozen=True, slots=True)
class _Use:
    """How an initialiser is consumed: operator type, input position, and whether it is transposed."""

    op_type: str
    position: int
    transposed: bool


def _uses(model: onnx.ModelProto) -> dict[str, _Use]:
    """The first real consumer of each tensor, seen through Transpose, Cast and the like."""
    uses: dict[str, _Use] = {}
    through: dict[str, tuple[str, bool]] = {}
    for node in model.graph.node:
        if node.op_type in _PASSES_THROUGH:
            origin, turned = through.get(node.input[0], (node.input[0], False))
            through[node.output[0]] = (origin, turned != (node.op_type == "Transpose"))
            continue
        turns = {a.name for a in node.attribute if a.name in ("transA", "transB") and a.i}
        for position, name in enumerate(node.input):
            origin, turned = through.get(name, (name, False))
            turned = turned != (position < 2 and ("transA", "transB")[position] in turns)
            uses.setdefault(origin, _Use(node.op_type, position, turned))
    return uses


def _scale(shape: tuple[int, ...], use: _Use | None) -> tuple[float, float]:
    """(mean, standard deviation) by consumer.

    Matrices and filters get variance 1 / fan-in (LeCun et al. 1998, "Efficient BackProp"): with it a
    residual network without normalisation grows by at most 1.25x in variance per block, where He's
    2 / fan-in would double it.
    """
    if use is None:
        return 0.0, _SHIFT_DEVIATION
    if use.op_type in ("MatMul", "Gemm") and len(shape) > 1 and use.position < 2:
        inner = (use.position == 0) != use.transposed
        return 0.0, 1 / math.sqrt(max(shape[-1] if inner else shape[-2], 1))
    if use.op_type == "Conv" and use.position == 1:
        return 0.0, 1 / math.sqrt(max(math.prod(shape[1:]), 1))
    if use.op_type == "ConvTranspose" and use.position == 1:
        return 0.0, 1 / math.sqrt(max(shape[0] * math.prod(shape[2:]), 1))
    if use.op_type in ("BatchNormalization", "InstanceNormalization", "LayerNormalization"):
        is_scale = use.position == 1 or (use.op_type == "BatchNormalization" and use.position == 4)
        return (1.0 if is_scale else 0.0), 0.0
    if use.op_type in ("Gather", "EmbedLayerNormalization"):
        return 0.0, _EMBEDDING_DEVIATION
    if use.op_type in ("Mul", "Div"):
        return 1.0, 0.0
    if len(shape) > 1 and use.op_type not in ("Add", "Sub"):
        return 0.0, 1 / math.sqrt(max(shape[-1], 1))
    return 0.0, _SHIFT_DEVIATION


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
