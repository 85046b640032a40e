"""What the planner must place: models with their load and limits, and the GPUs there are. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from muserve.gpu.parts import Part
from muserve.plan import ModelKind, Phase, TimeLaw

# (position of the model among the demands, position of the stage in the model)
StageKey = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One GPU of the cluster that partitions can be put on; ``name`` is ``<node>/gpu<index>``."""

    name: str
    node: str
    index: int
    part: Part
    virtual: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One partition: ``laws`` maps a part's name to its time laws there.

    ``transfer_ms`` is what handing its input over costs when the previous stage sits on another GPU.
    """

    name: str
    memory_bytes: int
    transfer_ms: float
    laws: Mapping[str, tuple[TimeLaw, ...]]

    def law(self, part: str, phase: Phase) -> TimeLaw:
        """The law of ``phase`` on ``part``; KeyError when there is none."""
        for law in self.laws[part]:
            if law.phase is phase:
                return law
        raise KeyError(f"stage {self.name} has no {phase} law for {part}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """A generative model cut tensor parallel: one stage for each GPU of the group, all alike.

    ``decode_growth_ms`` as in ``Demand``.
    """

    stages: tuple[Stage, ...]
    decode_growth_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One model: its stages in the order a request visits them, its load and its limit.

    The token fields mean something for generative models only. Their stages are not visited in turn: there
    is one for each GPU of the tensor parallel group, mostly one, and they work in step. ``shardings`` are
    other such groups that the placement may choose instead. ``decode_growth_ms`` is what each further
    running request adds to a decode step at the top clock, per part. ``replica_counts`` are the numbers of
    replicas to choose from, ascending; each replica works on ``slots`` requests at once.
    """

    name: str
    kind: ModelKind
    stages: tuple[Stage, ...]
    rate_rps: float
    burstiness_cv: float
    slo_ms: float
    attainment_target: float
    output_tokens: float = 0.0
    output_cv: float = 0.0
    slots: int = 1
    decode_growth_ms: Mapping[str, float] = field(default_factory=dict)
    shardings: tuple[Sharding, ...] = ()
    replica_counts: tuple[int, ...] = (1,)

    def isolated_latency_ms(self, part: str) -> float:
        """Latency of one mean request on an otherwise idle ``part`` at its top clock."""
        if self.kind is ModelKind.SINGLE_PASS:
            return sum(stage.law(part, Phase.INFERENCE).latency_ms for stage in self.stages)
        engine = self.stages[0]
        step_ms = engine.law(part, Phase.DECODE).latency_ms
        return engine.law(part, Phase.PREFILL).latency_ms + self.output_tokens * step_ms
