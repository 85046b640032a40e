"""Several ways of writing the same ONNX graph become one; what the graph computes stays.

Local functions are inlined, ``Constant`` operators and initialisers listed as inputs become plain
initialisers, operators stand in topological order, negative dims are free dims, and types of public
outputs that the file leaves open are inferred.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from muplan.profile.structure import in_onnx_domain
from muplan.profile.symbolic import symbolic_dims
from muserve.errors import InputError, one_line

if TYPE_CHECKING:
    import onnx

_FIRST_IR_WITH_PLAIN_INITIALISERS = 4


def operator_name(node: onnx.NodeProto) -> str:
    """How messages call an operator: its name, else what it makes."""
    return node.name or next((f"making {name}" for name in node.output if name), node.op_type)


def sort_operators(graph: onnx.GraphProto) -> None:
    """Put operators in topological order; those that are in order already keep it.

    Raises InputError for a cycle and for a tensor that nothing makes.
    """
    makers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    readers: dict[int, list[int]] = {}
    waiting = []
    for position, node in enumerate(graph.node):
        read = dict.fromkeys(name for name in node.input if name and name not in given)
        unmade = next((name for name in read if name not in makers), None)
        if unmade is not None:
            raise InputError(f"operator {operator_name(node)}: reads {unmade}, which nothing makes")
        sources = {makers[name] for name in read}
        waiting.append(len(sources))
        for source in sources:
            readers.setdefault(source, []).append(position)
    ready = [position for position, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(waiting):
        stuck = next(position for position, count in enumerate(waiting) if count)
        raise InputError(f"operator {operator_name(graph.node[stuck])}: waits for itself, expected no cycle")
    if order != sorted(order):
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend(nodes[position] for position in order)


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the bodies of its local functions in place of their calls."""
    from onnx import inliner

    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except RuntimeError as error:
        raise InputError(f"its local functions cannot be inlined: {one_line(error)}") from error


def plain_initialisers(model: onnx.ModelProto) -> None:
    """One form of constant: no ``Constant`` operators, and no initialiser that a caller may override."""
    graph = model.graph
    nodes = list(graph.node)
    constants = {i: tensor for i, node in enumerate(nodes) if (tensor := _constant(node)) is not None}
    if constants:
        del graph.node[:]
        graph.node.extend(node for i, node in enumerate(nodes) if i not in constants)
        graph.initializer.extend(constants.values())
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _FIRST_IR_WITH_PLAIN_INITIALISERS)


def free_negative_dims(graph: onnx.GraphProto) -> None:
    """Some exporters write a free dim as -1, where ONNX wants it without a value."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.Clear()


def complete_outputs(model: onnx.ModelProto) -> None:
    """Infer element type and dims of public outputs that lack one; what cannot be inferred stays open."""
    from onnx import helper

    open_outputs = [value for value in model.graph.output if not is_complete(value)]
    if not open_outputs:
        return
    try:
        known = symbolic_dims(model)
    except InputError:
        return
    for value in open_outputs:
        dtype, dims = known[value.name]
        value.CopyFrom(helper.make_tensor_value_info(value.name, dtype, list(dims)))


def is_complete(value: onnx.ValueInfoProto) -> bool:
    """Whether element type and number of dimensions are declared."""
    return bool(value.type.tensor_type.elem_type) and value.type.tensor_type.HasField("shape")


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a ``Constant`` operator; None for any other operator and for sparse values."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    if node.op_type != "Constant" or not in_onnx_domain(node) or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    tensor = TensorProto()
    match attribute.name:
        case "value":
            tensor.CopyFrom(attribute.t)
        case "value_float" | "value_floats":
            tensor = numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.float32))
        case "value_int" | "value_ints":
            tensor = numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.int64))
        case "value_string" | "value_strings":
            tensor = numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), object))
        case _:
            return None
    tensor.name = node.output[0]
    return tensor
