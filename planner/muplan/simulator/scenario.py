"""What is simulated: GPUs at their clocks, models with their stages and their load. Plain data.

The physics are those of ``muserve.physics``; the words are those of the plan. Only parts that the plan's
GPUs have need a time law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from muplan.load.arrivals import ArrivalLaw
from muplan.load.trace import Trace
from muserve.gpu.parts import Part
from muserve.plan import ModelKind, TimeLaw


class Discipline(StrEnum):
    """Who of the waiting requests goes next; equal ones go in order of arrival.

    ``sjf`` knows the true lengths (the oracle), ``ssjf`` the predicted ones. ``priority`` is the virtual
    finish time: arrival + alpha x predicted service, lowest first.
    """

    FCFS = "fcfs"
    SSJF = "ssjf"
    SJF = "sjf"
    PRIORITY = "priority"


class Routing(StrEnum):
    """How a stage's replicas get their requests.

    ``least-backlog``: every replica has a queue, and a request joins the one with the least predicted
    work (the first of equals) for good. ``shared-queue``: one queue, and any free replica takes the next.
    """

    LEAST_BACKLOG = "least-backlog"
    SHARED_QUEUE = "shared-queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpu:
    """One GPU and the clock it starts at."""

    name: str
    part: Part
    clock_mhz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Dynamic batching of a single-pass stage; the default runs one request at a time.

    A free instance starts when ``max_batch`` requests wait or the next one has waited ``max_delay_ms``.
    A run takes as long as its longest request and ``growth`` times the sum of the others.
    """

    max_batch: int = 1
    growth: float = 1.0
    max_delay_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedStage:
    """One partition. ``laws`` and ``decode_growth_ms`` are per part, as in ``muplan.workload``.

    ``replicas`` names the GPUs of each: several when it is tensor parallel. Such a replica takes a share
    of each of its GPUs and goes at the pace of the slowest.
    """

    name: str
    laws: Mapping[str, tuple[TimeLaw, ...]]
    replicas: tuple[tuple[str, ...], ...]
    routing: Routing = Routing.LEAST_BACKLOG
    transfer_ms: float = 0.0
    decode_growth_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """One model, in the order of its stages.

    ``slots`` is how many requests one replica works on at once: the running batch of a token engine
    (continuous batching), the instances of a single-pass stage (time sharing). ``service_cv`` spreads the
    times of single-pass requests (Gamma). Answer lengths are log-normal, or the trace's.
    ``prediction_tau`` is Kendall's rank correlation of predicted and true answer lengths (log-normal);
    the prediction is an expected value. Single-pass times are taken as known.
    ``queue_limit`` bounds the waiting requests of one queue; None is no bound.
    """

    name: str
    kind: ModelKind
    stages: tuple[SimulatedStage, ...]
    load: ArrivalLaw | Trace
    slo_ms: float
    slots: int = 1
    service_cv: float = 0.0
    output_tokens: float = 0.0
    output_cv: float = 0.0
    batching: Batching = Batching()
    discipline: Discipline = Discipline.FCFS
    alpha: float = 30.0
    prediction_tau: float = 1.0
    queue_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Requests arrive for ``horizon_s``; those that arrive from ``warm_up_s`` on are measured, to their end.

    Power is measured from ``warm_up_s`` to ``horizon_s``.
    """

    gpus: tuple[SimulatedGpu, ...]
    models: tuple[SimulatedModel, ...]
    horizon_s: float
    warm_up_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.warm_up_s < self.horizon_s < math.inf:
            raise ValueError(
                f"expected 0 <= warm_up_s < horizon_s, got {self.warm_up_s} and {self.horizon_s}"
            )
        parts = {gpu.name: gpu.part.name for gpu in self.gpus}
        for what, names in (("GPU", [g.name for g in self.gpus]), ("model", [m.name for m in self.models])):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"expected one or more {what}s with distinct names, got {names}")
        for model in self.models:
            _check(model, parts)


def _check(model: SimulatedModel, parts: Mapping[str, str]) -> None:
    generative = model.kind is ModelKind.GENERATIVE
    if not model.stages or (generative and len(model.stages) > 1):
        raise ValueError(f"{model.name}: expected {'one stage' if generative else 'stages'}")
    if model.slots < 1 or model.batching.max_batch < 1 or not model.batching.growth >= 0.0:
        raise ValueError(f"{model.name}: expected slots and max_batch of 1 or more and growth >= 0")
    if generative and model.output_tokens < 1.0 and not isinstance(model.load, Trace):
        raise ValueError(f"{model.name}: expected output_tokens of 1 or more, got {model.output_tokens}")
    if not (model.alpha >= 0.0 and 0.0 <= model.prediction_tau <= 1.0):
        raise ValueError(f"{model.name}: expected alpha >= 0 and prediction_tau in [0, 1]")
    for stage in model.stages:
        if not stage.replicas or not all(stage.replicas):
            raise ValueError(f"{stage.name}: expected replicas with one or more GPUs")
        if generative and stage.routing is Routing.SHARED_QUEUE and len(stage.replicas) > 1:
            raise ValueError(f"{stage.name}: every token engine has a queue of its own")
        for gpus in stage.replicas:
            unknown = [gpu for gpu in gpus if gpu not in parts]
            if unknown:
                raise ValueError(f"{stage.name}: the scenario has no GPU {unknown[0]}")
            if len({parts[gpu] for gpu in gpus}) > 1:
                raise ValueError(f"{stage.name}: expected GPUs of one part in a replica, got {gpus}")
