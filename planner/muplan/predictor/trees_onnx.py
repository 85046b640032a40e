"""Boosted trees as an ONNX graph that splits every feature vector exactly as LightGBM does.

ONNX keeps thresholds in 32 bits, LightGBM in 64. Rounding a threshold up would send a value that lies
between the two down the other branch, so thresholds are rounded down: for 32-bit features
``x <= t`` and ``x <= floor32(t)`` are the same test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from muplan.predictor.steps import GraphParts, Step

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHead:
    """Boosted trees and what makes a length of them.

    ``dumps`` are LightGBM's ``Booster.dump_model()``; the k raw outputs of a booster (its
    ``num_tree_per_iteration``) follow those of the boosters before it.
    """

    dumps: tuple[dict[str, Any], ...]
    steps: tuple[Step, ...]

    @property
    def outputs(self) -> int:
        """How many raw outputs there are."""
        return sum(int(dump["num_tree_per_iteration"]) for dump in self.dumps)


def trees_to_onnx(
    heads: Sequence[TreeHead], features: int, largest: float, raw_output: str = ""
) -> onnx.ModelProto:
    """Graph ``features`` float (n, features) -> ``tokens`` float (n,), within 1..``largest``.

    ``tokens`` is the mean of what the ``heads`` say. With ``raw_output`` the first head's raw outputs are a
    second output of that name, (n, outputs).
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    parts = GraphParts()
    raws = [_add_head(parts, head) for head in heads]
    lengths = [_emit(head.steps, parts, raw) for head, raw in zip(heads, raws, strict=True)]
    length = lengths[0] if len(lengths) == 1 else parts.add("Mean", lengths)
    least, most = (parts.constant(np.array(value, np.float32)) for value in (1.0, largest))
    clipped = parts.add("Clip", [length, least, most])
    shape = parts.constant(np.array([-1], np.int64))
    parts.nodes.append(helper.make_node("Reshape", [clipped, shape], ["tokens"]))
    outputs = [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["n"])]
    if raw_output:
        parts.nodes.append(helper.make_node("Identity", [raws[0]], [raw_output]))
        width = heads[0].outputs
        outputs.append(helper.make_tensor_value_info(raw_output, TensorProto.FLOAT, ["n", width]))
    graph = helper.make_graph(
        parts.nodes,
        "length_predictor",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", features])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in parts.constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="muserve")
    checker.check_model(model)
    return model


def _emit(steps: Sequence[Step], parts: GraphParts, source: str) -> str:
    for step in steps:
        source = step.emit(parts, source)
    return source


def _add_head(parts: GraphParts, head: TreeHead) -> str:
    ensemble = _Ensemble()
    number = first = 0
    for dump in head.dumps:
        width = int(dump["num_tree_per_iteration"])
        for place, tree in enumerate(dump["tree_info"]):
            _add_tree(ensemble, number, first + place % width, tree["tree_structure"])
            number += 1
        first += width
    attributes = {"n_targets": head.outputs, **ensemble.nodes, **ensemble.leaves}
    return parts.add("TreeEnsembleRegressor", ["features"], domain="ai.onnx.ml", **attributes)


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
