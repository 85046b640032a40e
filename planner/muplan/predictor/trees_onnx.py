"""Boosted trees as an ONNX graph that splits every feature vector exactly as LightGBM does.

ONNX keeps thresholds in 32 bits, LightGBM in 64. Rounding a threshold up would send a value that lies
between the two down the other branch, so thresholds are rounded down: for 32-bit features
``x <= t`` and ``x <= floor32(t)`` are the same test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8


@dataclass(slots=True)
class _Ensemble:
    """The attributes of an ``ai.onnx.ml`` TreeEnsembleRegressor while they are collected."""

    nodes: dict[str, list[Any]] = field(default_factory=dict)
    leaves: dict[str, list[Any]] = field(default_factory=dict)

    def node(self, **values: Any) -> None:
        for key, value in values.items():
            self.nodes.setdefault(f"nodes_{key}", []).append(value)

    def leaf(self, **values: Any) -> None:
        for key, value in values.items():
            self.leaves.setdefault(f"target_{key}", []).append(value)


def trees_to_onnx(
    dump: dict[str, Any], features: int, largest: float, class_means: NDArray[np.float64] | None
) -> onnx.ModelProto:
    """Graph ``features`` float (n, features) -> ``tokens`` float (n,), within 1..``largest``.

    ``dump`` is LightGBM's ``Booster.dump_model()``. With ``class_means`` the trees are the log-odds of
    as many classes and the answer is the expected length, the classes' means weighted by probability.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    targets = 1 if class_means is None else len(class_means)
    ensemble = _Ensemble()
    for number, tree in enumerate(dump["tree_info"]):
        _add_tree(ensemble, number, number % targets, tree["tree_structure"])
    trees = helper.make_node("TreeEnsembleRegressor", ["features"], ["trees"], domain="ai.onnx.ml")
    for name, value in {"n_targets": targets, **ensemble.nodes, **ensemble.leaves}.items():
        trees.attribute.append(helper.make_attribute(name, value))
    nodes = [trees]
    constants: dict[str, NDArray[Any]] = {
        "least": np.array(1.0, np.float32),
        "most": np.array(largest, np.float32),
        "shape": np.array([-1], np.int64),
    }
    length = "trees"
    if class_means is not None:
        constants["class_means"] = class_means.astype(np.float32)[:, np.newaxis]
        nodes.append(helper.make_node("Softmax", ["trees"], ["probabilities"], axis=-1))
        nodes.append(helper.make_node("MatMul", ["probabilities", "class_means"], ["expected"]))
        length = "expected"
    nodes.append(helper.make_node("Clip", [length, "least", "most"], ["clipped"]))
    nodes.append(helper.make_node("Reshape", ["clipped", "shape"], ["tokens"]))
    graph = helper.make_graph(
        nodes,
        "length_predictor",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="muserve")
    checker.check_model(model)
    return model


def _add_tree(ensemble: _Ensemble, number: int, target: int, root: dict[str, Any]) -> None:
    order = list(_walk(root))
    place = {id(node): index for index, node in enumerate(order)}
    for index, node in enumerate(order):
        common = {"treeids": number, "nodeids": index}
        if "leaf_value" in node:
            empty = {"featureids": 0, "values": 0.0, "truenodeids": 0, "falsenodeids": 0}
            ensemble.node(**common, modes="LEAF", **empty)
            ensemble.leaf(**common, ids=target, weights=float(node["leaf_value"]))
            continue
        if node["decision_type"] != "<=":
            raise ValueError(f"only numerical splits can be exported, got {node['decision_type']!r}")
        ensemble.node(
            **common,
            modes="BRANCH_LEQ",
            featureids=int(node["split_feature"]),
            values=_floor32(float(node["threshold"])),
            truenodeids=place[id(node["left_child"])],
            falsenodeids=place[id(node["right_child"])],
        )


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    if "leaf_value" not in node:
        yield from _walk(node["left_child"])
        yield from _walk(node["right_child"])


def _floor32(value: float) -> float:
    rounded = np.float32(value)
    if float(rounded) > value:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)
