"""Shapes of every tensor of an ONNX graph at given input sizes.

ONNX shape inference does the work; where it cannot follow shape arithmetic through its own data
propagation, ``muplan.profile.folding`` evaluates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.profile.folding import follow_arithmetic, has_schema, shape_of
from muplan.profile.tensor_shape import TensorShape
from muserve.errors import InputError, one_line
from muserve.tensor_data import light_copy

if TYPE_CHECKING:
    import onnx

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

    ``sizes`` is keyed as ``dynamic_axes`` names them. Where ONNX cannot infer a shape, the one that the
    file declares counts. Raises InputError when a size is missing, when the sizes do not fit the graph, or
    when a shape depends on the input data and is not declared.
    """
    concrete = _with_sizes(model, sizes)
    shapes = _run_inference(concrete)
    if _without_shape(concrete, shapes) is not None:
        shapes = follow_arithmetic(concrete, shapes, _declared(model, sizes))
    _check_extents(model, shapes)
    stuck = _without_shape(concrete, shapes)
    if stuck is not None:
        raise InputError(f"graph {model.graph.name}: {_reason(concrete, stuck, shapes)}")
    return shapes


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
    """A light copy with concrete input dims and without declared intermediate or output shapes."""
    concrete = light_copy(model)
    for value in _public_inputs(model):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            name = dim.dim_param or f"{value.name}_{axis}"
            if not dim.HasField("dim_value") and name not in sizes:
                raise InputError(
                    f"graph {model.graph.name}: input {value.name} has the dynamic axis {name}: give its size"
                )
    for value in concrete.graph.input:
        _set_sizes(value, sizes)
    for value in concrete.graph.output:
        value.type.tensor_type.ClearField("shape")
    del concrete.graph.value_info[:]
    return concrete


def _declared(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, TensorShape]:
    """The shapes that the file itself gives for results of operators, where ``sizes`` settle them."""
    declared = {}
    for value in (*model.graph.value_info, *model.graph.output):
        concrete = type(value)()
        concrete.CopyFrom(value)
        _set_sizes(concrete, sizes)
        shape = shape_of(concrete.type)
        if shape is not None:
            declared[value.name] = shape
    return declared


def _set_sizes(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        size = sizes.get(dim.dim_param or f"{value.name}_{axis}")
        if not dim.HasField("dim_value") and size is not None:
            dim.Clear()
            dim.dim_value = size


def _without_shape(model: onnx.ModelProto, shapes: Mapping[str, TensorShape]) -> onnx.NodeProto | None:
    """The first operator of whose outputs one has no shape."""
    return next((node for node in model.graph.node if _open_output(node, shapes)), None)


def _open_output(node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> str:
    return next((name for name in node.output if name and name not in shapes), "")


def _reason(model: onnx.ModelProto, node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> str:
    """Why inference stopped at ``node``, if possible in ONNX's words."""
    from onnx import shape_inference

    tensor = _open_output(node, shapes)
    if not has_schema(node):
        return (
            f"operator {node.name or tensor}: {node.op_type} of domain {node.domain or 'ai.onnx'} is not "
            f"supported, unless the file declares the shape of {tensor}"
        )
    try:
        shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        why = f": {one_line(error)}"
    else:
        why = f": {node.op_type} makes it from data that only a run knows"
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
        shape = shape_of(value.type)
        if shape is not None:
            shapes[value.name] = shape
    return shapes
