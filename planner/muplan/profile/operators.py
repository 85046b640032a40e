"""What each operator of a graph computes and moves at given input sizes.

Runtimes (ONNX Runtime, TensorRT) fuse, so kernels are counted after the fusions that all of them make:

* an elementwise operator that reads the result of the kernel just before it runs inside that kernel: it
  launches nothing, and reads only its operands from elsewhere;
* reshapes, transpositions, slices and broadcasts only change how the neighbours index memory: free;
* dequantisation happens inside the kernel that reads its result, which then reads the quantised data;
* shape arithmetic and constant expressions run once or on the host: free;
* matrices looked up in a table of them (a mixture's experts) are read where they lie by the product that
  takes them, a grouped GEMM: each at most once, however many rows chose it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.profile.flops import flops, on_matrix_units
from muplan.profile.shapes import infer_shapes
from muplan.profile.structure import Structure, in_onnx_domain, structure
from muplan.profile.tensor_shape import TensorShape

if TYPE_CHECKING:
    import onnx

BATCH_AXIS = "batch"
MOST_CROSSING_TENSORS = 4

_VIEWS = frozenset(
    {
        *("DepthToSpace", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Identity", "Reshape"),
        *("Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_OWN_KERNEL = frozenset(
    {
        *("ArgMax", "ArgMin", "AveragePool", "Concat", "CumSum", "DFT", "Gather", "GatherElements"),
        *("GatherND", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample"),
        *("GroupNormalization", "Hardmax", "InstanceNormalization", "LayerNormalization", "LogSoftmax"),
        *("LpNormalization", "LpPool", "LRN", "MaxPool", "MaxUnpool", "MeanVarianceNormalization", "Pad"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
        *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize", "RMSNormalization"),
        *("RoiAlign", "ScatterElements", "ScatterND", "Softmax", "STFT", "Tile", "TopK", "Upsample"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """One operator in the linearised order.

    ``flops``: floating-point operations. ``bytes_read`` and ``bytes_written``: device memory traffic,
    weights included. ``weight_bytes``: initialisers that no earlier operator reads. ``matrix``: runs on
    the dtype's matrix units. ``launches``: starts a kernel of its own. ``crossing``: tensors a cut after
    this operator would send on, left out when there are more than ``MOST_CROSSING_TENSORS``;
    ``cut_bytes``: the size of all. ``cuttable``: whether such a cut is offered (no fused kernel torn
    apart, few tensors, none of them a scalar or dequantised).
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
    crossings = _crossings(graph, shapes)
    return tuple(
        OperatorCost(
            name=node.name or f"{node.op_type}_{position}",
            op_type=node.op_type,
            flops=work[position].flops,
            bytes_read=work[position].bytes_read,
            bytes_written=work[position].bytes_written,
            weight_bytes=work[position].weight_bytes,
            matrix=on_matrix_units(node),
            launches=work[position].launches,
            crossing=crossings[position][0],
            cut_bytes=crossings[position][1],
            cuttable=_cuttable(graph, work, position, crossings[position][0], shapes),
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
            looked_up[node.output[0]] = _read_bytes(graph, node, node.input[0], shapes)
            result.append(_Work(weight_bytes=new_bytes))
            continue
        if not fused:
            kernel += 1
        outside = [n for n in dict.fromkeys(node.input) if n and not (fused and made_in.get(n) == kernel)]
        made_in.update((name, kernel) for name in node.output)
        written = sum(shapes[name].size_bytes for name in node.output if name)
        result.append(
            _Work(
                flops=flops(node, shapes),
                bytes_read=sum(
                    looked_up.get(name) or _read_bytes(graph, node, name, shapes) for name in outside
                ),
                bytes_written=0 if fused else written,
                weight_bytes=new_bytes,
                launches=not fused,
            )
        )
    return result


def _fusible(node: onnx.NodeProto) -> bool:
    return in_onnx_domain(node) and not on_matrix_units(node) and node.op_type not in _OWN_KERNEL


def _read_bytes(graph: Structure, node: onnx.NodeProto, name: str, shapes: Mapping[str, TensorShape]) -> int:
    """Traffic of reading one operand: of a lookup the rows it returns, of quantised data what is stored."""
    if node.op_type in ("Gather", "GatherElements", "GatherND") and name == node.input[0]:
        return min(shapes[name].size_bytes, shapes[node.output[0]].size_bytes)
    if graph.maker(name) == "DequantizeLinear":
        stored = graph.nodes[graph.producers[name]].input
        return sum(shapes[operand].size_bytes for operand in stored if operand)
    return shapes[name].size_bytes


def _crossings(graph: Structure, shapes: Mapping[str, TensorShape]) -> list[tuple[tuple[str, ...], int]]:
    """For every position, the tensors that live across it, if few, and the bytes of all of them."""
    lifetimes = graph.lifetimes()
    ending: dict[int, list[str]] = {}
    for name, (_, last) in lifetimes.items():
        ending.setdefault(last, []).append(name)
    live: dict[str, None] = {}
    live_bytes = 0
    result = []
    for position, node in enumerate(graph.nodes):
        for name in ending.get(position, ()):
            del live[name]
            live_bytes -= shapes[name].size_bytes
        for name in node.output:
            if name in lifetimes:
                live[name] = None
                live_bytes += shapes[name].size_bytes
        few = len(live) <= MOST_CROSSING_TENSORS
        result.append((tuple(live) if few else (), live_bytes))
    return result


def _cuttable(
    graph: Structure,
    work: list[_Work],
    position: int,
    crossing: tuple[str, ...],
    shapes: Mapping[str, TensorShape],
) -> bool:
    """Whether a cut after ``position`` is offered: right before a kernel, with little to send on."""
    following = position + 1
    while following < len(work) and graph.nodes[following].op_type == "DequantizeLinear":
        following += 1  # they run inside the kernels that read them
    before_kernel = following < len(work) and work[following].launches
    return (
        before_kernel
        and bool(crossing)
        and all(shapes[name].dims and not _read_in_place(graph, work, name) for name in crossing)
    )


def _read_in_place(graph: Structure, work: Sequence[_Work], name: str) -> bool:
    """Whether ``name`` never exists in memory: its reader takes the data from where it is stored."""
    match graph.maker(name):
        case "DequantizeLinear":
            return True
        case "Gather":
            return not work[graph.producers[name]].launches
    return False
