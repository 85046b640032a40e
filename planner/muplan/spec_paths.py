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
from muplan.spec import SpecFile
from muplan.spec_model import EngineSpec, LoadSpec, ModelSpec, TokensSpec
from muplan.spec_section import HIGHEST_CV
from muplan.spec_serving import Target
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
    target, engine = spec_file.spec.serving.target, model.token_engine
    name = engine_name(model, target)
    if spec_file.spec.serving.queue == "native" and target is Target.EMBEDDED and name != "replay":
        raise InputError(
            f"engine.name: {name} of target embedded orders its requests itself, so queue native would order "
            "them twice: expected queue engine, or replay, which then stands in for an engine that does not"
        )
    if target is Target.NGC:
        if name != "vllm":
            raise InputError(f"engine.name: target ngc has the engine vllm, got {name}")
        for key in ("environment", "arguments", "batching", "max_queue_delay_ms"):
            if key in engine.model_fields_set:
                raise InputError(f"engine.{key}: target ngc knows no such key, expected target embedded")
    if name == "replay":
        _check_replay(engine, spec_file)
        return
    if source.llm is not None and isinstance(source.llm.net, EncoderDecoderArchitecture):
        raise InputError(
            f"source: {model.source} is an encoder-decoder, which {name} does not run: expected a decoder, "
            "or engine.name replay on target embedded"
        )
    if engine.answers is not None:
        raise InputError(f"engine.answers: {name} makes its own answers, expected no such key")
    loaded = engine_model(model, spec_file)
    if target is Target.EMBEDDED:
        _check_generating(name, engine, loaded, spec_file)


def engine_name(model: ModelSpec, target: Target) -> str:
    """The engine of a generative model."""
    return model.token_engine.name or ("vllm" if target is Target.NGC else "replay")


def engine_model(model: ModelSpec, spec_file: SpecFile) -> str:
    """What transformers or vLLM loads; InputError when neither ``engine.model`` nor the source says it.

    A directory in ``source`` is not taken on target ngc: only the user knows its place in the container.
    """
    if model.token_engine.model is not None:
        return model.token_engine.model
    target = spec_file.spec.serving.target
    scheme, _, name = model.source.partition(":")
    directory = spec_file.resolve(name)
    if scheme == "hf" and not directory.is_dir():
        return name
    if scheme == "hf" and target is Target.EMBEDDED:
        return str(directory.absolute())
    raise InputError(
        f"engine.model: expected a Hugging Face id or the path of a directory on the node, which engine "
        f"{engine_name(model, target)} needs for source {model.source}"
    )


def engine_environment(engine: EngineSpec, spec_file: SpecFile) -> Path | None:
    """The Python environment that the spec names, as an absolute path."""
    if engine.environment is None:
        return None
    return spec_file.resolve(engine.environment).absolute()


def _check_replay(engine: EngineSpec, spec_file: SpecFile) -> None:
    for key in ("environment", "arguments"):  # a model may be there for target ngc
        if key in engine.model_fields_set:
            raise InputError(f"engine.{key}: replay loads nothing, expected no such key")
    if not all(group.virtual for node in spec_file.spec.cluster.nodes for group in node.gpus):
        raise InputError(
            "engine.name: replay runs on virtual GPUs only, the cluster has real ones: expected transformers "
            "or vllm"
        )


def _check_generating(name: str, engine: EngineSpec, loaded: str, spec_file: SpecFile) -> None:
    if name == "vllm" and engine.batching != "continuous":
        raise InputError(f"engine.batching: vllm batches continuously, got {engine.batching}")
    if name == "transformers":
        if engine.arguments:
            raise InputError("engine.arguments: they are vllm's, transformers takes none")
        if not (Path(loaded) / "config.json").is_file():
            raise InputError(
                f"engine.model: transformers loads a Hugging Face directory with a config.json, got {loaded}"
            )
    environment = engine_environment(engine, spec_file)
    if environment is not None and not (environment / "bin" / "activate").is_file():
        raise InputError(f"engine.environment: expected a directory with bin/activate, got {environment}")


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
