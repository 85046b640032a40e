"""What a spec names besides the models themselves, files and engines: there, and of the right kind."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture
from muplan.load.trace import Trace, read_trace
from muplan.profile.profile_file import read_profile
from muplan.profile.profiled import check_profile
from muplan.sources import LoadedModel
from muplan.spec import HIGHEST_CV, LoadSpec, ModelSpec, SpecFile, Target, TokensSpec
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.weights import read_weights


def check_model_paths(model: ModelSpec, spec_file: SpecFile) -> None:
    """InputError, naming the key, for an answers or tokenizer file that cannot be used."""
    if model.engine is not None and model.engine.answers is not None:
        _readable(spec_file, "engine.answers", model.engine.answers)
    if model.tokenizer is not None:
        _check_tokenizer(_readable(spec_file, "tokenizer", model.tokenizer))


def with_trace_read(model: ModelSpec, spec_file: SpecFile) -> ModelSpec:
    """The model with the mean load and lengths of its trace; itself when it has none.

    InputError, naming the key, for a trace that cannot be used.
    """
    if model.load.trace is None:
        return model
    try:
        trace = read_trace(spec_file.resolve(model.load.trace))
    except InputError as error:
        raise InputError(f"load.trace: {error}") from error
    load = LoadSpec(rate_rps=round(trace.rate_rps, 6), cv=min(round(trace.cv, 6), HIGHEST_CV))
    changes: dict[str, object] = {"load": load}
    if model.kind is ModelKind.GENERATIVE and model.tokens is None:
        changes["tokens"] = _mean_tokens(trace)
    return model.model_copy(update=changes)


def check_engine(model: ModelSpec, source: LoadedModel, spec_file: SpecFile) -> None:
    """InputError, naming the key, when the target has no engine that serves the generative ``model``.

    vLLM's list of models has none of the encoder-decoders that ``source`` can be
    (https://docs.vllm.ai/en/latest/models/supported_models.html).
    """
    if model.kind is not ModelKind.GENERATIVE:
        return
    spec = spec_file.spec
    target, name = spec.serving.target, model.token_engine.name
    wanted = "vllm" if target is Target.NGC else "replay"
    if spec.serving.queue == "native" and target is Target.EMBEDDED and name not in (None, "replay"):
        raise InputError(
            f"engine.name: {name} of target embedded orders its requests itself, so queue native would order "
            "them twice: expected queue engine, or replay, which then stands in for an engine that does not"
        )
    if name not in (None, wanted):
        raise InputError(f"engine.name: target {target.value} has the engine {wanted}, got {name}")
    if target is Target.NGC:
        if source.llm is not None and isinstance(source.llm.net, EncoderDecoderArchitecture):
            raise InputError(
                f"source: {model.source} is an encoder-decoder, which vllm, the engine of target ngc, does "
                "not run: expected a decoder or target embedded"
            )
        vllm_model(model, spec_file)
    elif not all(group.virtual for node in spec.cluster.nodes for group in node.gpus):
        raise InputError(
            "engine.name: replay runs on virtual GPUs only, the cluster has real ones: expected target ngc, "
            "whose engine is vllm"
        )


def vllm_model(model: ModelSpec, spec_file: SpecFile) -> str:
    """What vLLM is told to load; InputError when neither ``engine.model`` nor the source says it.

    A directory in ``source`` is not taken: its place on the node is known to the user alone.
    """
    if model.token_engine.model is not None:
        return model.token_engine.model
    scheme, _, name = model.source.partition(":")
    if scheme == "hf" and not spec_file.resolve(name).is_dir():
        return name
    raise InputError(
        f"engine.model: expected a Hugging Face id or the path of a directory on the node, which target ngc "
        f"needs for source {model.source}"
    )


def check_weights(model: ModelSpec, source: LoadedModel, spec_file: SpecFile) -> None:
    """InputError when the spec's weights do not suit the source, or their file cannot be used."""
    if model.weights is None:
        return
    if source.graph is None or source.has_weights:
        raise InputError(f"weights: {model.source} brings its own weights, expected no such key")
    if model.weights.file is not None:
        file = _readable(spec_file, "weights.file", model.weights.file)
        try:
            read_weights(source.graph, file)
        except InputError as error:
            raise InputError(f"weights.file: {error}") from error


def with_profile(
    model: ModelSpec, source: LoadedModel, spec_file: SpecFile, parts: Collection[str]
) -> LoadedModel:
    """``source`` with the profile that the spec names.

    InputError when it is bad, of none of ``parts``, or beside an engine over several GPUs: it is of one.
    """
    if model.profile is None:
        return source
    degree = model.token_engine.tensor_parallel
    if degree not in ("auto", 1):
        raise InputError(
            f"engine.tensor_parallel: a profile has the times of one GPU, expected 1 beside it, got {degree}"
        )
    file = spec_file.resolve(model.profile)
    try:
        profile = read_profile(file)
    except InputError as error:
        raise InputError(f"profile: {error}") from error
    check_profile(profile, file, source, parts)
    return replace(source, profile=profile)


def check_predictor(spec_file: SpecFile) -> None:
    """InputError when the spec names a length predictor that cannot be used."""
    relative = spec_file.spec.predictor.file
    if relative is None:
        return
    from muserve.length_model import LengthModel

    directory = spec_file.resolve(relative)
    try:
        LengthModel.load(directory)
    except InputError as error:
        raise InputError(f"predictor.file: {error}") from error


def _mean_tokens(trace: Trace) -> TokensSpec:
    lengths: dict[str, float] = {}
    if trace.prompt_tokens is not None:
        lengths["prompt"] = round(float(trace.prompt_tokens.mean()), 6)
    if trace.output_tokens is not None:
        mean = float(trace.output_tokens.mean())
        lengths |= {"output": round(mean, 6), "output_cv": round(float(trace.output_tokens.std()) / mean, 6)}
    return TokensSpec.model_validate(lengths)


def _readable(spec_file: SpecFile, key: str, relative: str) -> Path:
    file = spec_file.resolve(relative)
    try:
        with file.open("rb"):
            return file
    except OSError as error:
        raise InputError(f"{key}: {file}: expected a readable file: {error.strerror}") from error


def _check_tokenizer(file: Path) -> None:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer: expected a tokenizer.json, got {file}: {error}") from error
    if not isinstance(document, dict) or "model" not in document:
        raise InputError(f"tokenizer: expected a tokenizer.json with a model, got {file}")
