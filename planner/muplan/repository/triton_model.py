"""One model of a Triton repository, before it becomes files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from muplan.repository.directory import Artefact
from muplan.repository.model_config import Instance
from muserve.plan import ModelPlan, PartitionPlan, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """``config`` is its ``ModelConfig``; ``version_files`` are the files of its version directory.

    An ensemble has none. ``node_files`` maps paths relative to the node's directory to the user's files
    that belong there.
    """

    config: Any
    version_files: Mapping[str, Artefact] = field(default_factory=dict)
    node_files: Mapping[str, Path] = field(default_factory=dict)


def shim(package: str) -> bytes:
    """``model.py`` of a package of ``mubackend``, read as a file: what runs in Triton is never imported."""
    spec = importlib.util.find_spec("mubackend")
    locations = spec.submodule_search_locations if spec else None
    assert locations, "mubackend is part of this distribution"
    return Path(locations[0], package, "model.py").read_bytes()


def common_parameters(model: ModelPlan) -> dict[str, str]:
    """What every model of ours is told: the public name and SLO."""
    return {"muserve_model": model.name, "slo_ms": number(model.slo_ms)}


def stage_position(model: ModelPlan, index: int) -> dict[str, str]:
    """Which of the model's partitions it is."""
    return {"stage_index": str(index), "stage_count": str(len(model.partitions))}


def replica_parameters(plan: Plan, partition: PartitionPlan) -> dict[str, str]:
    """Names, and UUIDs of virtual GPUs, for each replica in the order of the instance groups.

    Replicas are separated by ``;`` and the GPUs of one by ``,``: instance ``<model>_<group>_<n>`` finds its
    own, on real GPUs and on the CPU, where Triton gives every instance device 0.
    """
    gpus = [[plan.gpu(name) for name in replica.gpus] for replica in partition.replicas]
    parameters = {"gpu": ";".join(",".join(gpu.name for gpu in group) for group in gpus)}
    if all(gpu.virtual for group in gpus for gpu in group):
        parameters["gpu_uuid"] = ";".join(",".join(gpu.uuid or "" for gpu in group) for group in gpus)
    return parameters


def replica_instances(plan: Plan, partition: PartitionPlan) -> tuple[Instance, ...]:
    """An instance for each replica, on its GPUs."""
    return tuple(
        Instance(gpus=tuple(plan.gpu(name).index for name in replica.gpus)) for replica in partition.replicas
    )


def stage_instances(plan: Plan, partition: PartitionPlan, crowded: frozenset[str]) -> tuple[Instance, ...]:
    """The same for a single-pass partition, whose instances take turns on the GPUs named in ``crowded``."""
    return tuple(
        replace(instance, resource=f"gpu{instance.gpus[0]}") if replica.gpu in crowded else instance
        for instance, replica in zip(replica_instances(plan, partition), partition.replicas, strict=True)
    )


def gpu_names(partitions: Iterable[PartitionPlan]) -> str:
    """The GPUs of all replicas of ``partitions``, each once, separated by commas."""
    replicas = (replica for partition in partitions for replica in partition.replicas)
    return ",".join(dict.fromkeys(name for replica in replicas for name in replica.gpus))


def number(value: float) -> str:
    """A number as a parameter, without the last digits, which differ between Python versions."""
    return f"{value:.9g}"
