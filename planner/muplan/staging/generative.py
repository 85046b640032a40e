"""A generative model: one engine that keeps all its layers, and the two phases it works in."""

from __future__ import annotations

from collections.abc import Mapping

from muplan.architecture.generative import GenerativeModel
from muplan.deployment_choices import rounded_law
from muplan.profile.llm import decode_costs, decode_growth_ms, decode_law, prefill_costs, prefill_law
from muplan.profile.roofline import EAGER
from muplan.sensitivity import OperatorTimes, operator_times, phase_times
from muplan.sources import LoadedModel
from muplan.spec_model import ModelSpec
from muplan.stage_memory import CONTEXT_BYTES
from muplan.staging.staged_model import Partition
from muplan.workload import Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part
from muserve.plan import Phase


def whole_engine(
    spec: ModelSpec, source: LoadedModel, parts: Mapping[str, Part]
) -> tuple[tuple[Partition, ...], dict[str, float]]:
    """A generative model as one partition: its layers, and a full key-value cache for every slot.

    With it, by part, what each further running request adds to a decode step, in milliseconds. InputError,
    naming the key, for tokens that the model cannot take.
    """
    llm = source.llm
    assert llm is not None, "a generative source has an architecture"
    tokens, slots = spec.answer_tokens, spec.token_engine.slots
    longest = longest_request(spec, llm)
    if tokens.prompt + tokens.output > longest:
        raise InputError(
            f"tokens: expected prompt and output of at most {longest} tokens together, "
            f"got {tokens.prompt + tokens.output:g}"
        )
    prompt, context = prompt_and_context(spec)
    cache = slots * longest * llm.kv_bytes_per_token
    stage = Stage(
        name=f"{spec.name}_engine",
        memory_bytes=CONTEXT_BYTES + llm.weight_bytes + cache,
        transfer_ms=0.0,
        laws={
            name: (
                rounded_law(prefill_law(llm, part, prompt)),
                rounded_law(decode_law(llm, part, 1, context)),
            )
            for name, part in parts.items()
        },
    )
    partition = Partition(
        stage=stage,
        first_operator="layer 0",
        last_operator=f"layer {llm.layers - 1}",
        operators=llm.layers,
        inputs=("text_input",),
        outputs=("text_output",),
        flops=sum(cost.flops for cost in decode_costs(llm, 1, 1)),
        weight_bytes=llm.weight_bytes,
        transfer_bytes=0,
        graph=None,
    )
    growth_ms = {name: round(decode_growth_ms(llm, part, slots, context), 6) for name, part in parts.items()}
    return (partition,), growth_ms


def longest_request(spec: ModelSpec, llm: GenerativeModel) -> int:
    """Tokens of the longest prompt and answer together; InputError when the model cannot take as many."""
    asked = spec.token_engine.max_model_len
    if asked is not None and asked > llm.max_tokens:
        raise InputError(f"engine.max_model_len: expected at most the model's {llm.max_tokens}, got {asked}")
    return asked or llm.max_tokens


def engine_operators(spec: ModelSpec, source: LoadedModel, part: Part) -> tuple[OperatorTimes, ...]:
    """The operators of reading a typical prompt, and of a token step in the middle of a typical answer."""
    llm = source.llm
    assert llm is not None, "a generative source has an architecture"
    prompt, context = prompt_and_context(spec)
    phases = {
        Phase.PREFILL: prefill_costs(llm, 1, prompt),
        Phase.DECODE: decode_costs(llm, 1, round(context)),
    }
    return tuple(
        phase_times(phase, part, operator_times(costs, part, llm.dtype, EAGER))
        for phase, costs in phases.items()
    )


def prompt_and_context(spec: ModelSpec) -> tuple[int, float]:
    """Tokens of a mean prompt, and those in the cache in the middle of a mean answer."""
    tokens = spec.answer_tokens
    return max(1, round(tokens.prompt)), tokens.prompt + tokens.output / 2
