"""Shapes of every tensor of an ONNX graph at given input sizes.

ONNX shape inference does the work. Where it cannot follow shape arithmetic through its own data
propagation, integer sub-expressions whose inputs are known by then are evaluated with the ONNX
reference implementation and inference runs again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.profile.folding import fold_known
from muplan.profile.tensor_shape import TensorShape
from muserve.errors import InputError
from muserve.tensor_data import light_copy

if TYPE_CHECKING:
    import onnx

_MOST_ROUNDS = 16
_LARGEST_TENSOR_BYTES = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A graph input or output: name, ``onnx.TensorProto.DataType``, dims with None where dynamic."""

    name: str
    onnx_dtype: int
    dims: tuple[int | None, ...]


def dynamic_axes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the symbolic input dims in order of appearance; ``<input>_<axis>`` for unnamed ones."""
    names: dict[str, None] = {}
    for value in _public_inputs(model):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                names[dim.dim_param or f"{value.name}_{axis}"] = None
    return tuple(names)


def infer_shapes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, TensorShape]:
    """The shape of every tensor when the symbolic input dims have the given sizes.

    ``sizes`` is keyed as ``dynamic_axes`` names them. Operators that ONNX does not know have the shapes
    that the file declares for their outputs. Raises InputError when a size is missing, when the sizes do
    not fit the graph, or when a shape depends on the input data.
    """
    concrete = _with_sizes(model, sizes)
    for _ in range(_MOST_ROUNDS):
        shapes = _run_inference(concrete)
        _check_extents(model, shapes)
        stuck = [node for node in concrete.graph.node if _unknown_output(node, shapes)]
        if not stuck:
            return shapes
        if not fold_known(concrete, shapes):
            break
    raise InputError(f"graph {model.graph.name}: {_reason(concrete, stuck[0], shapes)}")


def tensor_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a caller must know of a graph: its inputs and outputs, in graph order."""
    return (
        tuple(_spec(value) for value in _public_inputs(model)),
        tuple(_spec(value) for value in model.graph.output),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorSpec(name=value.name, onnx_dtype=tensor.elem_type, dims=dims)


def _public_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs a client gives; before IR version 4 initialisers are listed as inputs as well."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _with_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A light copy with concrete input dims, and declared shapes only where ONNX cannot infer them."""
    concrete = light_copy(model)
    for value in _public_inputs(model):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            name = dim.dim_param or f"{value.name}_{axis}"
            if not dim.HasField("dim_value") and name not in sizes:
                raise InputError(
                    f"graph {model.graph.name}: input {value.name} has the dynamic axis {name}: give its size"
                )
    for value in concrete.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                size = sizes[dim.dim_param or f"{value.name}_{axis}"]
                dim.Clear()
                dim.dim_value = size
    foreign = {name for node in model.graph.node if not _has_schema(node) for name in node.output}
    declared = [value for value in concrete.graph.value_info if value.name in foreign]
    for value in (*declared, *concrete.graph.output):
        if value.name not in foreign:
            value.type.tensor_type.ClearField("shape")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                size = sizes[dim.dim_param]
                dim.Clear()
                dim.dim_value = size
    del concrete.graph.value_info[:]
    concrete.graph.value_info.extend(declared)
    return concrete


def _has_schema(node: onnx.NodeProto) -> bool:
    from onnx import defs

    return defs.has(node.op_type, domain="" if node.domain == "ai.onnx" else node.domain)


def _unknown_output(node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> str:
    """The first output without a shape; empty when all are known."""
    return next((name for name in node.output if name and name not in shapes), "")


def _reason(model: onnx.ModelProto, node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> str:
    """Why inference stopped at ``node``, if possible in ONNX's words."""
    from onnx import shape_inference

    tensor = _unknown_output(node, shapes)
    if not _has_schema(node):
        return (
            f"operator {node.name or tensor}: {node.op_type} of domain {node.domain or 'ai.onnx'} is not "
            f"supported, unless the file declares the shape of {tensor}"
        )
    try:
        shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        why = f": {' '.join(str(error).split())[:300]}"
    else:
        why = f": {node.op_type} makes it from values that only a run knows"
    return f"the shape of tensor {tensor} cannot be inferred from the input sizes{why}"


def _check_extents(model: onnx.ModelProto, shapes: Mapping[str, TensorShape]) -> None:
    """InputError for a tensor of negative size, which small inputs give, or of one beyond any memory."""
    for name, shape in shapes.items():
        if any(size < 0 for size in shape.dims) or shape.size_bytes > _LARGEST_TENSOR_BYTES:
            raise InputError(
                f"graph {model.graph.name}: at these input sizes tensor {name} would have the shape "
                f"{list(shape.dims)}"
            )


def _run_inference(model: onnx.ModelProto) -> dict[str, TensorShape]:
    """The shapes that ONNX finds; operators it cannot follow are left out."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {t.name: TensorShape(onnx_dtype=t.data_type, dims=tuple(t.dims)) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        known = tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
        if known and tensor.elem_type:
            dims = tuple(d.dim_value for d in tensor.shape.dim)
            shapes[value.name] = TensorShape(onnx_dtype=tensor.elem_type, dims=dims)
    return shapes
