"""Partitions that Triton's onnxruntime backend runs: target ngc.

That backend loads complete models only, so weights are put into the graph when the repository is written.
Format: https://github.com/triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muplan.profile.shapes import infer_shapes
from muplan.repository.batching import planned_dims
from muplan.repository.directory import Artefact
from muplan.repository.model_config import add_warm_up
from muplan.repository.partition_config import partition_config
from muplan.repository.triton_model import TritonModel
from muplan.spec import SpecFile
from muplan.spec_model import WeightsSpec
from muplan.splitting import save_model
from muplan.staging import StagedModel
from muserve.plan import ModelPlan, Plan
from muserve.weights import embed_weights, fill_weights, read_weights

if TYPE_CHECKING:
    import onnx

GRAPH_FILE = "model.onnx"


def onnx_stages(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile, crowded: frozenset[str]
) -> tuple[TritonModel, ...]:
    """A Triton model for each partition of ``model``."""
    shapes = _planned_shapes(staged)
    return tuple(
        _stage(plan, model, staged, spec_file, index, shapes, crowded)
        for index in range(len(model.partitions))
    )


def _stage(
    plan: Plan,
    model: ModelPlan,
    staged: StagedModel,
    spec_file: SpecFile,
    index: int,
    shapes: dict[str, tuple[int, ...]],
    crowded: frozenset[str],
) -> TritonModel:
    graph = staged.partitions[index].graph
    assert graph is not None, "a single-pass partition has a graph"
    weights, artefact = _graph(plan, staged, spec_file, graph)
    config = partition_config("onnxruntime", plan, model, staged, index, crowded, {"weights": weights})
    _warm_up(config, staged, shapes)
    return TritonModel(config=config, version_files={GRAPH_FILE: artefact})


def _graph(
    plan: Plan, staged: StagedModel, spec_file: SpecFile, graph: onnx.ModelProto
) -> tuple[str, Artefact]:
    """Where the weights come from, in words, and what writes the graph with them."""
    if staged.source.has_weights:
        return "the model's own", partial(save_model, graph)
    weights = staged.spec.weights or WeightsSpec(seed=plan.seed)
    if weights.file is not None:
        return weights.file, partial(_save_with_file, graph, spec_file.resolve(weights.file))
    assert weights.seed is not None, "the spec has one of the two"
    said = f"drawn from seed {weights.seed}: answers have no meaning"
    return said, partial(_save_with_seed, graph, weights.seed)


def _save_with_file(graph: onnx.ModelProto, weights: Path, file: Path) -> None:
    save_model(embed_weights(graph, read_weights(graph, weights)), file)


def _save_with_seed(graph: onnx.ModelProto, seed: int, file: Path) -> None:
    save_model(embed_weights(graph, fill_weights(graph, seed)), file)


def _warm_up(config: Any, staged: StagedModel, shapes: dict[str, tuple[int, ...]]) -> None:
    """A run at the planned sizes: the first one creates handles and picks kernels, which takes seconds."""
    if staged.spec.batching is None:
        add_warm_up(config, 1, shapes)
        return
    rows = {name: dims[1:] for name, dims in shapes.items()}
    for batch_size in (1, staged.spec.batching.max_batch_size):
        add_warm_up(config, batch_size, rows)


def _planned_shapes(staged: StagedModel) -> dict[str, tuple[int, ...]]:
    assert staged.source.graph is not None, "a single-pass model has a graph"
    shapes = infer_shapes(staged.source.graph, planned_dims(staged))
    return {name: shape.dims for name, shape in shapes.items()}
