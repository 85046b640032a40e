"""Partitions that the Python backend runs with ONNX Runtime: target embedded.

Without a warm-up: it would spend time of a virtual GPU and count as requests in the stage's own metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from muplan.repository.batching import planned_rows, row_growth_ms
from muplan.repository.partition_config import partition_config
from muplan.repository.triton_model import TritonModel, number, shim
from muplan.spec import SpecFile
from muplan.spec_model import WeightsSpec
from muplan.splitting import save_model
from muplan.staging import StagedModel
from muserve.plan import ModelPlan, Phase, Plan

GRAPH_FILE = "partition.onnx"
# ONNX Runtime threads of one stage. One: the stages of a node run side by side.
_THREADS = 1


def python_stages(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile, crowded: frozenset[str]
) -> tuple[TritonModel, ...]:
    """A Triton model for each partition of ``model``."""
    weights, node_files = _weights(plan, model, staged, spec_file)
    times = _times(plan, model, staged)
    return tuple(
        _stage(plan, model, staged, index, {**weights, **times[index]}, node_files, crowded)
        for index in range(len(model.partitions))
    )


def _stage(
    plan: Plan,
    model: ModelPlan,
    staged: StagedModel,
    index: int,
    parameters: Mapping[str, str],
    node_files: Mapping[str, Path],
    crowded: frozenset[str],
) -> TritonModel:
    graph = staged.partitions[index].graph
    assert graph is not None, "a single-pass partition has a graph"
    parameters = {**parameters, "graph_file": GRAPH_FILE, "threads": str(_THREADS)}
    return TritonModel(
        config=partition_config("python", plan, model, staged, index, crowded, parameters),
        version_files={"model.py": shim("stage"), GRAPH_FILE: partial(save_model, graph)},
        node_files=node_files,
    )


def _times(plan: Plan, model: ModelPlan, staged: StagedModel) -> tuple[dict[str, str], ...]:
    """Parameters that say how long a run takes: of the planned batch, or of one row when Triton batches."""
    laws = [partition.law(Phase.INFERENCE) for partition in model.partitions]
    times = [
        {"latency_ms": number(law.latency_ms), "sensitivity": number(law.sensitivity.value)} for law in laws
    ]
    if staged.spec.batching is None:
        return tuple(times)
    further_rows = planned_rows(staged) - 1
    parts = [plan.gpu(partition.replicas[0].gpu).part for partition in model.partitions]
    growth = {part: row_growth_ms(staged, staged.parts[part]) for part in sorted(set(parts))}
    for index, part in enumerate(parts):
        growth_ms = growth[part][index]
        times[index]["latency_ms"] = number(max(0.0, laws[index].latency_ms - growth_ms * further_rows))
        times[index]["latency_ms_per_further_row"] = number(growth_ms)
    return tuple(times)


def _weights(
    plan: Plan, model: ModelPlan, staged: StagedModel, spec_file: SpecFile
) -> tuple[dict[str, str], dict[str, Path]]:
    """Parameters that say where missing weights come from, and the file to bring along."""
    if staged.source.has_weights:
        return {}, {}
    weights = staged.spec.weights or WeightsSpec(seed=plan.seed)
    if weights.file is None:
        return {"weights_seed": str(weights.seed)}, {}
    source = spec_file.resolve(weights.file)
    name = str(PurePosixPath("weights", model.name + source.suffix))
    return {"weights_file": name}, {name: source}
