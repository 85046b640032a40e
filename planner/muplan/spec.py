"""The spec a user writes: the cluster, the models, their SLOs and their load.

The published JSON Schema (``muplan/spec.schema.json``) is generated from these classes by
``tools/regenerate_model_repository.py``. Every mistake is one ``InputError`` sentence that names the
file, the key, the value and what was expected. Reading a spec touches no file but the spec itself.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from muplan.partition import DEFAULT_WEIGHTS
from muplan.spec_text import read_mapping
from muserve.errors import InputError, input_error
from muserve.plan import ModelKind
from muserve.queue_order import PARAMETERS_OF, Order, OrderParameters

SCHEMA_FILE = Path(__file__).with_name("spec.schema.json")

# Triton's native priority queue loses wake-ups; measured on 2.51: with 4 instances none in 1,800 dispatches.
FEWEST_NATIVE_SLOTS = 4
NATIVE_ORDERS = (Order.AGING, Order.SSJF, Order.FCFS)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HIGHEST_CV = 50.0
Weight = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=4096)]


class Target(StrEnum):
    """Which Triton serves the repository: any with the Python backend, or NVIDIA's NGC containers."""

    EMBEDDED = "embedded"
    NGC = "ngc"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class GpuGroupSpec(_Section):
    """``count`` equal GPUs of a node."""

    part: str = Field(
        description="An entry of the GPU catalogue, or a part's profile file (.json) relative to the spec."
    )
    count: Count = 1
    virtual: bool = Field(default=False, description="Simulate these GPUs instead of using devices.")


class NodeSpec(_Section):
    """One machine that runs one Triton. GPUs are numbered over all its groups, from 0."""

    name: NodeName
    gpus: Annotated[tuple[GpuGroupSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_world(self) -> Self:
        if len({group.virtual for group in self.gpus}) > 1:
            raise ValueError("expected all GPUs of a node to be virtual, or none")
        return self


class ClusterSpec(_Section):
    """The machines, and how fast a tensor moves between two GPUs of one of them."""

    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]
    link_gbs: Annotated[float, Field(ge=0.001, le=1e6)] = Field(
        default=12.0, description="GB/s between two GPUs; PCIe 3 x16 gives 12."
    )

    @model_validator(mode="after")
    def _distinct_nodes(self) -> Self:
        _refuse_duplicates("node", (node.name for node in self.nodes))
        return self


class LoadSpec(_Section):
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


class TokensSpec(_Section):
    """Lengths of a generative model's prompts and answers."""

    prompt: Positive = Field(default=256.0, description="Mean tokens of a prompt.")
    output: Positive = Field(default=256.0, description="Mean tokens of an answer.")
    output_cv: Annotated[float, Field(ge=0, le=10)] = Field(
        default=1.0, description="Standard deviation of the answer length over its mean."
    )


class WeightsSpec(_Section):
    """Where weights come from: a file beside the spec, or a seed for weights without meaning."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    file: str | None = Field(default=None, description=".safetensors or .npz, relative to the spec.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.seed is None) == (self.file is None):
            raise ValueError("give either seed or file")
        return self


class EngineSpec(_Section):
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


class BatchingSpec(_Section):
    """Dynamic batching of a single-pass model: how many requests together, and how long to wait for them."""

    max_batch_size: Annotated[int, Field(ge=2, le=4096)]
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0


class ModelSpec(_Section):
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


class PredictorSpec(_Section):
    """Which predictor, and how its lengths become priorities: arrival + alpha x predicted service time."""

    alpha: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="0 = first come first served, .inf = shortest first without aging. Given without "
        "serving.order, it chooses the order aging. Default: 30.",
    )
    file: str | None = Field(
        default=None, description="Directory of a trained predictor, relative to the spec."
    )


OrderNumber = Annotated[float, Field(ge=0, le=1e6)] | None


def _order_number(name: str) -> Any:
    used_by = [order.value for order in Order if name in PARAMETERS_OF[order]]
    users = "every order" if len(used_by) == len(Order) else f"order {', '.join(used_by)}"
    default = getattr(OrderParameters(), name)
    return Field(default=None, description=f"Used by {users}. Default: {default:g}.")


class ServingSpec(_Section):
    """Which Triton serves, who orders waiting requests, and how."""

    target: Annotated[Target, Field(strict=False)] = Target.EMBEDDED
    queue: Literal["engine", "native"] = Field(
        default="engine",
        description="engine: our engine orders the requests that wait; native: Triton's own priority queue "
        "does, in front of an engine that is not ours.",
    )
    order: Annotated[Order, Field(strict=False)] | None = Field(
        default=None,
        description="Who is served first. Default: bounded, shortest predicted first within a bound on "
        "waiting that follows the backlog; aging if predictor.alpha is given, or with queue native.",
    )
    bound_quantile: OrderNumber = _order_number("bound_quantile")
    bound_ordinary: OrderNumber = _order_number("bound_ordinary")
    bound_extreme: OrderNumber = _order_number("bound_extreme")
    adaptive_factor: OrderNumber = _order_number("adaptive_factor")
    adaptive_floor: OrderNumber = _order_number("adaptive_floor")
    cap_factor: OrderNumber = _order_number("cap_factor")
    class_levels: OrderNumber = _order_number("class_levels")
    standard_share: OrderNumber = _order_number("standard_share")
    batch_share: OrderNumber = _order_number("batch_share")


class PartitioningSpec(_Section):
    """What weighs how much when the planner cuts a model; the terms are those of ``muplan.partition``."""

    unlikeness: Weight = Field(
        default=DEFAULT_WEIGHTS.unlikeness,
        description="Spread of clock sensitivity k within a part: time-weighted variance.",
    )
    imbalance: Weight = Field(
        default=DEFAULT_WEIGHTS.imbalance,
        description="Unevenness of the parts: squared distance of their shares of the time from equal ones.",
    )
    transfer: Weight = Field(
        default=DEFAULT_WEIGHTS.transfer,
        description="Time to send what crosses a cut over the link, as a share of the model's time.",
    )
    cut: Weight = Field(
        default=DEFAULT_WEIGHTS.cut,
        description="Cost of each cut. At 0.02 two equal halves are parted when their k differ by 0.28.",
    )


class Spec(_Section):
    """A whole spec."""

    cluster: ClusterSpec
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    objective: Literal["energy", "latency"] = Field(
        default="energy",
        description="energy: the least power that keeps every SLO; latency: the least latency at top clocks.",
    )
    partitioning: PartitioningSpec = PartitioningSpec()
    predictor: PredictorSpec = PredictorSpec()
    serving: ServingSpec = ServingSpec()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _distinct_models(self) -> Self:
        _refuse_duplicates("model", (model.name for model in self.models))
        # A count left to the planner is 1 here; the names it leads to are checked once it is known.
        names = (name for model in self.models for name in model.triton_names(model.fixed_partitions or 1))
        _refuse_duplicates("Triton model", names)
        return self

    @property
    def order(self) -> Order:
        """Who is served first."""
        ages = self.predictor.alpha is not None or self.serving.queue == "native"
        return self.serving.order or (Order.AGING if ages else Order.BOUNDED)

    @property
    def order_parameters(self) -> OrderParameters:
        """The numbers of the order, with the defaults filled in."""
        numbers = {
            name: getattr(self.serving, name)
            for name in OrderParameters.__dataclass_fields__
            if name != "alpha"
        }
        numbers["alpha"] = self.predictor.alpha
        return OrderParameters(**{name: value for name, value in numbers.items() if value is not None})

    @model_validator(mode="after")
    def _numbers_of_the_order(self) -> Self:
        if self.order is Order.SSJF and self.predictor.alpha is not None:
            raise ValueError("serving.order ssjf has no aging, predictor.alpha belongs to order aging")
        try:
            self.order_parameters  # noqa: B018
        except InputError as error:
            raise ValueError(f"serving: {error}") from error
        for name in type(self.serving).model_fields:
            is_number = name in OrderParameters.__dataclass_fields__
            if (
                is_number
                and getattr(self.serving, name) is not None
                and name not in PARAMETERS_OF[self.order]
            ):
                raise ValueError(f"serving.{name} is not used by order {self.order}")
        return self

    @model_validator(mode="after")
    def _native_queue(self) -> Self:
        if self.serving.queue != "native":
            return self
        if self.order not in NATIVE_ORDERS:
            raise ValueError(
                f"serving.order: queue native sorts by a key that is fixed on arrival, expected one of "
                f"{', '.join(NATIVE_ORDERS)}, got {self.order}"
            )
        generative = [model for model in self.models if model.kind is ModelKind.GENERATIVE]
        for model in generative:
            slots = model.token_engine.slots
            if slots < FEWEST_NATIVE_SLOTS:
                raise ValueError(
                    f"engine.slots of {model.name}: queue native needs at least {FEWEST_NATIVE_SLOTS}, as "
                    f"Triton's priority queue stalls half a second at a time in front of fewer, got {slots}"
                )
        if not generative:
            raise ValueError("serving.queue: native orders requests to generative models, expected one")
        names = [name for model in generative for name in model.native_names]
        _refuse_duplicates("Triton model", iter([*names, *(model.name for model in self.models)]))
        return self

    @model_validator(mode="after")
    def _gpus_of_the_target(self) -> Self:
        virtual = [node.name for node in self.cluster.nodes if node.gpus[0].virtual]
        if self.serving.target is Target.NGC and virtual:
            raise ValueError(f"serving.target ngc runs on real GPUs, those of node {virtual[0]} are virtual")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFile:
    """A spec, where it was read from, and the SHA-256 of its meaning (comments do not count)."""

    path: Path
    spec: Spec
    sha256: str

    def resolve(self, relative: str) -> Path:
        """A path written in the spec, relative to the spec's directory."""
        return self.path.parent / Path(relative).expanduser()


def read_spec(path: Path, *, seed: int | None = None, target: Target | None = None) -> SpecFile:
    """Read and validate the spec at ``path``; ``seed`` and ``target`` replace the spec's own.

    Raises InputError, one sentence, for a file that is missing, not YAML, or not a spec.
    """
    document = read_mapping(path)
    if seed is not None:
        document["seed"] = seed
    serving = document.get("serving", {})
    if target is not None and isinstance(serving, dict):
        document["serving"] = serving | {"target": target.value}
    return SpecFile(path=path, spec=parse_spec(document, path), sha256=_digest(document))


def parse_spec(document: dict[str, Any], source: Path | str) -> Spec:
    """Validate a parsed document; ``source`` names it in the InputError raised when it is wrong."""
    try:
        # Through JSON because strict JSON mode takes lists for tuples and strings for enumerations.
        return Spec.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        raise input_error(source, error, _known_keys()) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: expected plain keys and values: {error}") from error


def schema_bytes() -> bytes:
    """The JSON Schema of a spec, as stable bytes."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Spec.model_json_schema()
    return (json.dumps(schema, indent=2, sort_keys=True) + "\n").encode()


def _known_keys() -> set[str]:
    return {key for section in _Section.__subclasses__() for key in section.model_fields}


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def _refuse_duplicates(what: str, names: Iterator[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"expected distinct {what} names, got {name} {count} times")
