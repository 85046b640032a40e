"""Partitions of a graph, run one after another, compute what the graph computes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from muplan.catalog import catalog_entry, catalog_kind, catalog_names, default_dims, load_graph
from muplan.partition import choose_cuts
from muplan.profile.operators import operator_costs
from muplan.profile.shapes import tensor_specs
from muplan.profile.structure import structure
from muplan.sensitivity import operator_times
from muplan.sources import load_source
from muplan.splitting import save_model, split, weight_bytes
from muserve.errors import InputError
from muserve.gpu.parts import load_part
from muserve.plan import ModelKind
from muserve.weightless import load_model, missing_weights
from muserve.weights import LARGEST_PROTO_BYTES, fill_weights, open_session

Tensors = dict[str, np.ndarray[Any, np.dtype[Any]]]

# What a test can hold twice and run in seconds.
MOST_PARAMETERS = 150_000_000
SMALL_MODELS = [
    name
    for name in catalog_names()
    if catalog_kind(name) is ModelKind.SINGLE_PASS and catalog_entry(name).parameters <= MOST_PARAMETERS
]


def run(model: onnx.ModelProto, known: Mapping[str, Any], weights: Tensors) -> Tensors:
    session = open_session(model, weights, threads=2)
    outputs = [output.name for output in session.get_outputs()]
    return dict(
        zip(outputs, session.run(outputs, {i.name: known[i.name] for i in session.get_inputs()}), strict=True)
    )


def run_chain(parts: Sequence[onnx.ModelProto], inputs: Tensors, seed: int) -> Tensors:
    """Each partition sees what is known by name so far, and fills its own weights."""
    known = dict(inputs)
    for part in parts:
        known.update(run(part, known, fill_weights(part, seed)))
    return known


def some_inputs(name: str) -> Tensors:
    """A batch of two for a catalogue model; token ids and masks where it takes integers."""
    model, random = load_graph(name), np.random.default_rng(0)
    sizes = {axis: min(size, 16) for axis, size in default_dims(name).items()} | {"batch": 2}
    inputs: Tensors = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.FLOAT:
            inputs[value.name] = random.standard_normal(shape, np.float32)
        elif "mask" in value.name:
            inputs[value.name] = np.ones(shape, np.int64)
            inputs[value.name][-1, shape[1] // 2 :] = 0
        else:
            inputs[value.name] = random.integers(0, 1000, shape)
    return inputs


def cuts_for(name: str, count: int) -> tuple[int, ...]:
    costs = operator_costs(load_graph(name), 1, default_dims(name))
    return choose_cuts(costs, operator_times(costs, load_part("V100-16GB"), "fp32"), count, link_gbs=12.0)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_chain_of_a_catalogue_model_equals_the_whole(name: str) -> None:
    """Each partition of two draws its own weights; those of three are given the whole's."""
    model, inputs = load_graph(name), some_inputs(name)
    weights = fill_weights(model, seed=7)
    expected = run(model, inputs, weights)
    halves = run_chain(split(model, cuts_for(name, 2)), inputs, seed=7)
    thirds = dict(inputs)
    for part in split(model, cuts_for(name, 3)):
        thirds.update(run(part, thirds, weights))
    for output, values in expected.items():
        assert np.isfinite(values).all()
        assert 0.1 < np.abs(values).mean() < 10
        np.testing.assert_allclose(halves[output], values, atol=1e-4)
        np.testing.assert_allclose(thirds[output], values, atol=1e-4)


def test_weights_go_with_their_operators() -> None:
    model = load_graph("bert-base")
    parts = split(model, cuts_for("bert-base", 2))
    held = [{tensor.name for tensor in missing_weights(part)} for part in parts]
    assert held[0] | held[1] == {tensor.name for tensor in missing_weights(model)}
    assert not held[0] & held[1]
    assert sum(weight_bytes(part) for part in parts) == pytest.approx(weight_bytes(model), rel=1e-4)


def test_partitions_say_what_they_take_and_give() -> None:
    """The mask's shape is needed everywhere, so later partitions take it from the public inputs."""
    first, second = split(load_graph("bert-base"), cuts_for("bert-base", 2))
    (taken, given_on), (received, public) = tensor_specs(first), tensor_specs(second)
    assert [spec.name for spec in taken] == ["input_ids", "attention_mask"]
    assert received[0].name == "attention_mask"
    assert received[1:] == given_on
    assert {spec.dims for spec in given_on} == {(None, 1, 1, None), (None, None, 768)}
    assert [spec.name for spec in public] == ["last_hidden_state", "pooler_output"]


def test_no_cut_gives_the_model_itself() -> None:
    model = load_graph("resnet-50")
    assert split(model, ()) == (model,)


def test_splitting_is_deterministic() -> None:
    cuts = cuts_for("bert-base", 3)
    first, second = (split(load_graph("bert-base"), cuts) for _ in range(2))
    assert [p.SerializeToString(deterministic=True) for p in first] == [
        p.SerializeToString(deterministic=True) for p in second
    ]


def test_cuts_that_leave_nothing_in_a_partition_are_a_bug() -> None:
    model = load_graph("resnet-50")
    with pytest.raises(ValueError, match="without operators"):
        split(model, (3, 3))


def test_a_saved_partition_comes_back(tmp_path: Path) -> None:
    part = split(load_graph("resnet-50"), cuts_for("resnet-50", 2))[1]
    save_model(part, tmp_path / "partition.onnx")
    assert load_model(tmp_path / "partition.onnx") == part


def scaled(elements: int) -> onnx.ModelProto:
    """``y = x * w`` with ``w`` = 0, 1, 2 ..."""
    weights = numpy_helper.from_array(np.arange(elements, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [elements]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "scaled", [x], [y], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_data_too_big_for_one_message_is_kept_beside_the_graph(tmp_path: Path) -> None:
    model, file = scaled(2000), tmp_path / "m.onnx"
    for _ in range(2):  # a second time over the first
        save_model(model, file, largest_bytes=4000)
        assert file.stat().st_size < 500
        assert (tmp_path / "m.onnx.data").stat().st_size == 8000
    assert model == scaled(2000)
    x = np.ones(2000, np.float32)
    np.testing.assert_array_equal(run(load_model(file), {"x": x}, {})["y"], np.arange(2000))
    save_model(load_model(file), tmp_path / "again.onnx")  # what was beside the graph stays beside it
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "m.onnx.data").read_bytes()
    np.testing.assert_array_equal(
        run(load_model(tmp_path / "again.onnx"), {"x": x}, {})["y"], np.arange(2000)
    )
    onnx.checker.check_model(tmp_path / "again.onnx")


def test_data_that_vanishes_before_it_is_copied_is_named(tmp_path: Path) -> None:
    save_model(scaled(2000), tmp_path / "m.onnx", largest_bytes=1)
    model = load_model(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").write_bytes(bytes(5000))
    with pytest.raises(InputError, match="the data of w has become shorter"):
        save_model(model, tmp_path / "out.onnx")
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InputError, match="the data of w is gone"):
        save_model(model, tmp_path / "out.onnx")


def test_weights_beyond_two_gigabytes_are_planned_and_cut_unread(tmp_path: Path) -> None:
    """2.6 GB of zeros in a sparse file: planning reads none of them, so it needs no memory for them."""
    width, layers = 8192, 10
    nodes, initialisers = [], []
    for index in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]))
        tensor = onnx.TensorProto(name=f"w{index}", dims=[width, width], data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        tensor.external_data.add(key="offset", value=str(index * width * width * 4))
        initialisers.append(tensor)
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name in ("x0", f"x{layers}")
    )
    graph = helper.make_graph(nodes, "big", [x], [y], initialisers)
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "m.onnx",
    )
    with (tmp_path / "weights.bin").open("wb") as data:
        data.truncate(layers * width * width * 4)
    tracemalloc.start()
    model = load_source("onnx:m.onnx", tmp_path).graph
    assert model is not None
    costs = operator_costs(model, 4, {})
    parts = split(model, (layers // 2,))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert model.ByteSize() < 10_000
    assert sum(cost.weight_bytes for cost in costs) == layers * width * width * 4 > LARGEST_PROTO_BYTES
    assert sum(cost.flops for cost in costs) == layers * 2 * 4 * width * width
    assert [len(part.graph.initializer) for part in parts] == [layers // 2 + 1, layers // 2 - 1]


WIDTH = 20  # wide enough for a square weight to be kept beside the graph


@st.composite
def odd_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Branches, several inputs and outputs, shared weights, constant expressions, shape arithmetic, operators
    with several outputs and left-out inputs, dead operators, outputs that no operator makes.

    Every tensor that operators pass on is ``[batch, sequence, WIDTH]``; Tanh keeps the values small.
    """
    public = [f"x{i}" for i in range(draw(st.integers(1, 3)))]
    tensors, nodes = list(public), []
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    constants: Tensors = {
        name: random.standard_normal((WIDTH, WIDTH), np.float32) / 4 for name in ("w0", "w1")
    }
    constants |= {
        "b": random.standard_normal(WIDTH, np.float32),
        "half": np.array(0.5, np.float32),
        "halves": np.array([WIDTH // 2, WIDTH // 2], np.int64),
        "width": np.array([WIDTH], np.int64),
        "one": np.array([1], np.int64),
        "zero": np.array([0], np.int64),
        "minus": np.array([-1], np.int64),
    }

    def add(op: str, inputs: list[str], outputs: int = 1, **attributes: int | list[int]) -> list[str]:
        names = [f"t{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op, inputs, names, f"n{len(nodes)}", **attributes))
        return names

    def axis_of(name: str, axis: str) -> list[str]:
        return add("Gather", [*add("Shape", [name]), axis])

    for _ in range(draw(st.integers(2, 9))):
        one, two = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        weight = draw(st.sampled_from(["w0", "w1"]))
        match draw(st.integers(0, 12)):
            case 0:
                result = add("MatMul", [one, weight])
            case 1:
                result = add("MatMul", [one, *add("Transpose", [weight], perm=[1, 0])])
            case 2:
                result = add("Add", [one, *add("Add", ["b", "b"])])
            case 3:
                result = add("Mul", [one, two])
            case 4:
                result = add("Reshape", [one, *add("Shape", [draw(st.sampled_from(public))])])
            case 5:
                result = add("Expand", ["b", *add("Shape", [one])])
            case 6:
                left, right = add("Split", [one, "halves"], outputs=2, axis=2)
                result = add("Concat", [right, left], axis=2)
            case 7:
                result = add("Clip", [one, "", "half"])
            case 8:
                values, places = add("TopK", [one, "width"], outputs=2)
                result = [values] if draw(st.booleans()) else add("Cast", [places], to=onnx.TensorProto.FLOAT)
            case 9:  # flattened and back, the sizes taken from different tensors
                flat = add("Reshape", [one, *add("Concat", ["width", "minus"], axis=0)])
                sizes = [*axis_of(one, "zero"), *axis_of(two, "one"), "width"]
                result = add("Reshape", [*flat, *add("Concat", sizes, axis=0)])
            case 10:
                result = add("Add", [one, *add("ReduceSum", [two, "one"], keepdims=1)])
            case 11:
                result = add("Dropout", [one, "", ""], outputs=2)[:1]
            case _:
                result = add("Slice", [one, "zero", *axis_of(two, "one"), "one"])
        tensors += add("Tanh", result)
    made = [name for node in nodes for name in node.output if name in tensors]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    outputs += add("Identity", [outputs[0]])  # the same tensor as two outputs
    odd = draw(st.sets(st.sampled_from(["input", "input as it is", "weight", "weight as it is"])))
    if "input" in odd:
        outputs += add("Identity", [public[0]])
    if "input as it is" in odd:
        outputs.append(public[-1])
    if "weight" in odd:
        outputs += add("Transpose", ["w0"], perm=[1, 0])
    if "weight as it is" in odd:
        outputs.append("w1")

    def info(name: str) -> onnx.ValueInfoProto:
        square = name == "w1" or ("weight" in odd and name == nodes[-1].output[0])
        dims = [WIDTH, WIDTH] if square else ["batch", "sequence", WIDTH]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)

    initialisers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(
        nodes, "odd", [info(n) for n in public], [info(n) for n in outputs], initialisers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def odd_inputs(model: onnx.ModelProto, batch: int, sequence: int) -> Tensors:
    random = np.random.default_rng(0)
    shape = (batch, sequence, WIDTH)
    return {value.name: random.standard_normal(shape, np.float32) for value in model.graph.input}


@settings(max_examples=80, deadline=None)
@given(model=odd_graphs(), data=st.data())
def test_any_cuts_of_any_graph_give_the_same_outputs(model: onnx.ModelProto, data: st.DataObject) -> None:
    owned = sorted(structure(model).owned)
    assume(len(owned) > 1)
    cuts = sorted(data.draw(st.sets(st.sampled_from(owned[:-1]), min_size=1, max_size=3)))
    parts = split(model, cuts)
    inputs = odd_inputs(model, *data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5))))
    known = run_chain(parts, inputs, seed=0)
    for part in parts:
        onnx.checker.check_model(part)
    for name, values in run(model, inputs, {}).items():
        np.testing.assert_allclose(known[name], values, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(model=odd_graphs(), data=st.data())
def test_any_file_is_imported_cut_saved_and_computes_the_same(
    model: onnx.ModelProto, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The whole way of a file: operators in any order, weights beside it, partitions through files."""
    public = {value.name for value in model.graph.input}
    made = [value for value in model.graph.output if value.name not in public]
    del model.graph.output[:]
    model.graph.output.extend(made)
    folder = tmp_path_factory.mktemp("odd")
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    order = data.draw(st.permutations(range(len(model.graph.node))))
    del stored.graph.node[:]
    stored.graph.node.extend(model.graph.node[i] for i in order)
    beside = data.draw(st.booleans())
    save_model(stored, folder / "whole.onnx", largest_bytes=1 if beside else 10**9)
    loaded = load_source("onnx:whole.onnx", folder).graph
    assert loaded is not None
    owned = sorted(structure(loaded).owned)
    cuts = sorted(data.draw(st.sets(st.sampled_from(owned), max_size=2)) - {owned[-1]})
    inputs = odd_inputs(model, 2, 3)
    known = dict(inputs)
    for index, part in enumerate(split(loaded, cuts)):
        save_model(part, folder / f"{index}.onnx", largest_bytes=1 if beside else 10**9)
        known.update(run(load_model(folder / f"{index}.onnx"), known, {}))
    for name, values in run(model, inputs, {}).items():
        np.testing.assert_allclose(known[name], values, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(model=odd_graphs())
def test_costs_and_cuts_of_any_graph_are_consistent(model: onnx.ModelProto) -> None:
    costs = operator_costs(model, 3, {"sequence": 5})
    times = operator_times(costs, load_part("V100-16GB"), "fp32")
    places = [i for i, cost in enumerate(costs) if cost.cuttable]
    for count in range(1, min(len(places), 3) + 2):
        cuts = choose_cuts(costs, times, count, link_gbs=12.0)
        given_on: set[str] = set()
        for cut, part in zip(cuts, split(model, cuts), strict=False):
            given_on |= {output.name for output in part.graph.output}
            assert set(costs[cut].crossing) <= given_on
