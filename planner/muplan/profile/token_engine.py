"""The kernels of a token engine: a generative model's graph after the fusions that engines make by hand.

``operator_costs`` counts what graph compilers make of any graph. vLLM, TensorRT-LLM and their like know
that they run a transformer, and do three things more:

* attention is one kernel, whose scores never reach device memory (Dao et al. 2022, arXiv 2205.14135);
* products of one tensor with several matrices - queries, keys and values; gate and up - are one product;
* new keys and values are written into the cache in place (Kwon et al. 2023, arXiv 2309.06180).

The masked half of a prompt's scores is counted as computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from muplan.profile.operators import BATCH_AXIS, OperatorCost, operator_costs

if TYPE_CHECKING:
    import onnx


def engine_costs(model: onnx.ModelProto, batch: int, dims: Mapping[str, int]) -> tuple[OperatorCost, ...]:
    """Costs of all operators of ``model`` in a token engine; arguments and errors as ``operator_costs``."""
    costs = list(operator_costs(model, batch, dims))
    _join_products(model, costs)
    _join_attention(model, costs)
    _append_in_place(model, costs, {**dims, BATCH_AXIS: batch})
    return tuple(costs)


def _join_products(model: onnx.ModelProto, costs: list[OperatorCost]) -> None:
    met = set()
    for position, node in enumerate(model.graph.node):
        if node.op_type == "MatMul":
            if node.input[0] in met:
                costs[position] = replace(costs[position], launches=False)
            met.add(node.input[0])


def _join_attention(model: onnx.ModelProto, costs: list[OperatorCost]) -> None:
    """Products on both sides of a softmax are one kernel with it; scores are neither written nor read."""
    nodes = model.graph.node
    producers = {name: position for position, node in enumerate(nodes) for name in node.output}
    readers = {name: position for position, node in enumerate(nodes) for name in node.input}
    for softmax, node in enumerate(nodes):
        mixing = readers.get(node.output[0])
        if node.op_type != "Softmax" or mixing is None or nodes[mixing].op_type != "MatMul":
            continue
        scoring = producers[node.input[0]]
        while nodes[scoring].op_type != "MatMul":
            scoring = producers[nodes[scoring].input[0]]
        scores = costs[scoring].bytes_written
        costs[scoring] = replace(costs[scoring], bytes_written=0)
        for position in (softmax, mixing):
            cost = costs[position]
            costs[position] = replace(cost, bytes_read=cost.bytes_read - scores, launches=False)
        costs[softmax] = replace(costs[softmax], bytes_written=0)


def _append_in_place(model: onnx.ModelProto, costs: list[OperatorCost], sizes: Mapping[str, int]) -> None:
    """What a concatenation takes from a public input is a cache that stays where it is."""
    kept = {value.name: _size_bytes(value, sizes) for value in model.graph.input}
    for position, node in enumerate(model.graph.node):
        if node.op_type == "Concat":
            cache = sum(kept.get(name, 0) for name in node.input)
            cost = costs[position]
            costs[position] = replace(
                cost, bytes_read=cost.bytes_read - cache, bytes_written=cost.bytes_written - cache
            )


def _size_bytes(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> int:
    from onnx import helper

    tensor = value.type.tensor_type
    dims = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
    return math.prod(dims) * int(helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
