"""The models of a spec: source, SLO, load, and what answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from muplan.spec_section import HIGHEST_CV, Count, Name, Positive, Section
from muserve.plan import ModelKind


class LoadSpec(Section):
    """How requests arrive: at a mean rate with random gaps, or as a recorded trace says."""

    rate_rps: Positive | None = Field(default=None, description="Mean arrival rate.")
    cv: Annotated[float, Field(ge=0, le=HIGHEST_CV)] = Field(
        default=1.0, description="Coefficient of variation of the gaps: 1 = Poisson, more = bursty."
    )
    trace: str | None = Field(
        default=None,
        description="CSV file of arrivals, relative to the spec, with a column TIMESTAMP or arrival_s; "
        "rate and burstiness are taken from it, and the mean lengths where it has ContextTokens and "
        "GeneratedTokens and the model no tokens.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.rate_rps is None) == (self.trace is None):
            raise ValueError("give either rate_rps or trace")
        if self.trace is not None and "cv" in self.model_fields_set:
            raise ValueError("cv is taken from the trace, expected no such key")
        return self


class TokensSpec(Section):
    """Lengths of a generative model's prompts and answers."""

    prompt: Positive = Field(default=256.0, description="Mean tokens of a prompt.")
    output: Positive = Field(default=256.0, description="Mean tokens of an answer.")
    output_cv: Annotated[float, Field(ge=0, le=10)] = Field(
        default=1.0, description="Standard deviation of the answer length over its mean."
    )


class WeightsSpec(Section):
    """Where weights come from: a file beside the spec, or a seed for weights without meaning."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    file: str | None = Field(default=None, description=".safetensors or .npz, relative to the spec.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.seed is None) == (self.file is None):
            raise ValueError("give either seed or file")
        return self


class EngineSpec(Section):
    """What generates the tokens of a generative model, and how many answers it works on at once."""

    name: Literal["replay", "transformers", "vllm"] | None = Field(
        default=None, description="Default: replay on target embedded, vllm on target ngc."
    )
    model: str | None = Field(
        default=None,
        description="What transformers and vllm load: the absolute path of a directory on the node or, for "
        "vllm, a Hugging Face id; default: the directory or the id in source hf:.",
    )
    environment: str | None = Field(
        default=None,
        description="Python environment that transformers or vllm runs in on target embedded, relative to "
        "the spec: a directory with bin/activate that has muserve too. Default: the server's own.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="More of vLLM's AsyncEngineArgs, on target embedded; what the plan decides wins.",
    )
    batching: Literal["none", "dynamic", "continuous"] = Field(
        default="continuous",
        description="none: one request at a time; dynamic: a batch runs to its end before the next begins; "
        "continuous: a request takes any slot that becomes free.",
    )
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=60_000)] = Field(
        default=0.0, description="How long dynamic batching waits for a full batch."
    )
    tensor_parallel: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="auto",
        description="GPUs that each vllm engine is cut over; auto: 1, 2, 4 or 8, with a profile 1.",
    )
    slots: Annotated[int, Field(ge=1, le=1024)] = 8
    max_model_len: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None,
        description="Longest prompt and answer together, in tokens: what key-value cache is kept for. "
        "Default: the model's own maximum.",
    )
    queue_limit: Annotated[int, Field(ge=1, le=10_000_000)] = 1024
    answers: str | None = Field(
        default=None, description="Recorded answers the replay engine gives, relative to the spec."
    )

    @model_validator(mode="after")
    def _one_way_of_batching(self) -> Self:
        if self.batching == "none" and self.slots != 1:
            raise ValueError(f"batching none has one request at a time, expected slots 1, got {self.slots}")
        if self.batching != "dynamic" and self.max_queue_delay_ms:
            raise ValueError("max_queue_delay_ms has a meaning for batching dynamic alone")
        return self


class BatchingSpec(Section):
    """Dynamic batching of a single-pass model: how many requests together, and how long to wait for them."""

    max_batch_size: Annotated[int, Field(ge=2, le=4096)]
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0


class ModelSpec(Section):
    """One model that clients call by ``name``."""

    name: Name
    source: Annotated[str, Field(pattern=r"^(catalog|hf|onnx):.+$")] = Field(
        description="catalog:NAME, or relative to the spec onnx:PATH or hf:DIRECTORY, or hf:ID of the hub."
    )
    kind: Annotated[ModelKind, Field(strict=False)]
    slo_ms: Positive | None = Field(default=None, description="Latency limit of one request.")
    slo_scale: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        default=None, description="The limit as a multiple of the isolated latency."
    )
    attainment: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.99, description="Share of requests that must meet the limit."
    )
    load: LoadSpec
    replicas: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="auto", description="Instances, each on GPUs of its own; auto: as many as pay, up to 4."
    )
    partitions: Literal["auto"] | Count = Field(
        default="auto", description="Parts a single-pass model is cut into; auto: as many as pay off."
    )
    dims: dict[str, Count] = Field(
        default_factory=dict, description="Typical sizes of a single-pass model's free dimensions."
    )
    batching: BatchingSpec | None = None
    tokens: TokensSpec | None = None
    weights: WeightsSpec | None = None
    engine: EngineSpec | None = None
    profile: str | None = Field(
        default=None,
        description="Profile written by muplan profile, relative to the spec; default: modelled on the spot.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="tokenizer.json that cuts answers into tokens, relative to the spec; "
        "default: pieces of about 4 characters.",
    )

    @field_validator("partitions", mode="wrap")
    @classmethod
    def _auto_or_count(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError as error:  # one complaint instead of one for each alternative
            raise ValueError("expected auto or a whole number from 1 to 4096") from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.slo_ms is None) == (self.slo_scale is None):
            raise ValueError("give either slo_ms or slo_scale")
        generative = self.kind is ModelKind.GENERATIVE
        wrong = (
            ("partitions", "dims", "weights", "batching") if generative else ("tokens", "engine", "tokenizer")
        )
        for key in wrong:
            if key in self.model_fields_set:
                raise ValueError(f"{key} has no meaning for a {self.kind.value} model")
        return self

    @property
    def fixed_partitions(self) -> int | None:
        """The number of parts asked for; None when the planner chooses it."""
        return None if self.partitions == "auto" else self.partitions

    def triton_names(self, partitions: int) -> tuple[str, ...]:
        """Every Triton model this model becomes in so many parts; the first is the one clients call."""
        if self.kind is ModelKind.GENERATIVE:
            return (self.name, f"{self.name}_length_predictor", f"{self.name}_engine")
        if partitions == 1:
            return (self.name,)
        return (self.name, *(f"{self.name}_stage{i}" for i in range(partitions)))

    @property
    def native_names(self) -> tuple[str, str]:
        """What a generative model becomes besides under ``serving.queue: native``: its front, its slots."""
        return f"{self.name}_front", f"{self.name}_slots"

    @property
    def answer_tokens(self) -> TokensSpec:
        """Token lengths, with the defaults filled in."""
        return self.tokens or TokensSpec()

    @property
    def token_engine(self) -> EngineSpec:
        """The engine, with the defaults filled in."""
        return self.engine or EngineSpec()
