"""The laws of a profile file in place of modelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from muplan.deployment_choices import rounded_law
from muplan.profile import profiled
from muplan.profile.profiled import inference_bucket, stage_laws
from muplan.profile.record import Profile
from muplan.sources import LoadedModel
from muplan.spec_model import ModelSpec
from muplan.staging.generative import prompt_and_context
from muplan.staging.staged_model import Partition
from muserve.errors import InputError
from muserve.plan import TimeLaw


def with_profiled_laws(
    spec: ModelSpec,
    source: LoadedModel,
    profile: Profile,
    partitions: Sequence[Partition],
    growth: Mapping[str, float],
) -> tuple[tuple[Partition, ...], dict[str, float]]:
    """``partitions`` and ``growth`` with the laws of ``profile`` on its part."""
    if source.llm is None:
        bucket = inference_bucket(profile, {**source.default_dims, **spec.dims})
        laws: list[tuple[TimeLaw, ...]] = [
            (law,) for law in stage_laws(profile, bucket, [p.operators for p in partitions])
        ]
        profiled_growth = {**growth}
    else:
        if len(partitions) > 1:
            raise InputError("profile: says nothing of a generative model in several partitions")
        slots, (prompt, context) = spec.token_engine.slots, prompt_and_context(spec)
        prefill = profiled.prefill_law(profile, prompt)
        laws = [(prefill, profiled.decode_law(profile, 1, context))]
        growth_ms = round(profiled.decode_growth_ms(profile, slots, context), 6)
        profiled_growth = {**growth, profile.part: growth_ms}
    stages = [
        replace(p.stage, laws={**p.stage.laws, profile.part: tuple(rounded_law(law) for law in stage)})
        for p, stage in zip(partitions, laws, strict=True)
    ]
    return tuple(
        replace(p, stage=stage) for p, stage in zip(partitions, stages, strict=True)
    ), profiled_growth
