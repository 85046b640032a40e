"""Time laws of generative models, from the operator costs of their prefill and decode graphs.

Both steps run in a token engine (``engine_costs``) that launches every kernel from the host. The roofline's
docstring says what its coefficients were fitted to; a test holds the laws to those measurements.
"""

from __future__ import annotations

from functools import lru_cache

from muplan.architecture.generative import GenerativeModel
from muplan.profile.operators import BATCH_AXIS, OperatorCost
from muplan.profile.roofline import EAGER, Runtime
from muplan.profile.shapes import dynamic_axes
from muplan.profile.token_engine import engine_costs
from muplan.sensitivity import stage_law
from muserve.gpu.parts import Part
from muserve.plan import Phase, TimeLaw


def prefill_law(llm: GenerativeModel, part: Part, prompt_tokens: int, runtime: Runtime = EAGER) -> TimeLaw:
    """Reading one prompt of ``prompt_tokens`` tokens, first token included."""
    costs = prefill_costs(llm, 1, prompt_tokens)
    return stage_law(costs, part, llm.dtype, runtime, Phase.PREFILL)


def decode_law(
    llm: GenerativeModel, part: Part, batch: int, context_tokens: float, runtime: Runtime = EAGER
) -> TimeLaw:
    """One token step of ``batch`` running requests with ``context_tokens`` in each cache."""
    costs = decode_costs(llm, batch, round(context_tokens))
    return stage_law(costs, part, llm.dtype, runtime, Phase.DECODE)


def decode_growth_ms(
    llm: GenerativeModel, part: Part, slots: int, context_tokens: float, runtime: Runtime = EAGER
) -> float:
    """How much a decode step grows per further running request, averaged up to ``slots`` requests.

    With it ``decode_law(batch=1).latency_ms + (running - 1) * growth`` is exact at 1 and at ``slots``.
    """
    if slots < 2:
        return 0.0
    one = decode_law(llm, part, 1, context_tokens, runtime).latency_ms
    return (decode_law(llm, part, slots, context_tokens, runtime).latency_ms - one) / (slots - 1)


@lru_cache(maxsize=256)
def prefill_costs(llm: GenerativeModel, batch: int, prompt_tokens: int) -> tuple[OperatorCost, ...]:
    """Operators of reading ``batch`` prompts of ``prompt_tokens`` tokens each."""
    return engine_costs(llm.prefill, batch, prefill_dims(llm, prompt_tokens))


@lru_cache(maxsize=256)
def decode_costs(llm: GenerativeModel, batch: int, context_tokens: int) -> tuple[OperatorCost, ...]:
    """Operators of one token step of ``batch`` requests with ``context_tokens`` in each cache."""
    return engine_costs(llm.decode, batch, decode_dims(llm, context_tokens))


def prefill_dims(llm: GenerativeModel, prompt_tokens: int) -> dict[str, int]:
    """Sizes of the prefill graph's axes besides the batch."""
    (axis,) = set(dynamic_axes(llm.prefill)) - {BATCH_AXIS}
    return {axis: max(prompt_tokens, 1)}


def decode_dims(llm: GenerativeModel, context_tokens: int) -> dict[str, int]:
    """Sizes of the decode graph's axes besides the batch.

    An encoder-decoder has a cache for the prompt and one for the answer. Both are equally wide, so that only
    their sum counts: all but one token are taken as the prompt's.
    """
    context = max(context_tokens, 1)
    if "prompt" in dynamic_axes(llm.decode):
        return {"context": 1, "prompt": max(context - 1, 1)}
    return {"context": context}
