"""What changed from one plan to another: models, partitions, GPUs and the predicted power. Pure.

Everything that a plan decides or predicts is compared, of a cut its place. Where the plan came from is not:
the version of muServe, the digest of the spec and the seed may differ in plans that are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from muserve.plan import ModelPlan, PartitionPlan, Plan, TimeLaw


class Status(StrEnum):
    """What became of a model, a partition or a GPU."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field that has another value now."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A model, partition or GPU that is new, gone or changed; ``changes`` is empty for the first two."""

    name: str
    status: Status
    changes: tuple[Change, ...] = ()

    def change(self, field: str) -> Change | None:
        """The change of ``field``, if it has one."""
        return next((change for change in self.changes if change.field == field), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDifference:
    """All differences, in the order of the later plan; what is gone comes last."""

    plan: tuple[Change, ...]
    models: tuple[Difference, ...]
    partitions: tuple[Difference, ...]
    gpus: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        """Whether there is none."""
        return not (self.plan or self.models or self.partitions or self.gpus)


def compare_plans(before: Plan, after: Plan) -> PlanDifference:
    """What turns ``before`` into ``after``. Models, partitions and GPUs are told apart by their names."""
    return PlanDifference(
        plan=_changes(_plan_fields(before), _plan_fields(after)),
        models=_differences(_models(before), _models(after)),
        partitions=_differences(_partitions(before), _partitions(after)),
        gpus=_differences(
            {gpu.name: asdict(gpu) for gpu in before.gpus}, {gpu.name: asdict(gpu) for gpu in after.gpus}
        ),
    )


def _models(plan: Plan) -> dict[str, dict[str, Any]]:
    return {
        model.name: _model_fields(model, plan.profile_fingerprints.get(model.name)) for model in plan.models
    }


def _partitions(plan: Plan) -> dict[str, dict[str, Any]]:
    return {p.name: _partition_fields(p) for model in plan.models for p in model.partitions}


def _differences(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> tuple[Difference, ...]:
    found = []
    for name, fields in after.items():
        if name not in before:
            found.append(Difference(name=name, status=Status.ADDED))
        elif changes := _changes(before[name], fields):
            found.append(Difference(name=name, status=Status.CHANGED, changes=changes))
    found += [Difference(name=name, status=Status.REMOVED) for name in before if name not in after]
    return tuple(found)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Changed fields; one that only one side has is None on the other."""
    return tuple(
        Change(field=field, before=before.get(field), after=after.get(field))
        for field in dict.fromkeys([*after, *before])
        if before.get(field) != after.get(field)
    )


def _plan_fields(plan: Plan) -> dict[str, Any]:
    names = ("objective", "target", "link_gbs", "predicted_power_w", "default_clock_power_w")
    return {name: getattr(plan, name) for name in names}


def _model_fields(model: ModelPlan, fingerprint: str | None) -> dict[str, Any]:
    fields = asdict(model)
    fields["partitions"] = [partition.name for partition in model.partitions]
    fields["cuts"] = [cut.after_operator for cut in model.cuts]
    return fields | {"profile_fingerprint": fingerprint}


def _partition_fields(partition: PartitionPlan) -> dict[str, Any]:
    fields = asdict(partition)
    del fields["laws"], fields["replicas"]
    fields["gpus"] = ["+".join(replica.gpus) for replica in partition.replicas]
    for law in partition.laws:
        fields |= _law_fields(law)
    return fields


def _law_fields(law: TimeLaw) -> dict[str, Any]:
    k = law.sensitivity
    return {
        f"{law.phase.value}.latency_ms": law.latency_ms,
        f"{law.phase.value}.basis": law.basis.value,
        f"{law.phase.value}.k": k.value,
        f"{law.phase.value}.k_range": [k.low, k.high],
        f"{law.phase.value}.k_basis": k.basis.value,
    }
