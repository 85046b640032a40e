"""Puts the plan together from what the steps before it found out. Pure but for reading parts.

Predictions are rounded far below their error: the last digits of a float differ between Python versions,
and a plan should be the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from muplan.deployment import Deployment, replica_demand
from muplan.placement import Placement
from muplan.spec import SpecFile
from muplan.spec_cluster import ClusterSpec
from muplan.staging import Partition, StagedModel, isolated_latency_ms
from muplan.workload import Demand, Slot
from muserve import __version__
from muserve.errors import InputError
from muserve.gpu.parts import PARTS_DIR, Part, load_part, part_bytes, part_names, read_part
from muserve.plan import PLAN_VERSION, GpuPlan, ModelPlan, PartitionPlan, Plan, ReplicaPlan


def cluster_slots(cluster: ClusterSpec, directory: Path) -> tuple[Slot, ...]:
    """Every GPU of the cluster in the spec's order; profile files are relative to ``directory``.

    InputError for a part that the catalogue does not have, a profile file that is no part, and two profile
    files of one name.
    """
    parts = _parts(cluster, directory)
    slots = []
    for node in cluster.nodes:
        groups = [group for group in node.gpus for _ in range(group.count)]
        for index, group in enumerate(groups):
            slot = Slot(
                name=f"{node.name}/gpu{index}",
                node=node.name,
                index=index,
                part=parts[group.part],
                virtual=group.virtual,
            )
            slots.append(slot)
    return tuple(slots)


def _parts(cluster: ClusterSpec, directory: Path) -> dict[str, Part]:
    """The cluster's parts by what the spec calls them."""
    parts: dict[str, Part] = {}
    for wanted in dict.fromkeys(group.part for node in cluster.nodes for group in node.gpus):
        in_file = wanted.endswith(".json")
        part = read_part(directory / Path(wanted).expanduser()) if in_file else load_part(wanted)
        for other, known in parts.items():
            if known.name == part.name and known != part:
                raise InputError(f"{wanted}: name: expected another name than the different part of {other}")
        parts[wanted] = part
    return parts


def part_files(slots: Sequence[Slot]) -> dict[PurePosixPath, bytes]:
    """What the plan's directory must keep of the parts that the catalogue does not have."""
    own = {slot.part.name: slot.part for slot in slots if slot.part.name not in part_names()}
    return {PurePosixPath(PARTS_DIR, f"{name}.json"): part_bytes(part) for name, part in own.items()}


def assemble_plan(
    spec_file: SpecFile, slots: Sequence[Slot], staged: Sequence[StagedModel], placement: Placement
) -> Plan:
    """The plan, with models in the order of ``staged`` and GPUs in that of ``slots``."""
    gpus = tuple(_gpu_plan(slot, placement, position) for position, slot in enumerate(slots))
    slot_of = {slot.name: slot for slot in slots}
    return Plan(
        version=PLAN_VERSION,
        muserve_version=__version__,
        spec_sha256=spec_file.sha256,
        seed=spec_file.spec.seed,
        objective=spec_file.spec.objective,
        target=spec_file.spec.serving.target.value,
        link_gbs=spec_file.spec.cluster.link_gbs,
        gpus=gpus,
        models=tuple(_model_plan(model, placement, slot_of) for model in staged),
        predicted_power_w=round(placement.point.power_w, 3),
        default_clock_power_w=round(placement.default_point.power_w, 3),
        profile_fingerprints={model.spec.name: model.source.profile_fingerprint for model in staged},
    )


def _gpu_plan(slot: Slot, placement: Placement, position: int) -> GpuPlan:
    point = placement.point.gpus[position]
    return GpuPlan(
        name=slot.name,
        node=slot.node,
        index=slot.index,
        part=slot.part.name,
        virtual=slot.virtual,
        uuid=f"VGPU-{slot.node}-{slot.index}" if slot.virtual else None,
        initial_clock_mhz=point.clock_mhz,
        initial_clock_reason=placement.clock_reasons[position],
        memory_bytes=slot.part.memory_bytes,
        memory_used_bytes=point.memory_used_bytes,
        predicted_utilisation=round(point.busy_share, 6),
        predicted_power_w=round(point.power_w, 3),
    )


def _model_plan(model: StagedModel, placement: Placement, slot_of: dict[str, Slot]) -> ModelPlan:
    names = [demand.name for demand in placement.demands]
    demand = model.demand
    parts = {slot.part.name: slot.part for slot in slot_of.values()}
    return ModelPlan(
        name=demand.name,
        kind=demand.kind,
        source=model.spec.source,
        slo_ms=demand.slo_ms,
        attainment_target=demand.attainment_target,
        isolated_latency_ms=round(isolated_latency_ms(demand, parts)[0], 6),
        rate_rps=demand.rate_rps,
        burstiness_cv=demand.burstiness_cv,
        mean_output_tokens=demand.output_tokens,
        output_cv=demand.output_cv,
        slots=demand.slots,
        predicted_attainment=round(placement.point.attainment[names.index(demand.name)], 6),
        cuts=model.cuts,
        partitions=tuple(
            _partition_plan(partition, demand, placement, slot_of) for partition in model.partitions
        ),
    )


def _partition_plan(
    partition: Partition, demand: Demand, placement: Placement, slot_of: dict[str, Slot]
) -> PartitionPlan:
    replicas = placement.replicas[partition.stage.name]
    part = slot_of[replicas[0][0]].part.name
    deployed = replica_demand(demand, Deployment(replicas=len(replicas), degree=len(replicas[0])))
    stage = next(stage for stage in deployed.stages if stage.name == partition.stage.name)
    return PartitionPlan(
        name=stage.name,
        first_operator=partition.first_operator,
        last_operator=partition.last_operator,
        operators=partition.operators,
        input_tensors=partition.inputs,
        output_tensors=partition.outputs,
        flops=partition.flops,
        weight_bytes=partition.weight_bytes,
        memory_bytes=stage.memory_bytes,
        transfer_bytes=partition.transfer_bytes,
        laws=stage.laws[part],
        decode_growth_ms=deployed.decode_growth_ms.get(part, 0.0),
        replicas=tuple(ReplicaPlan(gpus=gpus) for gpus in replicas),
    )
