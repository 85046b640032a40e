"""The models that come with muServe, as weightless ONNX graphs made by ``tools/export_catalog.py``.

graphs/NAME.json              a sidecar: where the model comes from, and its sizes
graphs/NAME.onnx              the graph of a single-pass model
graphs/NAME.prefill.onnx.gz   the two graphs of a generative model
graphs/NAME.decode.onnx.gz
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter

from muplan.architecture.config import parse_generative
from muplan.architecture.generative import GenerativeModel
from muplan.splitting import weight_bytes
from muserve.errors import InputError
from muserve.plan import ModelKind

if TYPE_CHECKING:
    import onnx

_GRAPH = ".onnx"
_STEPS = (".prefill.onnx.gz", ".decode.onnx.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model of the catalogue. ``default_dims`` are the sizes it is profiled at unless told otherwise.

    ``active_parameters`` are those that one token or one run uses.
    """

    name: str
    kind: ModelKind
    describes: str
    parameters: int
    active_parameters: int
    weight_bytes: int
    inputs: tuple[str, ...]
    default_dims: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sidecar:
    """What ``tools/export_catalog.py`` writes beside the graphs.

    ``config`` is the Hugging Face config; ``default_dims`` are empty for a generative model.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    config: dict[str, Any]
    default_dims: dict[str, int]
    describes: str
    opset: int
    parameters: int
    tools: dict[str, str]


def catalog_names() -> tuple[str, ...]:
    """Names of all models in the catalogue, sorted."""
    return tuple(sorted([*_names(_GRAPH), *_names(_STEPS[0])]))


def catalog_kind(name: str) -> ModelKind:
    """Which kind of model ``name`` is; InputError naming the known models when there is none."""
    if name in _names(_GRAPH):
        return ModelKind.SINGLE_PASS
    if name in _names(_STEPS[0]):
        return ModelKind.GENERATIVE
    raise InputError(f"unknown catalogue model {name!r}: expected one of {', '.join(catalog_names())}")


def load_graph(name: str) -> onnx.ModelProto:
    """The weightless graph of a single-pass model; InputError when the catalogue has none so named."""
    return _parsed(graph_bytes(name))


def graph_bytes(name: str) -> bytes:
    """The stored bytes of ``load_graph``'s model."""
    if catalog_kind(name) is not ModelKind.SINGLE_PASS:
        raise InputError(f"catalogue model {name} is generative: it has a prefill and a decode graph")
    return _file(name + _GRAPH).read_bytes()


def load_llm(name: str) -> GenerativeModel:
    """A generative model with its graphs; InputError when the catalogue has none so named."""
    prefill, decode = (_parsed(gzip.decompress(data)) for data in llm_bytes(name))
    net = parse_generative(catalog_config(name), f"{name}.json")
    return GenerativeModel(name=name, net=net, prefill=prefill, decode=decode)


def llm_bytes(name: str) -> tuple[bytes, bytes]:
    """The stored bytes of the prefill and the decode graph of a generative model."""
    if catalog_kind(name) is not ModelKind.GENERATIVE:
        raise InputError(f"catalogue model {name} is not a generative model")
    prefill, decode = (_file(name + suffix).read_bytes() for suffix in _STEPS)
    return prefill, decode


def catalog_config(name: str) -> dict[str, Any]:
    """The Hugging Face config that a model's graphs were made of."""
    return _sidecar(name).config


def default_dims(name: str) -> dict[str, int]:
    """The sizes of the dynamic axes that a single-pass model is profiled at by default."""
    return dict(_sidecar(name).default_dims)


def catalog_entry(name: str) -> CatalogEntry:
    """What ``muplan catalog`` shows of one model."""
    kind, sidecar = catalog_kind(name), _sidecar(name)
    if kind is ModelKind.GENERATIVE:
        llm = load_llm(name)
        return CatalogEntry(
            name=name,
            kind=kind,
            describes=sidecar.describes,
            parameters=sidecar.parameters,
            active_parameters=llm.active_parameters,
            weight_bytes=llm.weight_bytes,
            inputs=(f"text, up to {llm.max_tokens} tokens",),
            default_dims={},
        )
    model = load_graph(name)
    return CatalogEntry(
        name=name,
        kind=kind,
        describes=sidecar.describes,
        parameters=sidecar.parameters,
        active_parameters=sidecar.parameters,
        weight_bytes=weight_bytes(model),
        inputs=tuple(_describe(value) for value in model.graph.input),
        default_dims=sidecar.default_dims,
    )


def _describe(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name} {TensorProto.DataType.Name(tensor.elem_type).lower()}[{dims}]"


def _parsed(data: bytes) -> onnx.ModelProto:
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(data)
    return model


def _sidecar(name: str) -> _Sidecar:
    return TypeAdapter(_Sidecar).validate_python(json.loads(_file(f"{name}.json").read_bytes()))


def _names(suffix: str) -> list[str]:
    return [
        file.name.removesuffix(suffix)
        for file in resources.files(__name__).joinpath("graphs").iterdir()
        if file.name.endswith(suffix)
    ]


def _file(name: str) -> Traversable:
    return resources.files(__name__).joinpath("graphs", name)
