"""Plan directories whose partitions have the replicas that a test wants, made from a real spec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from muplan.assembly import cluster_slots
from muplan.partition import DEFAULT_WEIGHTS
from muplan.pipeline import plan_spec
from muplan.repository.artefacts import artefacts
from muplan.repository.directory import Artefact, write_directory
from muplan.sources import load_source
from muplan.spec import SpecFile, read_spec
from muplan.staging import StagedModel, stage_model
from muserve.plan import Plan, ReplicaPlan

# Partition -> the GPUs of each of its replicas, by number.
Replicas = Mapping[str, Sequence[tuple[int, ...]]]


def write_rows_onnx(file: Path, *, layers: int = 2, width: int = 8) -> None:
    """``y = x @ w0 @ w1 ...`` for rows of ``width`` numbers, with its weights."""
    draw = np.random.default_rng(0)
    names = ["x", *(f"h{n}" for n in range(1, layers)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]], name=f"layer{n}")
        for n in range(layers)
    ]
    weights = [
        numpy_helper.from_array(draw.standard_normal((width, width)).astype(np.float32), f"w{n}")
        for n in range(layers)
    ]
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())


def rows_answer(file: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the model of ``write_rows_onnx`` answers."""
    for tensor in onnx.load(file).graph.initializer:
        x = x @ numpy_helper.to_array(tensor)
    return x


def write_spec(directory: Path, models: Sequence[Mapping[str, Any]], **changes: Any) -> SpecFile:
    """A spec of two virtual V100s, ``node0/gpu0`` and ``node0/gpu1``."""
    gpus = [{"part": "V100-16GB", "count": 2, "virtual": changes.pop("virtual", True)}]
    document = {"cluster": {"nodes": [{"name": "node0", "gpus": gpus}]}, "models": list(models), **changes}
    file = directory / "spec.yaml"
    file.write_text(json.dumps(document))  # every JSON document is YAML
    return read_spec(file)


def staged_models(spec_file: SpecFile) -> tuple[StagedModel, ...]:
    """The models of the spec as the planner cuts them."""
    parts = {
        slot.part.name: slot.part for slot in cluster_slots(spec_file.spec.cluster, spec_file.path.parent)
    }
    return tuple(
        stage_model(
            model,
            load_source(model.source, spec_file.path.parent),
            parts,
            spec_file.spec.cluster.link_gbs,
            DEFAULT_WEIGHTS,
        )
        for model in spec_file.spec.models
    )


def with_replicas(plan: Plan, replicas: Replicas) -> Plan:
    """``plan`` with other replicas for the partitions named in ``replicas``."""
    models = []
    for model in plan.models:
        partitions = [
            replace(
                partition,
                replicas=tuple(
                    ReplicaPlan(gpus=tuple(f"node0/gpu{number}" for number in numbers))
                    for numbers in replicas[partition.name]
                ),
            )
            if partition.name in replicas
            else partition
            for partition in model.partitions
        ]
        models.append(replace(model, partitions=tuple(partitions)))
    return replace(plan, models=tuple(models))


def replicated_files(
    spec_file: SpecFile, replicas: Replicas, **changes: Any
) -> tuple[Plan, dict[PurePosixPath, Artefact]]:
    """The plan of the spec with these replicas and other ``changes``, and the files of its directory."""
    plan = replace(with_replicas(plan_spec(spec_file).plan, replicas), **changes)
    return plan, artefacts(plan, staged_models(spec_file), spec_file)


def write_replicated(spec_file: SpecFile, replicas: Replicas, directory: Path) -> Plan:
    """Write what ``replicated_files`` gives to ``directory``."""
    plan, files = replicated_files(spec_file, replicas)
    write_directory(directory, files)
    return plan
