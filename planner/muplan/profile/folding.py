"""Shapes that ONNX's inference of a whole graph leaves open, because it cannot follow the arithmetic.

One walk over the operators with concrete numbers: small results whose operands are known are evaluated
with the ONNX reference implementation, and operators whose shape was open are inferred alone, with what
is known of their operands by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from muplan.profile.structure import RANDOM
from muplan.profile.tensor_shape import TensorShape
from muserve.tensor_data import SMALL_BYTES

if TYPE_CHECKING:
    import onnx

Values = dict[str, np.ndarray[Any, np.dtype[Any]]]


def follow_arithmetic(
    model: onnx.ModelProto, known: Mapping[str, TensorShape], declared: Mapping[str, TensorShape]
) -> dict[str, TensorShape]:
    """``known`` and all shapes that evaluating small tensors adds to it, else those ``declared``.

    ``model`` must have concrete input dims and operators in topological order.
    """
    from onnx import numpy_helper

    shapes = dict(known)
    values: Values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if any(name and name not in shapes for name in node.output):
            shapes.update(_infer_alone(node, model, values, shapes, declared))
        values.update(_evaluate(node, model, values, shapes))
    return shapes


def shape_of(type_proto: onnx.TypeProto) -> TensorShape | None:
    """The concrete shape in ``type_proto``; None when it is not a tensor or a dim is open."""
    tensor = type_proto.tensor_type
    known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    if not known or not tensor.elem_type:
        return None
    return TensorShape(onnx_dtype=tensor.elem_type, dims=tuple(dim.dim_value for dim in tensor.shape.dim))


def _infer_alone(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    values: Values,
    shapes: Mapping[str, TensorShape],
    declared: Mapping[str, TensorShape],
) -> dict[str, TensorShape]:
    """Shapes of the outputs of one operator, ``declared`` ones where its operands do not tell.

    Empty when ONNX finds that its operands do not fit each other.
    """
    from onnx import checker, defs, helper, numpy_helper, shape_inference

    given = {name: declared[name] for name in node.output if name in declared}
    named = [name for name in node.input if name]
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    if not has_schema(node) or any(name not in shapes for name in named):
        return given
    try:
        types = shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, versions[node.domain or "ai.onnx"], _schema_domain(node)),
            node,
            {n: helper.make_tensor_type_proto(shapes[n].onnx_dtype, shapes[n].dims) for n in named},
            {n: numpy_helper.from_array(values[n], n) for n in named if n in values},
            opset_imports=list(model.opset_import),
            ir_version=model.ir_version,
        )
    except shape_inference.InferenceError:
        return {}
    except checker.ValidationError:  # an operator deprecated in this opset
        return given
    found = {name: shape_of(type_proto) for name, type_proto in types.items() if name}
    return given | {name: shape for name, shape in found.items() if shape is not None}


def has_schema(node: onnx.NodeProto) -> bool:
    """Whether ONNX knows the operator."""
    from onnx import defs

    return defs.has(node.op_type, domain=_schema_domain(node))


def _schema_domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _evaluate(
    node: onnx.NodeProto, model: onnx.ModelProto, values: Values, shapes: Mapping[str, TensorShape]
) -> Values:
    """The outputs of one operator when they are known and small, else nothing."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape" and node.input[0] in shapes:
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        dims = shapes[node.input[0]].dims[bounds.get("start", 0) : bounds.get("end")]
        return {node.output[0]: np.array(dims, np.int64)}
    named = [name for name in node.output if name]
    small = all(name in shapes and shapes[name].size_bytes <= SMALL_BYTES for name in named)
    if not small or node.op_type in RANDOM or any(name and name not in values for name in node.input):
        return {}
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_empty_tensor_value_info(name) for name in node.input if name],
        [helper.make_empty_tensor_value_info(name) for name in named],
    )
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(single).run(None, {n: values[n] for n in node.input if n})
    except Exception:  # an operator the reference lacks: nothing is lost but its value
        return {}
    return dict(zip(named, map(np.asarray, results), strict=True))
