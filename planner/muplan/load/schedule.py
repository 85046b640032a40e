"""Which request arrives when, with which prompt: the same for every arm of a comparison."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from muplan.load.arrivals import gamma_arrivals
from muplan.load.conversations import Conversation
from muserve.errors import InputError
from muserve.plan import ModelKind, ModelPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request of the load: ``planned_s`` after the load's start, to the model called ``model``.

    ``prompt`` is set for generative models; a single-pass request sends random tensors drawn from
    ``tensor_seed``.
    """

    model: str
    planned_s: float
    prompt: str | None
    tensor_seed: int


def plan_requests(
    models: Sequence[ModelPlan],
    conversations: Sequence[Conversation],
    duration_s: float,
    seed: int,
) -> tuple[PlannedRequest, ...]:
    """The load of ``models`` at their planned rate and burstiness, in order of arrival.

    Prompts are drawn without replacement until all were used, then from the start again. Each model has
    its own random stream, so adding a model leaves the others' requests as they were. Raises InputError
    when a generative model has no conversation to draw from.
    """
    planned: list[PlannedRequest] = []
    for model in models:
        rng = np.random.default_rng([seed, zlib.crc32(model.name.encode())])
        times = gamma_arrivals(model.rate_rps, model.burstiness_cv, duration_s, rng)
        prompts: Iterable[str | None] = itertools.repeat(None)
        if model.kind is ModelKind.GENERATIVE:
            if not conversations:
                raise InputError(f"{model.name}: expected conversations to replay, got none")
            order = rng.permutation(len(conversations))
            prompts = itertools.cycle(conversations[i].prompt for i in order)
        seeds = rng.integers(2**31, size=len(times))
        planned += [
            PlannedRequest(
                model=model.name, planned_s=float(time_s), prompt=prompt, tensor_seed=int(tensor_seed)
            )
            for time_s, prompt, tensor_seed in zip(times, prompts, seeds, strict=False)
        ]
    return tuple(sorted(planned, key=lambda request: (request.planned_s, request.model)))
