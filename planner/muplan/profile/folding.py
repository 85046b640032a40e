"""Shape arithmetic that ONNX's own data propagation cannot follow, evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from muplan.profile.structure import RANDOM
from muplan.profile.tensor_shape import TensorShape
from muserve.tensor_data import SMALL_BYTES

if TYPE_CHECKING:
    import onnx


def fold_known(model: onnx.ModelProto, shapes: Mapping[str, TensorShape]) -> bool:
    """Replace operators whose small result is known by constants; True when anything changed."""
    from onnx import numpy_helper

    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not t.external_data}
    kept, before = [], len(model.graph.node)
    for node in model.graph.node:
        results = _evaluate(node, model, values, shapes)
        if results is None:
            kept.append(node)
            continue
        for name, result in zip(filter(None, node.output), results, strict=True):
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
    if node.op_type in RANDOM or any(
        name not in shapes or shapes[name].size_bytes > SMALL_BYTES for name in node.output if name
    ):
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
    return arrays if all(a.nbytes <= SMALL_BYTES for a in arrays) else None
