"""What the placement may choose from for one model of the spec: replicas and tensor parallel degrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from muplan.architecture.generative import GenerativeModel
from muplan.profile.tensor_parallel import all_reduces_ms, sharded_law
from muplan.spec_model import ModelSpec
from muplan.workload import Demand, Sharding, Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part
from muserve.plan import Phase, TimeLaw

# The most replicas that ``replicas: auto`` tries.
MOST_REPLICAS = 4
# The degrees that ``tensor_parallel: auto`` tries.
DEGREES = (1, 2, 4, 8)


def with_replica_counts(spec: ModelSpec, demand: Demand) -> Demand:
    """``demand`` with the replica counts that its spec allows."""
    counts = tuple(range(1, MOST_REPLICAS + 1)) if spec.replicas == "auto" else (spec.replicas,)
    return replace(demand, replica_counts=counts)


def with_shardings(
    spec: ModelSpec,
    llm: GenerativeModel,
    demand: Demand,
    parts: Mapping[str, Part],
    link_gbs: float,
    fixed_bytes: int,
) -> Demand:
    """A generative ``demand`` whose engine can be tensor parallel, in the degrees that its spec allows.

    ``fixed_bytes`` of its one stage's memory are needed on every GPU. The demand's own stages become those of
    the smallest degree that fits one of ``parts``. InputError for a degree that does not divide the heads.
    """
    asked = spec.token_engine.tensor_parallel
    if asked != "auto" and llm.heads % asked:
        raise InputError(
            f"engine.tensor_parallel: expected a divisor of the {llm.heads} attention heads, got {asked}"
        )
    degrees = [d for d in DEGREES if llm.heads % d == 0] if asked == "auto" else [asked]
    largest_bytes = max(part.memory_bytes for part in parts.values())
    choices = {d: _sharding(spec, llm, demand, d, link_gbs, fixed_bytes) for d in degrees}
    fitting = {d: c for d, c in choices.items() if c.stages[0].memory_bytes <= largest_bytes}
    first, *others = (fitting or {degrees[-1]: choices[degrees[-1]]}).values()
    return replace(
        demand, stages=first.stages, decode_growth_ms=first.decode_growth_ms, shardings=tuple(others)
    )


def _sharding(
    spec: ModelSpec, llm: GenerativeModel, demand: Demand, degree: int, link_gbs: float, fixed_bytes: int
) -> Sharding:
    (whole,) = demand.stages
    communication_ms = {
        Phase.PREFILL: all_reduces_ms(llm, degree, spec.answer_tokens.prompt, link_gbs),
        Phase.DECODE: all_reduces_ms(llm, degree, 1, link_gbs),
    }
    per_request_ms = all_reduces_ms(llm, degree, 2, link_gbs) - communication_ms[Phase.DECODE]

    def sharded(law: TimeLaw) -> TimeLaw:
        return rounded_law(sharded_law(law, degree, communication_ms[law.phase]))

    stage = Stage(
        name=whole.name,
        memory_bytes=fixed_bytes + -(-(whole.memory_bytes - fixed_bytes) // degree),
        transfer_ms=whole.transfer_ms,
        laws={part: tuple(map(sharded, laws)) for part, laws in whole.laws.items()},
    )
    growth_ms = {part: round(ms / degree + per_request_ms, 6) for part, ms in demand.decode_growth_ms.items()}
    return Sharding(stages=(stage,) * degree, decode_growth_ms=growth_ms)


def rounded_law(law: TimeLaw) -> TimeLaw:
    """``law`` with digits that do not depend on the Python version: a nanosecond, a millionth of ``k``."""
    k = law.sensitivity
    sensitivity = replace(k, value=round(k.value, 6), low=round(k.low, 6), high=round(k.high, 6))
    return replace(law, latency_ms=round(law.latency_ms, 6), sensitivity=sensitivity)
