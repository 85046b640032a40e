"""The plan: what the planner decided, and all that the power daemon needs besides live metrics.

``plan.json`` is the contract between ``muplan`` (writes it) and ``mupower``, ``muplan serve`` and the
report (read it). It is versioned, its keys are sorted and its bytes depend only on the spec and the
seed, so a plan can be reviewed as a diff.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from muserve.errors import InputError, input_error

PLAN_VERSION = 2
PLAN_FILE = "plan.json"
VGPU_DIR_VARIABLE = "MUSERVE_VGPU_DIR"
GRPC_URL_VARIABLE = "MUSERVE_GRPC_URL"
"""Where a model finds its own server's gRPC endpoint, host:port."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Basis(StrEnum):
    """How a figure was obtained. Modelled and measured figures are never mixed in one column."""

    MEASURED = "measured"
    MODELLED = "modelled"


class ModelKind(StrEnum):
    """``generative`` answers token by token; ``single-pass`` answers in one run of its graph."""

    GENERATIVE = "generative"
    SINGLE_PASS = "single-pass"


class Phase(StrEnum):
    """What a replica spends GPU time on.

    ``inference``: one run of a single-pass partition. ``prefill``: reading a prompt (the constant part
    of a generative request). ``decode``: one token step of a generative model.
    """

    INFERENCE = "inference"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Compute share ``k`` in ``t(f) = t(fmax) * ((1 - k) + k * fmax / f)``, with its plausible range."""

    __pydantic_config__ = _STRICT

    value: float
    low: float
    high: float
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLaw:
    """Time of one phase at the part's top clock, and how it grows when the clock drops."""

    __pydantic_config__ = _STRICT

    phase: Phase
    latency_ms: float
    sensitivity: Sensitivity
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """One instance of a partition: the names of its GPUs, several when it is tensor parallel."""

    __pydantic_config__ = _STRICT

    gpus: tuple[str, ...]

    @property
    def gpu(self) -> str:
        """The first of its GPUs, whose clock and node stand for all."""
        return self.gpus[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPlan:
    """One cut between two partitions of a model and what it gained, in the terms of ``muplan.partition``.

    ``unlikeness_removed`` and ``imbalance_removed`` are how much lower the cost of the model's cuts is with
    this cut than with the two partitions joined, ``transfer_cost`` and ``cut_cost`` what it adds instead.
    """

    __pydantic_config__ = _STRICT

    after_operator: str
    transfer_bytes: int
    transfer_ms: float
    unlikeness_removed: float
    imbalance_removed: float
    transfer_cost: float
    cut_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan:
    """A contiguous set of operators served as one Triton model, named ``name`` in the repository.

    ``laws`` are those on the part of its replicas' GPUs. ``decode_growth_ms`` is what each further running
    request adds to a decode step at the top clock; 0 unless the model is generative.
    """

    __pydantic_config__ = _STRICT

    name: str
    first_operator: str
    last_operator: str
    operators: int
    input_tensors: tuple[str, ...]
    output_tensors: tuple[str, ...]
    flops: float
    weight_bytes: int
    memory_bytes: int
    transfer_bytes: int
    laws: tuple[TimeLaw, ...]
    decode_growth_ms: float
    replicas: tuple[ReplicaPlan, ...]

    def law(self, phase: Phase) -> TimeLaw:
        """The time law of ``phase``; KeyError when this partition has no such phase."""
        for law in self.laws:
            if law.phase is phase:
                return law
        raise KeyError(f"partition {self.name} has no {phase} law")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model a client calls by ``name``, its SLO, and the partitions that serve it.

    ``cuts`` has one entry fewer than ``partitions``. ``slots`` is how many requests one replica of a
    generative model works on at once, 1 for a single-pass model.
    """

    __pydantic_config__ = _STRICT

    name: str
    kind: ModelKind
    source: str
    slo_ms: float
    attainment_target: float
    isolated_latency_ms: float
    rate_rps: float
    burstiness_cv: float
    mean_output_tokens: float
    output_cv: float
    slots: int
    predicted_attainment: float
    cuts: tuple[CutPlan, ...]
    partitions: tuple[PartitionPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """One GPU of the cluster and the clock it should start at.

    ``name`` is ``<node>/gpu<index>``. ``part`` names an entry of the part catalogue
    (``muserve.gpu.parts``) or a file ``parts/<part>.json`` beside the plan. ``uuid`` is set for virtual GPUs;
    for real ones it is null and the device is found by ``index`` on its node.
    """

    __pydantic_config__ = _STRICT

    name: str
    node: str
    index: int
    part: str
    virtual: bool
    uuid: str | None
    initial_clock_mhz: int
    initial_clock_reason: str
    memory_bytes: int
    memory_used_bytes: int
    predicted_utilisation: float
    predicted_power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything decided offline for one cluster; ``link_gbs`` is the link between two GPUs of a node."""

    __pydantic_config__ = _STRICT

    version: int
    muserve_version: str
    spec_sha256: str
    seed: int
    objective: str
    target: str
    link_gbs: float
    gpus: tuple[GpuPlan, ...]
    models: tuple[ModelPlan, ...]
    predicted_power_w: float
    default_clock_power_w: float
    profile_fingerprints: dict[str, str]

    def gpu(self, name: str) -> GpuPlan:
        """The GPU called ``name``; KeyError when the plan has none."""
        for gpu in self.gpus:
            if gpu.name == name:
                return gpu
        raise KeyError(f"the plan has no GPU {name}")

    def models_on(self, gpu: str) -> tuple[ModelPlan, ...]:
        """Models with at least one partition replica on the GPU called ``gpu``, in plan order."""
        return tuple(
            model
            for model in self.models
            if any(gpu in r.gpus for part in model.partitions for r in part.replicas)
        )


_ADAPTER: TypeAdapter[Plan] = TypeAdapter(Plan)


def plan_bytes(plan: Plan) -> bytes:
    """``plan.json`` as stable bytes: sorted keys, two-space indent, final newline."""
    document = _ADAPTER.dump_python(plan, mode="json")
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def parse_plan(text: str | bytes, source: Path | str) -> Plan:
    """Parse and validate ``plan.json``; ``source`` names it in the InputError raised when it is bad."""
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source}: not valid JSON: {error}") from error
    found = document.get("version") if isinstance(document, dict) else None
    if found != PLAN_VERSION:
        raise InputError(f"{source}: version: expected plan version {PLAN_VERSION}, got {found!r}")
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise input_error(source, error) from error


def read_plan(path: Path) -> Plan:
    """Read the plan at ``path`` (the file, or the directory that ``muplan generate`` wrote)."""
    file = path / PLAN_FILE if path.is_dir() else path
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: expected a readable plan: {error.strerror}") from error
    return parse_plan(text, file)


def vgpu_dir(plan_dir: Path) -> Path:
    """Where the virtual GPUs of a plan keep their shared state: ``$MUSERVE_VGPU_DIR`` or beside it."""
    override = os.environ.get(VGPU_DIR_VARIABLE)
    return Path(override) if override else plan_dir / "vgpu"
