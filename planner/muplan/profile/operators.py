"""What each operator of a graph computes and moves at given input sizes.

Counting rules. A multiply-add is two floating-point operations. Elementwise operators are counted with
a few operations per element; they are never what limits a kernel. Runtimes (ONNX Runtime, TensorRT)
fuse, so kernels are counted after the fusions that all of them make:

* an elementwise operator that reads the result of the kernel just before it runs inside that kernel: it
  launches nothing, and reads only its operands from elsewhere;
* reshapes, transpositions, slices and broadcasts only change how the neighbours index memory: free;
* shape arithmetic and constant expressions run once or on the host: free;
* matrices looked up in a table of them (a mixture's experts) are read where they lie by the product that
  takes them, a grouped GEMM: each at most once, however many rows chose it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.profile.shapes import TensorShape, infer_shapes
from muplan.profile.structure import Structure, structure

if TYPE_CHECKING:
    import onnx

BATCH_AXIS = "batch"
MOST_CROSSING_TENSORS = 4

_MATRIX = frozenset({"Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"})
_VIEWS = frozenset(
    {
        *("Dropout", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Size", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_OWN_KERNEL = frozenset(
    {
        *("ArgMax", "ArgMin", "AveragePool", "Concat", "CumSum", "Gather", "GatherElements", "GatherND"),
        *("GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "LogSoftmax", "MaxPool", "Pad", "ReduceL2", "ReduceMax", "ReduceMean"),
        *("ReduceMin", "ReduceProd", "ReduceSum", "Resize", "RMSNormalization", "ScatterElements"),
        *("ScatterND", "Softmax", "Tile", "TopK"),
    }
)
_FLOPS_PER_ELEMENT = {
    "Erf": 8.0,
    "Exp": 4.0,
    "Gelu": 12.0,
    "Log": 4.0,
    "Sigmoid": 5.0,
    "Tanh": 6.0,
    "Sqrt": 2.0,
    "BatchNormalization": 2.0,
    "LogSoftmax": 6.0,
    "Softmax": 5.0,
    "GroupNormalization": 8.0,
    "InstanceNormalization": 8.0,
    "LayerNormalization": 8.0,
    "Concat": 0.0,
    "Gather": 0.0,
    "GatherElements": 0.0,
    "GatherND": 0.0,
    "Pad": 0.0,
    "Tile": 0.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """One operator in the linearised order.

    ``flops``: floating-point operations. ``bytes_read`` and ``bytes_written``: device memory traffic,
    weights included. ``weight_bytes``: initialisers that no earlier operator reads. ``matrix``: runs on
    the dtype's matrix units. ``launches``: starts a kernel of its own. ``crossing``: tensors a cut after
    this operator would send on, ``cut_bytes`` their size. ``cuttable``: whether such a cut is offered
    (no fused kernel torn apart, at most ``MOST_CROSSING_TENSORS`` tensors, none of them a scalar).
    """

    name: str
    op_type: str
    flops: float
    bytes_read: int
    bytes_written: int
    weight_bytes: int
    matrix: bool
    launches: bool
    crossing: tuple[str, ...]
    cut_bytes: int
    cuttable: bool


def operator_costs(model: onnx.ModelProto, batch: int, dims: Mapping[str, int]) -> tuple[OperatorCost, ...]:
    """Costs of all operators in stored order, at batch size ``batch`` and the given dynamic sizes.

    ``dims`` is keyed by the names of ``dynamic_axes``; the axis called ``batch`` takes ``batch``.
    Raises InputError when a dynamic axis has no size or a shape cannot be inferred.
    """
    shapes = infer_shapes(model, {**dims, BATCH_AXIS: batch})
    graph = structure(model)
    work = _work(graph, shapes)
    crossing = graph.crossing()
    return tuple(
        OperatorCost(
            name=node.name or f"{node.op_type}_{position}",
            op_type=node.op_type,
            flops=work[position].flops,
            bytes_read=work[position].bytes_read,
            bytes_written=work[position].bytes_written,
            weight_bytes=work[position].weight_bytes,
            matrix=node.op_type in _MATRIX,
            launches=work[position].launches,
            crossing=crossing[position],
            cut_bytes=sum(shapes[name].size_bytes for name in crossing[position]),
            cuttable=_cuttable(work, position, [shapes[name] for name in crossing[position]]),
        )
        for position, node in enumerate(graph.nodes)
    )


def graph_dtype(model: onnx.ModelProto) -> str:
    """``fp16`` when most weight elements are 16 bit wide, else ``fp32``: the keys of ``peak_tflops``."""
    from onnx import TensorProto

    narrow = wide = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            narrow += math.prod(tensor.dims)
        elif tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
            wide += math.prod(tensor.dims)
    return "fp16" if narrow > wide else "fp32"


@dataclass(frozen=True, slots=True)
class _Work:
    """Counted work of one operator."""

    flops: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    weight_bytes: int = 0
    launches: bool = False


def _work(graph: Structure, shapes: Mapping[str, TensorShape]) -> list[_Work]:
    """One walk over the operators, remembering in which kernel each tensor is made."""
    kernel, made_in = 0, dict[str, int]()
    met: set[str] = set()
    looked_up: dict[str, int] = {}
    result = []
    for position, node in enumerate(graph.nodes):
        needed = dict.fromkeys(graph.needs(position)) if position in graph.owned else {}
        weights = [name for name in needed if name in graph.constants]
        new_bytes = sum(shapes[name].size_bytes for name in weights if name not in met)
        met.update(weights)
        view = node.op_type in _VIEWS or position not in graph.owned
        fused = (
            not view and kernel > 0 and _fusible(node) and kernel in {made_in.get(n, -1) for n in node.input}
        )
        if view:
            source = node.input[0] if node.input else ""
            made_in.update((name, made_in.get(source, -1)) for name in node.output)
            result.append(_Work(weight_bytes=new_bytes))
            continue
        if node.op_type == "Gather" and any(len(shapes[name].dims) > 2 for name in weights):
            looked_up[node.output[0]] = _read_bytes(node, node.input[0], shapes)
            result.append(_Work(weight_bytes=new_bytes))
            continue
        if not fused:
            kernel += 1
        outside = [n for n in dict.fromkeys(node.input) if n and not (fused and made_in.get(n) == kernel)]
        made_in.update((name, kernel) for name in node.output)
        written = sum(shapes[name].size_bytes for name in node.output if name)
        result.append(
            _Work(
                flops=_flops(node, shapes),
                bytes_read=sum(looked_up.get(name) or _read_bytes(node, name, shapes) for name in outside),
                bytes_written=0 if fused else written,
                weight_bytes=new_bytes,
                launches=not fused,
            )
        )
    return result


def _fusible(node: onnx.NodeProto) -> bool:
    return node.op_type not in _MATRIX and node.op_type not in _OWN_KERNEL


def _read_bytes(node: onnx.NodeProto, name: str, shapes: Mapping[str, TensorShape]) -> int:
    """Traffic of reading one operand; a lookup reads only the rows it returns."""
    if node.op_type in ("Gather", "GatherElements", "GatherND") and name == node.input[0]:
        return min(shapes[name].size_bytes, shapes[node.output[0]].size_bytes)
    return shapes[name].size_bytes


def _flops(node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> float:
    """Floating-point operations of one operator; a multiply-add is two."""
    out = float(shapes[node.output[0]].elements)
    given = shapes[node.input[0]].dims if node.input and node.input[0] else ()
    attributes = {attribute.name: attribute for attribute in node.attribute}
    match node.op_type:
        case "Conv":
            return 2 * out * math.prod(shapes[node.input[1]].dims[1:])
        case "ConvTranspose":
            return 2.0 * math.prod(given) * math.prod(shapes[node.input[1]].dims[1:])
        case "MatMul":
            return 2 * out * given[-1]
        case "Gemm":
            turned = "transA" in attributes and attributes["transA"].i
            return 2 * out * given[0 if turned else 1]
        case "LSTM" | "GRU" | "RNN":  # every step multiplies by both weight matrices
            weights = sum(shapes[name].elements for name in node.input[1:3])
            return 2.0 * given[0] * given[1] * weights
        case "AveragePool" | "MaxPool":
            return out * math.prod(attributes["kernel_shape"].ints)
        case op if op.startswith(("Reduce", "Global", "Arg")):
            return float(math.prod(given))
        case op:
            return _FLOPS_PER_ELEMENT.get(op, 1.0) * out


def _cuttable(work: list[_Work], position: int, crossing: list[TensorShape]) -> bool:
    """Whether a cut after ``position`` is offered: right before a kernel, with little to send on."""
    before_kernel = position + 1 < len(work) and work[position + 1].launches
    few = 0 < len(crossing) <= MOST_CROSSING_TENSORS
    return before_kernel and few and all(shape.dims for shape in crossing)
