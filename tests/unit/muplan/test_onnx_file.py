"""ONNX files as people have them: every opset, every way of writing a graph, and what cannot be planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, numpy_helper, parser

from muplan.onnx_file import read_graph
from muplan.profile.operators import operator_costs
from muplan.profile.shapes import dynamic_axes, infer_shapes, tensor_specs
from muplan.profile.structure import structure
from muplan.profile.symbolic import symbolic_dims
from muplan.splitting import split
from muserve.errors import InputError

Tensors = dict[str, np.ndarray[Any, np.dtype[Any]]]

OPSETS = range(11, defs.onnx_opset_version() + 1)


def imported(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return read_graph(folder / "m.onnx")


def graph(text: str, opset: int = 18, ir_version: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> agraph {text}')


def run(model: onnx.ModelProto, known: Tensors) -> Tensors:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    inputs = {value.name: known[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_any_cut_computes_the_same(model: onnx.ModelProto, original: onnx.ModelProto, x: Tensors) -> None:
    expected = run(original, x)
    for cut in sorted(structure(model).owned)[:-1]:
        known = dict(x)
        for part in split(model, (cut,)):
            known.update(run(part, known))
        for name, values in expected.items():
            np.testing.assert_allclose(known[name], values, atol=1e-5)


def every_form(opset: int) -> onnx.ModelProto:
    """One small graph of the operators whose form changed between opsets, each in the form of ``opset``."""
    nodes: list[onnx.NodeProto] = []
    constants: Tensors = {}

    def ints(*values: int) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.array(values, np.int64)
        return name

    def floats(*values: float) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.array(values if len(values) > 1 else values[0], np.float32)
        return name

    def add(op: str, inputs: Iterable[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"t{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def with_axes(op: str, name: str, axes: list[int], since: int, **attributes: Any) -> list[str]:
        if opset >= since:
            return add(op, [name, ints(*axes)], **attributes)
        return add(op, [name], axes=axes, **attributes)

    constants["w"] = np.random.default_rng(0).standard_normal((4, 4, 3, 3), np.float32) / 6
    constants.update(
        {name: np.full(4, value, np.float32) for name, value in zip("smv", (1, 0, 2), strict=True)}
    )
    tensors = add("Conv", ["x", "w"], pads=[1, 1, 1, 1])
    tensors = add("BatchNormalization", [*tensors, "s", "m", "m", "v"])
    tensors = add("Clip", [*tensors, "", floats(6.0)])
    tensors = add("Dropout", tensors) if opset < 12 else add("Dropout", [*tensors, floats(0.5)])
    tensors = add("Pad", [*tensors, ints(0, 0, 1, 1, 0, 0, 1, 1)])
    tensors = add("Slice", [*tensors, ints(1), ints(9), ints(2)])
    tensors = add("Slice", [*tensors, ints(1), ints(9), ints(3)])
    scales = floats(1.0, 1.0, 2.0, 2.0)
    constants["empty"] = np.array([], np.float32)
    tensors = add("Resize", [*tensors, "empty" if opset < 13 else "", scales], mode="nearest")
    match opset:
        case _ if opset >= 18:
            halves = add("Split", tensors, 2, axis=1, num_outputs=2)
        case _ if opset >= 13:
            halves = add("Split", [*tensors, ints(2, 2)], 2, axis=1)
        case _:
            halves = add("Split", tensors, 2, axis=1, split=[2, 2])
    tensors = add("Concat", reversed(halves), axis=1)
    tensors = with_axes("Unsqueeze", *tensors, [0], 13)
    tensors = with_axes("Squeeze", *tensors, [0], 13)
    tensors = add("Softmax", tensors, axis=-1)
    tensors = with_axes("ReduceSum", *tensors, [2], 13, keepdims=1)
    tensors = with_axes("ReduceMean", *tensors, [2], 18, keepdims=0)
    if opset >= 17:
        tensors = add("LayerNormalization", [*tensors, floats(*[1.0] * 16)])
    if opset >= 20:
        tensors = add("Gelu", tensors)
    if opset >= 23:
        tensors = add("RMSNormalization", [*tensors, floats(*[1.0] * 16)])
    nodes.append(helper.make_node("Identity", tensors, ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, None])
    initialisers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "forms", [x], [y], initialisers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10 if opset < 23 else 11,
    )


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_planned_and_cut(opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")  # or ONNX Runtime refuses the newest
    original = every_form(opset)
    model = imported(original, tmp_path)
    costs = operator_costs(model, 2, {})
    assert sum(cost.flops for cost in costs if cost.matrix) == 2 * 2 * 4 * 64 * 4 * 9
    assert infer_shapes(model, {"batch": 2})["y"].dims[:2] == (2, 4)
    x = {"x": np.random.default_rng(1).standard_normal((2, 4, 8, 8), np.float32)}
    assert_any_cut_computes_the_same(model, original, x)


def test_operators_out_of_order_are_sorted(tmp_path: Path) -> None:
    ordered = graph(
        "(float[n, 4] x) => (float[n, 4] y) { a = Neg(x)  b = Abs(a)  c = Exp(a)  y = Add(b, c) }"
    )
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(ordered)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(ordered.graph.node[i] for i in (3, 1, 0, 2))
    model = imported(shuffled, tmp_path)
    assert [node.op_type for node in model.graph.node] == ["Neg", "Abs", "Exp", "Add"]
    assert imported(ordered, tmp_path).graph.node == ordered.graph.node


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        agraph (float[n] x) => (float[n] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 18]>
        twice (a) => (b) { two = Constant <value_float: float = 2.0> ()  b = Mul(a, two) }
    """)
    inlined = imported(model, tmp_path)
    assert [node.op_type for node in inlined.graph.node] == ["Mul"]
    assert len(inlined.graph.initializer) == 1
    np.testing.assert_array_equal(run(inlined, {"x": np.ones(3, np.float32)})["y"], [2, 2, 2])


def test_weights_in_constant_operators_are_weights(tmp_path: Path) -> None:
    original = graph("(float[n, 40] x) => (float[n, 40] y) { z = MatMul(x, w)  y = Add(z, one) }")
    weight = numpy_helper.from_array(np.eye(40, dtype=np.float32))
    original.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    original.graph.node.insert(0, helper.make_node("Constant", [], ["one"], value_floats=[1.0]))
    model = imported(original, tmp_path)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"]
    assert sum(cost.weight_bytes for cost in operator_costs(model, 1, {"n": 2})) == 40 * 40 * 4 + 4
    x = {"x": np.ones((2, 40), np.float32)}
    np.testing.assert_array_equal(run(model, x)["y"], run(original, x)["y"])


def test_initialisers_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    """As files before IR version 4 must list them."""
    original = graph("(float[n, 4] x, float[4] w) => (float[n, 4] y) { y = Add(x, w) }", 11, ir_version=3)
    original.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    model = imported(original, tmp_path)
    assert [spec.name for spec in tensor_specs(model)[0]] == ["x"]
    np.testing.assert_array_equal(run(model, {"x": np.zeros((1, 4), np.float32)})["y"], np.ones((1, 4)))


def test_free_axes_named_unnamed_shared_and_negative(tmp_path: Path) -> None:
    original = graph("""(float[n, 4] a, float[n, m] b, float[?, 4] c) => (float[n, 4] y, float[m, n] z)
        { y = Add(a, c)  z = Transpose(b) }""")
    original.graph.input[2].type.tensor_type.shape.dim[0].dim_value = -1
    model = imported(original, tmp_path)
    assert dynamic_axes(model) == ("n", "m", "c_0")
    # a and c must agree in their first axis without sharing its name, so neither can be probed alone
    dims = symbolic_dims(model)
    assert dims["z"][1] == ("m", "n")
    assert dims["y"][1] == ("n", 4)


def test_a_graph_that_fits_few_sizes_is_probed_at_the_given_ones(tmp_path: Path) -> None:
    original = graph("(float[n, m] x) => (float[n, k] y) { a = Add(x, w)  y = Tanh(a) }")
    original.graph.initializer.append(numpy_helper.from_array(np.ones((1, 7), np.float32), "w"))
    model = imported(original, tmp_path)
    with pytest.raises(InputError, match="Incompatible dimensions"):
        symbolic_dims(model)
    assert symbolic_dims(model, {"n": 3, "m": 7})["a"][1] == ("n", 7)
    assert len(split(model, (0,), {"n": 3, "m": 7})) == 2


def test_an_axis_that_is_squeezed_away_at_one_is_taken_as_fixed(tmp_path: Path) -> None:
    original = graph("(float[n, m] x) => (float[k] y) { a = Add(x, w)  b = Squeeze(a)  y = Tanh(b) }")
    original.graph.initializer.append(numpy_helper.from_array(np.ones((1, 7), np.float32), "w"))
    model = imported(original, tmp_path)
    assert symbolic_dims(model, {"n": 1, "m": 7})["b"][1] == (7,)


def test_a_free_image_size_stays_free_behind_strides(tmp_path: Path) -> None:
    model = imported(
        graph("(float[n, 1, h, w] x) => (float[n, 1, a, b] y) "
              "{ y = AveragePool <kernel_shape = [64, 64], strides = [64, 64]> (x) }"),
        tmp_path,
    )  # fmt: skip
    assert symbolic_dims(model)["y"][1] == ("n", 1, None, None)


def test_types_that_the_file_leaves_open_are_inferred(tmp_path: Path) -> None:
    original = graph("(float[n, 4] x) => (float[n] y) { y = Shape(x) }")
    original.graph.node[0].op_type = "Neg"
    original.graph.output[0].type.tensor_type.Clear()
    model = imported(original, tmp_path)
    (output,) = tensor_specs(model)[1]
    assert (output.onnx_dtype, output.dims) == (TensorProto.FLOAT, (None, 4))


def test_names_are_not_needed_and_may_repeat(tmp_path: Path) -> None:
    model = graph("(float[n, 4] x) => (float[n, 4] y) { a = Neg(x)  b = Abs(a)  y = Neg(b) }")
    model.graph.node[0].name = model.graph.node[2].name = "twice"
    model.graph.name = ""
    loaded = imported(model, tmp_path)
    assert loaded.graph.name == "m"
    assert [cost.name for cost in operator_costs(loaded, 1, {"n": 1})] == ["twice", "Abs_1", "twice"]


def test_left_out_inputs_and_outputs(tmp_path: Path) -> None:
    """An LSTM without biases and initial states of which only the last hidden state is wanted."""
    original = graph("(float[s, batch, 3] x) => (float[1, batch, 5] y) { y = Tanh(h) }")
    lstm = helper.make_node("LSTM", ["x", "w", "r", "", "", ""], ["", "h"], hidden_size=5)
    original.graph.node.insert(0, lstm)
    random = np.random.default_rng(0)
    for name, shape in (("w", (1, 20, 3)), ("r", (1, 20, 5))):
        original.graph.initializer.append(
            numpy_helper.from_array(random.standard_normal(shape, np.float32), name)
        )
    model = imported(original, tmp_path)
    costs = operator_costs(model, 2, {"s": 7})
    assert costs[0].flops == 2 * 7 * 2 * (20 * 3 + 20 * 5)
    x = {"x": random.standard_normal((7, 2, 3), np.float32)}
    assert_any_cut_computes_the_same(model, original, x)


@pytest.mark.parametrize("element", ["float16", "bfloat16", "double"])
def test_wide_and_narrow_floats(element: str, tmp_path: Path) -> None:
    onnx_dtype = getattr(TensorProto, {"double": "DOUBLE"}.get(element, element.upper()))
    original = graph(f"({element}[n, 8] x) => ({element}[n, 16] y) {{ y = MatMul(x, w) }}")
    original.graph.initializer.append(helper.make_tensor("w", onnx_dtype, (8, 16), np.ones(128)))
    (cost,) = operator_costs(imported(original, tmp_path), 1, {"n": 2})
    size = {"double": 8}.get(element, 2)
    assert (cost.weight_bytes, cost.bytes_written) == (128 * size, 32 * size)


def test_quantised_graphs(tmp_path: Path) -> None:
    """QDQ as tools write it: weights stay int8 in memory, so that is what reading them costs."""
    original = graph("""(float[n, 64] x) => (float[n, 32] y)
        <float s = {0.1}, int8 z = {0}>
        {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            w = DequantizeLinear(stored, s, z)
            y = MatMul(d, w)
        }""")
    stored = numpy_helper.from_array(np.ones((64, 32), np.int8), "stored")
    original.graph.initializer.append(stored)
    model = imported(original, tmp_path)
    costs = operator_costs(model, 1, {"n": 2})
    product = costs[-1]
    assert product.flops == 2 * 2 * 32 * 64
    assert product.weight_bytes == 64 * 32  # the scale was met before
    assert product.bytes_read == (2 * 64 + 4 + 1) + (64 * 32 + 4 + 1)
    assert [cost.cuttable for cost in costs] == [True, False, False, False]
    assert costs[0].cut_bytes == 2 * 64
    x = {"x": np.random.default_rng(0).standard_normal((2, 64), np.float32)}
    known = dict(x)
    for part in split(model, (0,)):
        known.update(run(part, known))
    np.testing.assert_allclose(known["y"], run(original, x)["y"], atol=1e-5)


def foreign(declared: bool) -> onnx.ModelProto:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18, "com.acme" : 1]>
        agraph (float[n, 4] x) => (float[n, 8] y) { a = com.acme.Fused(x)  y = Tanh(a) }
    """)
    if declared:
        value = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 8])
        model.graph.value_info.append(value)
    return model


def test_unknown_operators_need_declared_shapes_and_cost_what_they_move(tmp_path: Path) -> None:
    known = imported(foreign(declared=True), tmp_path)
    first, _ = operator_costs(known, 1, {"n": 2})
    assert (first.bytes_read, first.bytes_written, first.flops) == (2 * 4 * 4, 2 * 8 * 4, 0)
    assert tensor_specs(split(known, (0,))[1])[0][0].dims == (None, 8)
    model = imported(foreign(declared=False), tmp_path)
    with pytest.raises(InputError, match=r"operator a: Fused of domain com\.acme is not supported, unless"):
        operator_costs(model, 1, {"n": 2})


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "z"
    model.graph.node.append(helper.make_node("Neg", ["y"], ["z"], name="back"))


def unmade(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nobody"


def empty(model: onnx.ModelProto) -> None:
    del model.graph.node[:]
    model.graph.output[0].name = "x"


def constant_only(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "c"))
    model.graph.node[0].input[0] = "c"


def no_inputs(model: onnx.ModelProto) -> None:
    constant_only(model)
    del model.graph.input[:]


def input_as_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.input[0])


def output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Negg"


def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.acme"


def too_new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def control_flow(model: onnx.ModelProto) -> None:
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "branch", [], [inner])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node.append(helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch))


def sequences(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("SplitToSequence", ["x"], ["many"]))


def sequence_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, [1]))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def unknown_rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def made_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Abs", ["x"], ["y"]))


def missing_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="w", dims=[4], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")


def absurd_axis(model: onnx.ModelProto) -> None:
    """ONNX's shape inference does not survive it."""
    model.graph.node.append(helper.make_node("Split", ["x"], ["z"], axis=-(2**63), num_outputs=1))


def wrong_count(model: onnx.ModelProto) -> None:
    """Nor this."""
    model.graph.node.append(helper.make_node("Split", ["x"], ["z", "u"], num_outputs=1))


def too_much_data(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.dims[0] = 3
    model.graph.initializer.append(tensor)


def too_little_data(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.dims[0] = 1000
    model.graph.initializer.append(tensor)


def negative_size(model: onnx.ModelProto) -> None:
    missing_data(model)
    model.graph.initializer[0].dims[:] = [-4]


def name_in_another_encoding(model: onnx.ModelProto) -> None:
    """Protobuf reads it, and fails when somebody looks."""
    bytes_of_name = b"\x12\x04caf\xe9"
    model.graph.MergeFromString(bytes_of_name)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (cycle, "operator making y: waits for itself, expected no cycle"),
        (unmade, "operator making y: reads nobody, which nothing makes"),
        (empty, "expected a graph with operators and outputs"),
        (constant_only, "expected outputs that depend on the inputs, got constants only"),
        (no_inputs, "expected a graph with inputs"),
        (input_as_output, "output x: expected a tensor that an operator makes, got an input"),
        (output_twice, "expected distinct outputs, got y 2 times"),
        (unknown_operator, "not a valid ONNX model.*Negg"),
        (unknown_domain, r"operator making y: expected an opset import of its domain com\.acme"),
        (too_new, rf"expected opset {OPSETS[-1]} or older, got 99"),
        (control_flow, r"operator making z: control flow \(If\) is not supported"),
        (sequences, r"operator making many: sequences \(SplitToSequence\) are not supported"),
        (sequence_input, "many: expected graph inputs and outputs to be tensors"),
        (sparse, "sparse initialisers are not supported"),
        (unknown_rank, "input x: expected a declared element type and number of dimensions"),
        (made_twice, "not a valid ONNX model.*y"),
        (absurd_axis, "operator making z: expected a possible axis, got -9223372036854775808"),
        (wrong_count, "operator making z: expected a possible num_outputs, got 1"),
        (too_much_data, "initialiser w: expected 12 bytes of data, got 16"),
        (too_little_data, "initialiser w: expected 4000 bytes of data, got 16"),
        (negative_size, r"initialiser w: expected sizes from 0, got \[-4\]"),
        (name_in_another_encoding, r"expected text in UTF-8, got b'caf\\xe9'"),
        (missing_data, r"initialiser w: expected its data in w\.bin: No such file"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_sentence(
    damage: Callable[[onnx.ModelProto], None], complaint: str, tmp_path: Path
) -> None:
    model = graph("(float[n, 4] x) => (float[n, 4] y) { y = Neg(x) }")
    damage(model)
    with pytest.raises(InputError, match=rf"^{tmp_path}/m\.onnx: {complaint}") as caught:
        imported(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("m.onnx") == 1


def test_sizes_too_small_for_the_filters_are_named(tmp_path: Path) -> None:
    text = "(float[1, 1, h, h] x) => (float[1, 1, a, b] y) { y = AveragePool <kernel_shape = [9, 9]> (x) }"
    model = imported(graph(text), tmp_path)
    with pytest.raises(
        InputError, match=r"tensor y would have the shape \[1, 1, -4, -4\]|cannot be inferred"
    ):
        infer_shapes(model, {"h": 4})
