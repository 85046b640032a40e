"""What staging makes of a model of the spec. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.sensitivity import OperatorTimes
from muplan.sources import LoadedModel
from muplan.spec_model import ModelSpec
from muplan.workload import Demand, Stage
from muserve.gpu.parts import Part
from muserve.plan import CutPlan

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition as the plan describes it. ``graph`` is None for a generative model.

    ``flops`` are those of one run, for a generative model of one token.
    """

    stage: Stage
    first_operator: str
    last_operator: str
    operators: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: float
    weight_bytes: int
    transfer_bytes: int
    graph: onnx.ModelProto | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedModel:
    """A model of the spec, cut and profiled on every part of the cluster.

    ``cuts`` lie between partitions. ``operators`` are those that the cuts were chosen by, one entry for each
    phase.
    """

    spec: ModelSpec
    source: LoadedModel
    demand: Demand
    partitions: tuple[Partition, ...]
    cuts: tuple[CutPlan, ...]
    operators: tuple[OperatorTimes, ...]
    parts: Mapping[str, Part]
