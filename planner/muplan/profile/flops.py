"""Floating-point operations of ONNX operators; a multiply-add is two.

Products are counted exactly. Elementwise operators count a few operations per element; they are never what
limits a kernel. Operators of other domains than ONNX's count none: only what they move is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muplan.profile.structure import in_onnx_domain
from muplan.profile.tensor_shape import TensorShape

if TYPE_CHECKING:
    import onnx

_MATRIX = frozenset(
    {
        *("Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "GRU", "LSTM"),
        *("MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN"),
    }
)
_FILTER_INPUT = {"Conv": 1, "ConvInteger": 1, "DeformConv": 1, "QLinearConv": 3}
_PER_ELEMENT = {
    "Erf": 8.0,
    "Exp": 4.0,
    "Gelu": 12.0,
    "Log": 4.0,
    "Sigmoid": 5.0,
    "Swish": 6.0,
    "Tanh": 6.0,
    "Sqrt": 2.0,
    "BatchNormalization": 2.0,
    "QuantizeLinear": 2.0,
    "LogSoftmax": 6.0,
    "Softmax": 5.0,
    "GroupNormalization": 8.0,
    "InstanceNormalization": 8.0,
    "LayerNormalization": 8.0,
    "RMSNormalization": 5.0,
    "RotaryEmbedding": 3.0,
    "Concat": 0.0,
    "Gather": 0.0,
    "GatherElements": 0.0,
    "GatherND": 0.0,
    "Pad": 0.0,
    "Tile": 0.0,
}


def on_matrix_units(node: onnx.NodeProto) -> bool:
    """Whether the operator is a product of matrices, with or without more around it."""
    return in_onnx_domain(node) and node.op_type in _MATRIX


def flops(node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> float:
    """Floating-point operations of one run of ``node``, whose inputs and outputs are in ``shapes``."""
    if not in_onnx_domain(node):
        return 0.0
    inputs = [shapes[name].dims if name else () for name in node.input]
    outputs = [shapes[name].dims if name else () for name in node.output]
    out = float(max(math.prod(dims) for dims, name in zip(outputs, node.output, strict=True) if name))
    given = inputs[0] if inputs else ()
    attributes = {attribute.name: attribute for attribute in node.attribute}
    match node.op_type:
        case "Conv" | "ConvInteger" | "DeformConv" | "QLinearConv" as op:
            return 2 * out * math.prod(inputs[_FILTER_INPUT[op]][1:])
        case "ConvTranspose":
            return 2.0 * math.prod(given) * math.prod(inputs[1][1:])
        case "MatMul" | "MatMulInteger" | "QLinearMatMul":
            return 2 * out * given[-1]
        case "Gemm":
            turned = "transA" in attributes and attributes["transA"].i
            return 2 * out * given[0 if turned else 1]
        case "Einsum":
            return _einsum_flops(attributes["equation"].s.decode(), inputs)
        case "Attention":
            return _attention_flops(inputs, outputs[0])
        case "LSTM" | "GRU" | "RNN":  # every step multiplies by both weight matrices
            return 2.0 * given[0] * given[1] * (math.prod(inputs[1]) + math.prod(inputs[2]))
        case "AveragePool" | "LpPool" | "MaxPool":
            return out * math.prod(attributes["kernel_shape"].ints)
        case "Resize":
            taps = {b"linear": 2, b"cubic": 4}.get(attributes["mode"].s if "mode" in attributes else b"", 0)
            scaled = sum(before != after for before, after in zip(given, outputs[0], strict=True))
            return 2 * out * taps**scaled if taps else 0.0
        case op if op.startswith(("Reduce", "Global", "Arg")):
            return float(math.prod(given))
        case op:
            return _PER_ELEMENT.get(op, 1.0) * out


def _attention_flops(inputs: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> float:
    """Scores and weighted values: 2 n c (h_query + h_value) per sequence, c with the cache before it.

    Tensors are [batch, tokens, heads x size] or [batch, heads, tokens, size]; the cache is the latter.
    """
    query, key = inputs[0], inputs[1]
    past = inputs[4][2] if len(inputs) > 4 and inputs[4] else 0

    def tokens(dims: tuple[int, ...]) -> int:
        return dims[-2]

    def width(dims: tuple[int, ...]) -> int:
        return dims[2] if len(dims) == 3 else dims[1] * dims[3]

    return 2.0 * query[0] * tokens(query) * (tokens(key) + past) * (width(query) + width(result))


def _einsum_flops(equation: str, operands: Sequence[tuple[int, ...]]) -> float:
    """The operands multiplied from left to right, each product summed as early as possible."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_labels(term, len(dims)) for term, dims in zip(left.split(","), operands, strict=True)]
    sizes: dict[str, int] = {}
    for term, dims in zip(terms, operands, strict=True):
        for label, size in zip(term, dims, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    every = [label for term in terms for label in term]
    broadcast = {label for label in every if label.startswith(".")}
    explicit = set(right) - {"."} if arrow else {label for label in every if every.count(label) == 1}
    result = explicit | (broadcast if "..." in right or not arrow else set())
    if len(terms) == 1:
        return float(math.prod(sizes[label] for label in set(terms[0])))
    total, current = 0.0, set(terms[0])
    for index, term in enumerate(terms[1:], start=1):
        current |= set(term)
        total += 2.0 * math.prod(sizes[label] for label in current)
        current &= result.union(*terms[index + 1 :])
    return total


def _labels(term: str, rank: int) -> list[str]:
    """One label per axis; those that an ellipsis stands for are numbered from the last, as they align."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f".{axis}" for axis in range(hidden, 0, -1)), *after]
