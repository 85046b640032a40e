"""The spec a user writes: the cluster, the models, their SLOs and their load.

The published JSON Schema (``muplan/spec.schema.json``) is generated from these classes by
``tools/regenerate_model_repository.py``. Every mistake is one ``InputError`` sentence that names the
file, the key, the value and what was expected. Reading a spec touches no file but the spec itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from muplan.partition import DEFAULT_WEIGHTS
from muplan.spec_cluster import ClusterSpec
from muplan.spec_model import ModelSpec
from muplan.spec_section import Section, Weight, refuse_duplicates
from muplan.spec_serving import FEWEST_NATIVE_SLOTS, NATIVE_ORDERS, PredictorSpec, ServingSpec, Target
from muplan.spec_text import read_mapping
from muserve.errors import InputError, input_error
from muserve.plan import ModelKind
from muserve.queue_order import PARAMETERS_OF, Order, OrderParameters

SCHEMA_FILE = Path(__file__).with_name("spec.schema.json")


class PartitioningSpec(Section):
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


class Spec(Section):
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
        refuse_duplicates("model", (model.name for model in self.models))
        # A count left to the planner is 1 here; the names it leads to are checked once it is known.
        names = (name for model in self.models for name in model.triton_names(model.fixed_partitions or 1))
        refuse_duplicates("Triton model", names)
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
        refuse_duplicates("Triton model", [*names, *(model.name for model in self.models)])
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
    return {key for section in Section.__subclasses__() for key in section.model_fields}


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
