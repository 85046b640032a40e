"""Partitions of a graph, run one after another, compute what the graph computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from muplan.catalog import default_dims, load_graph
from muplan.partition import choose_cuts
from muplan.profile.operators import operator_costs
from muplan.profile.shapes import tensor_specs
from muplan.profile.structure import structure
from muplan.sensitivity import operator_times
from muplan.splitting import save_model, split, weight_bytes
from muserve.gpu.parts import load_part
from muserve.weightless import load_model, missing_weights
from muserve.weights import fill_weights, open_session

Tensors = dict[str, np.ndarray[Any, np.dtype[Any]]]


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


def bert_inputs(batch: int = 2, sequence: int = 9) -> Tensors:
    random = np.random.default_rng(0)
    mask = np.ones((batch, sequence), np.int64)
    mask[-1, sequence // 2 :] = 0
    return {"input_ids": random.integers(0, 30522, (batch, sequence)), "attention_mask": mask}


def cuts_for(name: str, count: int) -> tuple[int, ...]:
    costs = operator_costs(load_graph(name), 1, default_dims(name))
    return choose_cuts(costs, operator_times(costs, load_part("V100-16GB"), "fp32"), count, link_gbs=12.0)


@pytest.mark.parametrize("name", ["bert-base", "roberta-base"])
def test_encoder_chains_equal_the_whole(name: str) -> None:
    model, inputs = load_graph(name), bert_inputs()
    weights = fill_weights(model, seed=7)
    expected = run(model, inputs, weights)
    halves = run_chain(split(model, cuts_for(name, 2)), inputs, seed=7)
    thirds = dict(inputs)
    for part in split(model, cuts_for(name, 3)):
        thirds.update(run(part, thirds, weights))
    for name, values in expected.items():
        assert np.isfinite(values).all()
        assert 0.1 < np.abs(values).mean() < 10
        np.testing.assert_allclose(halves[name], values, atol=1e-4)
        np.testing.assert_allclose(thirds[name], values, atol=1e-4)


def test_resnet_chain_equals_the_whole() -> None:
    model = load_graph("resnet-50")
    inputs = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)}
    expected = run(model, inputs, fill_weights(model, seed=7))["logits"]
    chained = run_chain(split(model, cuts_for("resnet-50", 2)), inputs, seed=7)["logits"]
    assert 0.1 < np.abs(expected).mean() < 10
    np.testing.assert_allclose(chained, expected, atol=1e-4)


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


def test_data_too_big_for_one_message_is_kept_beside_the_graph(tmp_path: Path) -> None:
    big = numpy_helper.from_array(np.arange(2000, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2000]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "big", [x], [y], [big])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for _ in range(2):  # a second time over the first
        save_model(model, tmp_path / "m.onnx", largest_bytes=4000)
        assert (tmp_path / "m.onnx").stat().st_size < 500
        assert (tmp_path / "m.onnx.data").stat().st_size == 8000
        assert load_model(tmp_path / "m.onnx") == model
    assert model.graph.initializer[0] == big


@st.composite
def odd_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Branches, several inputs and outputs, shared weights, constant expressions, shape arithmetic.

    Every tensor that operators pass on is ``[batch, 4]``; Tanh keeps the values small.
    """
    public = [f"x{i}" for i in range(draw(st.integers(1, 3)))]
    tensors, nodes = list(public), []
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = {name: random.standard_normal((4, 4), np.float32) for name in ("w0", "w1")}
    constants = {**weights, "b": random.standard_normal(4, np.float32), "halves": np.array([2, 2], np.int64)}

    def add(op: str, inputs: list[str], outputs: int = 1, **attributes: int | list[int]) -> list[str]:
        names = [f"t{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op, inputs, names, f"n{len(nodes)}", **attributes))
        return names

    for _ in range(draw(st.integers(2, 9))):
        one, two = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        weight = draw(st.sampled_from(["w0", "w1"]))
        match draw(st.integers(0, 6)):
            case 0:
                result = add("MatMul", [one, weight])
            case 1:
                result = add("MatMul", [one, *add("Transpose", [weight], perm=[1, 0])])
            case 2:
                result = add("Add", [one, "b"])
            case 3:
                result = add("Mul", [one, two])
            case 4:
                result = add("Reshape", [one, *add("Shape", [draw(st.sampled_from(public))])])
            case 5:
                result = add("Expand", ["b", *add("Shape", [one])])
            case _:
                left, right = add("Split", [one, "halves"], outputs=2, axis=1)
                result = add("Concat", [right, left], axis=1)
        tensors += add("Tanh", result)
    made = [name for node in nodes for name in node.output if name in tensors]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    if draw(st.booleans()):
        outputs += add("Transpose", ["w0"], perm=[1, 0])  # an output that depends on no input

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4])

    initialisers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(
        nodes, "odd", [info(n) for n in public], [info(n) for n in outputs], initialisers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@settings(max_examples=60, deadline=None)
@given(model=odd_graphs(), data=st.data())
def test_any_cuts_of_any_graph_give_the_same_outputs(model: onnx.ModelProto, data: st.DataObject) -> None:
    owned = sorted(structure(model).owned)
    assume(len(owned) > 1)
    cuts = sorted(data.draw(st.sets(st.sampled_from(owned[:-1]), min_size=1, max_size=3)))
    parts = split(model, cuts)
    random = np.random.default_rng(0)
    inputs: Tensors = {value.name: random.standard_normal((3, 4), np.float32) for value in model.graph.input}
    known = run_chain(parts, inputs, seed=0)
    for part in parts:
        onnx.checker.check_model(part)
    for name, values in run(model, inputs, {}).items():
        np.testing.assert_allclose(known[name], values, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(model=odd_graphs())
def test_costs_and_cuts_of_any_graph_are_consistent(model: onnx.ModelProto) -> None:
    costs = operator_costs(model, 3, {})
    times = operator_times(costs, load_part("V100-16GB"), "fp32")
    places = [i for i, cost in enumerate(costs) if cost.cuttable]
    for count in range(1, min(len(places), 3) + 2):
        cuts = choose_cuts(costs, times, count, link_gbs=12.0)
        given_on: set[str] = set()
        for cut, part in zip(cuts, split(model, cuts), strict=False):
            given_on |= {output.name for output in part.graph.output}
            assert set(costs[cut].crossing) <= given_on
