#!/usr/bin/env python3
"""Fuzz the ONNX importer: any file is planned and cut, or refused by an InputError of one line.

python tools/fuzz_onnx.py --seconds 300
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import onnx
from fuzzing import main, mutate_bytes
from onnx import helper, numpy_helper, parser

from muplan.onnx_file import read_graph
from muplan.profile.operators import operator_costs
from muplan.profile.shapes import dynamic_axes, tensor_specs
from muplan.profile.structure import structure
from muplan.splitting import save_model, split, weight_bytes

ODD_INTEGERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 64, 2**31, 2**40, 2**63 - 1)

CONVOLUTION = """
    <ir_version: 8, opset_import: ["" : 18]>
    convolution (float[batch, 3, 8, 8] x) => (float[batch, 4, 4, 4] y, float[batch, 4] z)
    {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Clip(a, , six)
        y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
        m = ReduceMean <keepdims = 0> (y, axes)  s = Shape(m)  z = Reshape(m, s)
    }
"""
SEQUENCE = """
    <ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    sequence (int64[batch, tokens] ids, float[batch, tokens] mask) => (float[batch, tokens, 8] y)
    {
        e = Gather(table, ids)  q, k = Split <axis = 2, num_outputs = 2> (e)
        t = Transpose <perm = [0, 2, 1]> (k)
        p = MatMul(q, t)  n = Softmax(p)  d = DequantizeLinear(stored, scale)
        v = MatMul(e, d)  o = MatMul(n, v)
        l, places = TopK(o, eight)  h = local.twice(l)  c = Constant <value_ints = [0, 0, 8]> ()
        r = Reshape(h, c)  f = Unsqueeze(mask, two)  y = Mul(r, f)
    }
    <domain: "local", opset_import: ["" : 18]>
    twice (a) => (b) { b = Add(a, a) }
"""


def check(data: bytes) -> None:
    """Import, count and cut the ONNX file ``data``. Raises InputError when it cannot be planned."""
    with tempfile.TemporaryDirectory(prefix="fuzz-onnx-") as folder:
        file = Path(folder, "m.onnx")
        file.write_bytes(data)
        model = read_graph(file)
        assert [path.name for path in Path(folder).iterdir()] == ["m.onnx"], "importing wrote a file"
        sizes = {axis: 2 + index for index, axis in enumerate(dynamic_axes(model))}
        costs = operator_costs(model, 2, sizes)
        assert all(cost.flops >= 0 and cost.bytes_read >= 0 and cost.weight_bytes >= 0 for cost in costs)
        assert weight_bytes(model) >= sum(cost.weight_bytes for cost in costs)
        tensor_specs(model)
        owned = sorted(structure(model).owned)
        for part in split(model, owned[:-1][: len(owned) // 2][-1:], sizes):
            save_model(part, file)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Names, types, sizes and attributes exchanged inside the message, or bytes changed."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        if chance.randrange(5):
            for _ in range(chance.randint(1, 3)):
                _mutate_graph(model, chance)
            return model.SerializeToString()
    except Exception:  # not a message (any more): its bytes can still be changed
        pass
    return mutate_bytes(data, chance)


def _mutate_graph(model: onnx.ModelProto, chance: random.Random) -> None:
    graph = model.graph
    names = [*(v.name for v in graph.input), *(t.name for t in graph.initializer), ""]
    names += [name for node in graph.node for name in node.output]
    values = [*graph.input, *graph.output, *graph.value_info]
    operators = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
    match chance.randrange(12):
        case 0 if graph.node:
            chance.choice(graph.node).op_type = chance.choice(operators)
        case 1 if graph.node:
            node = chance.choice(graph.node)
            if node.input:
                node.input[chance.randrange(len(node.input))] = chance.choice(names)
        case 2 if graph.node:
            node = chance.choice(graph.node)
            if node.output:
                node.output[chance.randrange(len(node.output))] = chance.choice(names)
        case 3 if graph.node:
            node = chance.choice(graph.node)
            for attribute in node.attribute:
                attribute.i = chance.choice(ODD_INTEGERS)
                attribute.ints[:] = [chance.choice(ODD_INTEGERS) for _ in attribute.ints]
        case 4 if graph.node:
            del graph.node[chance.randrange(len(graph.node))]
        case 5 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            tensor.data_type = chance.randrange(30)
        case 6 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            tensor.dims[:] = [chance.choice(ODD_INTEGERS) for _ in range(chance.randrange(4))]
        case 7 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key in ("location", "offset", "length", "basepath"):
                value = chance.choice(("m.onnx", "..", "/", "", "0", "-1", "7", "muserve-weightless:0:1"))
                tensor.external_data.add(key=key, value=value)
        case 8 if values:
            tensor_type = chance.choice(values).type.tensor_type
            for dim in tensor_type.shape.dim:
                dim.dim_value = chance.choice(ODD_INTEGERS)
            tensor_type.elem_type = chance.choice((tensor_type.elem_type, chance.randrange(30)))
        case 9 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            numbers = [chance.choice(ODD_INTEGERS) for _ in range(max(1, len(tensor.raw_data) // 8))]
            tensor.CopyFrom(numpy_helper.from_array(np.array(numbers, np.int64), tensor.name))
        case 10 if graph.node:
            node = chance.choice(graph.node)
            getattr(node, chance.choice(("input", "output"))).append(chance.choice(names))
        case _:
            model.opset_import.add(
                domain=chance.choice(("", "local", "com.acme")), version=chance.randrange(30)
            )


def seeds() -> list[bytes]:
    """Two small graphs that use much of ONNX."""
    convolution, sequence = parser.parse_model(CONVOLUTION), parser.parse_model(SEQUENCE)
    ones = np.ones
    convolution.graph.initializer.extend(
        numpy_helper.from_array(values, name)
        for name, values in {
            "w": ones((4, 3, 3, 3), np.float32),
            "six": np.array(6, np.float32),
            "axes": np.array([2, 3]),
        }.items()
    )
    sequence.graph.initializer.extend(
        numpy_helper.from_array(values, name)
        for name, values in {
            "table": ones((50, 8), np.float32),
            "stored": ones((8, 8), np.int8),
            "scale": np.array(0.1, np.float32),
            "eight": np.array([8]),
            "two": np.array([2]),
        }.items()
    )
    sequence.graph.value_info.append(helper.make_tensor_value_info("e", 1, ["batch", "tokens", 8]))
    return [convolution.SerializeToString(), sequence.SerializeToString()]


if __name__ == "__main__":
    main(__doc__ or "", check, seeds(), mutate)
