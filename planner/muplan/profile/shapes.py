"""Shapes of every tensor of an ONNX graph at given input sizes, and which axes stay dynamic.

ONNX shape inference does the work. Where it cannot follow shape arithmetic through its own data
propagation, integer sub-expressions whose inputs are known by then are evaluated with the ONNX
reference implementation and inference runs again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muserve.errors import InputError
from muserve.weightless import strip_weights

if TYPE_CHECKING:
    import onnx

_LARGEST_CONSTANT_BYTES = 1024
_MOST_ROUNDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """Element type (``onnx.TensorProto.DataType``) and concrete dims of one tensor."""

    onnx_dtype: int
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense tensor."""
        from onnx import helper

        return self.elements * int(np.dtype(helper.tensor_dtype_to_np_dtype(self.onnx_dtype)).itemsize)


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

    ``sizes`` is keyed as ``dynamic_axes`` names them. Raises InputError when a size is missing, when
    the sizes do not fit the graph, or when a shape depends on the input data.
    """
    concrete = _with_sizes(model, sizes)
    for _ in range(_MOST_ROUNDS):
        shapes = _run_inference(concrete)
        unknown = next(
            (n for node in concrete.graph.node for n in node.output if n and n not in shapes), None
        )
        if unknown is None:
            return shapes
        if not _fold_known(concrete, shapes):
            break
    raise InputError(
        f"graph {model.graph.name}: the shape of tensor {unknown} cannot be inferred from the input sizes"
        f"{_reason(concrete)}"
    )


def symbolic_dims(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int | str | None, ...]]]:
    """Element type and dims of every tensor: int where fixed, axis name where equal to it, else None.

    Found by inferring shapes at several sizes of each dynamic axis and watching which dims follow.
    """
    axes = dynamic_axes(model)
    base = {axis: 64 + 32 * position for position, axis in enumerate(axes)}
    reference = infer_shapes(model, base)
    probes = {axis: infer_shapes(model, {**base, axis: base[axis] + 16}) for axis in axes}
    result: dict[str, tuple[int, tuple[int | str | None, ...]]] = {}
    for name, shape in reference.items():
        dims: list[int | str | None] = []
        for position, size in enumerate(shape.dims):
            moved = {
                a: probes[a][name].dims[position] for a in axes if probes[a][name].dims[position] != size
            }
            if not moved:
                dims.append(size)
                continue
            axis, value = next(iter(moved.items()))
            dims.append(axis if len(moved) == 1 and (size, value) == (base[axis], base[axis] + 16) else None)
        result[name] = (shape.onnx_dtype, tuple(dims))
    return result


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
    concrete = strip_weights(model, _LARGEST_CONSTANT_BYTES)
    del concrete.graph.value_info[:]
    for value in _public_inputs(concrete):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            name = dim.dim_param or f"{value.name}_{axis}"
            if name not in sizes:
                raise InputError(
                    f"graph {model.graph.name}: input {value.name} has the dynamic axis {name}: give its size"
                )
            dim.Clear()
            dim.dim_value = sizes[name]
    for value in concrete.graph.output:
        value.type.tensor_type.ClearField("shape")
    return concrete


def _reason(model: onnx.ModelProto) -> str:
    """Why inference stopped, in ONNX's words; empty when it found nothing wrong."""
    from onnx import shape_inference

    try:
        shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        return f": {' '.join(str(error).split())}"
    return ""


def _run_inference(model: onnx.ModelProto) -> dict[str, TensorShape]:
    """The shapes that ONNX finds; operators it cannot follow are left out."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {t.name: TensorShape(onnx_dtype=t.data_type, dims=tuple(t.dims)) for t in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        known = tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
        if known and tensor.elem_type:
            dims = tuple(d.dim_value for d in tensor.shape.dim)
            shapes[value.name] = TensorShape(onnx_dtype=tensor.elem_type, dims=dims)
    return shapes


def _fold_known(model: onnx.ModelProto, shapes: Mapping[str, TensorShape]) -> bool:
    """Replace operators whose small result is known by constants; True when anything changed."""
    from onnx import numpy_helper

    values = {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if not t.external_data and np.prod(t.dims) * 8 <= _LARGEST_CONSTANT_BYTES
    }
    kept, before = [], len(model.graph.node)
    for node in model.graph.node:
        results = _evaluate(node, model, values, shapes)
        if results is None:
            kept.append(node)
            continue
        for name, result in zip(node.output, results, strict=True):
            values[name] = result
            model.graph.initializer.append(numpy_helper.from_array(result, name))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return len(kept) < before


def _evaluate(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    values: Mapping[str, np.ndarray[Any, Any]],
    shapes: Mapping[str, TensorShape],
) -> list[np.ndarray[Any, Any]] | None:
    """The outputs of one operator when they are known and small, else None."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape" and node.input[0] in shapes:
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        dims = shapes[node.input[0]].dims[bounds.get("start", 0) : bounds.get("end")]
        return [np.array(dims, np.int64)]
    if not node.input or any(name and name not in values for name in node.input):
        return None
    if any(name in shapes and shapes[name].size_bytes > _LARGEST_CONSTANT_BYTES for name in node.output):
        return None
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_empty_tensor_value_info(name) for name in node.input if name],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        results = ReferenceEvaluator(single).run(None, {n: values[n] for n in node.input if n})
    except Exception:  # an operator the reference lacks: leave it to shape inference
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(a.nbytes <= _LARGEST_CONSTANT_BYTES for a in arrays) else None
