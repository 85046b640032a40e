"""Shapes of what a load sends to single-pass models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from muserve.plan import ModelPlan

Shape = tuple[int, ...]
_GRAPH = "1/partition.onnx"


def input_shapes(repository: Path, model: ModelPlan, dims: Mapping[str, int]) -> dict[str, Shape]:
    """Shape of each graph input of ``model``'s partitions, one sample a request.

    Free dimensions get their size from ``dims`` (the spec's typical sizes), else 1. Tensors that one
    partition hands to the next are among them and do no harm: Triton says which ones a client sends.
    """
    import onnx

    shapes: dict[str, Shape] = {}
    for partition in model.partitions:
        graph = onnx.load(repository / partition.name / _GRAPH, load_external_data=False).graph
        weights = {weight.name for weight in graph.initializer}
        for tensor in graph.input:
            if tensor.name not in weights:
                axes = tensor.type.tensor_type.shape.dim
                shapes.setdefault(
                    tensor.name, tuple(axis.dim_value or dims.get(axis.dim_param, 1) for axis in axes)
                )
    return shapes
