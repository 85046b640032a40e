"""Whether each stage of a model fits on one GPU of the cluster, and what would help if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture
from muplan.architecture.generative import GenerativeModel
from muplan.deployment_choices import DEGREES
from muplan.spec_model import ModelSpec
from muplan.stage_memory import CONTEXT_BYTES
from muplan.workload import Demand, Stage
from muserve.errors import InputError
from muserve.gpu.parts import Part, load_part, part_names


def check_memory(
    spec: ModelSpec,
    demand: Demand,
    parts: Mapping[str, Part],
    llm: GenerativeModel | None,
    *,
    longest: int,
    tensor_parallel: bool,
) -> None:
    """InputError, naming what would help, when a stage of ``demand`` is too large for every GPU.

    ``longest``: tokens that a slot of ``llm`` keeps its cache for. ``tensor_parallel``: whether the target's
    engine can work on several GPUs at once.
    """
    largest = max(parts.values(), key=lambda part: part.memory_bytes)
    for stage in demand.stages:
        if stage.memory_bytes <= largest.memory_bytes:
            continue
        helps = [] if llm is None else [*_smaller_caches(spec, llm, len(demand.stages), largest, longest)]
        helps += ["more partitions"] if llm is None else []
        helps += [*_larger_gpu(stage)]
        if llm is not None and not isinstance(llm.net, EncoderDecoderArchitecture) and spec.profile is None:
            whole_bytes = llm.weight_bytes + spec.token_engine.slots * longest * llm.kv_bytes_per_token
            helps += [*_more_gpus_each(llm, whole_bytes, largest, tensor_parallel=tensor_parallel)]
        together = len(demand.stages) if llm is not None else 1
        on = f"each of its {together} GPUs" if together > 1 else "one GPU"
        raise InputError(
            f"{stage.name} needs {stage.memory_bytes / 1e9:.1f} GB on {on} and the largest here, "
            f"{largest.name}, has {largest.memory_bytes / 1e9:.1f} GB: expected "
            f"{' or '.join(helps) or 'a smaller model'}"
        )


def _smaller_caches(
    spec: ModelSpec, llm: GenerativeModel, degree: int, largest: Part, longest: int
) -> Iterator[str]:
    """Fewer slots, or shorter requests in as many, if the weights leave room for any."""
    room_bytes = degree * (largest.memory_bytes - CONTEXT_BYTES) - llm.weight_bytes
    slots = room_bytes // (longest * llm.kv_bytes_per_token)
    if slots >= 1:
        yield f"engine.slots up to {slots}"
    tokens = room_bytes // (spec.token_engine.slots * llm.kv_bytes_per_token)
    if tokens >= spec.answer_tokens.prompt + spec.answer_tokens.output:
        yield f"engine.max_model_len up to {tokens}"


def _larger_gpu(stage: Stage) -> Iterator[str]:
    """The smallest GPU of the catalogue that has the memory."""
    known = sorted((load_part(name) for name in part_names()), key=lambda part: part.memory_bytes)
    enough = next((part for part in known if part.memory_bytes >= stage.memory_bytes), None)
    if enough is not None:
        yield f"a larger GPU such as {enough.name}"


def _more_gpus_each(
    llm: GenerativeModel, whole_bytes: int, largest: Part, *, tensor_parallel: bool
) -> Iterator[str]:
    """The fewest GPUs that an engine over several of them needs."""
    for degree in DEGREES:
        fits = CONTEXT_BYTES + whole_bytes / degree <= largest.memory_bytes
        if degree > 1 and llm.heads % degree == 0 and fits:
            if tensor_parallel:
                yield f"engine.tensor_parallel: {degree}"
            else:
                yield f"target ngc, whose vllm works tensor parallel on {degree} of them"
            return
