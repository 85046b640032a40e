"""The models that come with muServe: weightless ONNX graphs and language-model architectures.

``graphs/NAME.onnx`` is made by ``tools/export_catalog.py``, with a sidecar ``NAME.json`` that records where
it comes from; ``llms/NAME.json`` is an ``LlmArchitecture``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter

from muplan.profile.llm import LlmArchitecture, parse_llm
from muplan.splitting import weight_bytes
from muserve.errors import InputError
from muserve.plan import ModelKind

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model of the catalogue. ``default_dims`` are the sizes it is profiled at unless told otherwise."""

    name: str
    kind: ModelKind
    describes: str
    parameters: int
    weight_bytes: int
    inputs: tuple[str, ...]
    default_dims: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sidecar:
    """What ``tools/export_catalog.py`` writes beside a graph."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    config: dict[str, object]
    default_dims: dict[str, int]
    describes: str
    opset: int
    parameters: int
    tools: dict[str, str]


def catalog_names() -> tuple[str, ...]:
    """Names of all models in the catalogue, sorted."""
    return tuple(sorted([*_names("graphs", ".onnx"), *_names("llms", ".json")]))


def catalog_kind(name: str) -> ModelKind:
    """Which kind of model ``name`` is; InputError naming the known models when there is none."""
    if name in _names("graphs", ".onnx"):
        return ModelKind.SINGLE_PASS
    if name in _names("llms", ".json"):
        return ModelKind.GENERATIVE
    raise InputError(f"unknown catalogue model {name!r}: expected one of {', '.join(catalog_names())}")


def load_graph(name: str) -> onnx.ModelProto:
    """The weightless graph of a single-pass model; InputError when the catalogue has none so named."""
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(graph_bytes(name))
    return model


def graph_bytes(name: str) -> bytes:
    """The stored bytes of ``load_graph``'s model."""
    if catalog_kind(name) is not ModelKind.SINGLE_PASS:
        raise InputError(f"catalogue model {name} is generative and has no graph")
    return _folder("graphs").joinpath(f"{name}.onnx").read_bytes()


def load_llm(name: str) -> LlmArchitecture:
    """The architecture of a generative model; InputError when the catalogue has none so named."""
    return parse_llm(llm_bytes(name), f"{name}.json")


def llm_bytes(name: str) -> bytes:
    """The stored bytes of ``load_llm``'s architecture."""
    if catalog_kind(name) is not ModelKind.GENERATIVE:
        raise InputError(f"catalogue model {name} is not a generative model")
    return _folder("llms").joinpath(f"{name}.json").read_bytes()


def default_dims(name: str) -> dict[str, int]:
    """The sizes of the dynamic axes that a single-pass model is profiled at by default."""
    return dict(_sidecar(name).default_dims)


def catalog_entry(name: str) -> CatalogEntry:
    """What ``muplan catalog`` shows of one model."""
    kind = catalog_kind(name)
    if kind is ModelKind.GENERATIVE:
        llm = load_llm(name)
        return CatalogEntry(
            name=name,
            kind=kind,
            describes=f"decoder, {llm.layers} layers, {llm.dtype} ({llm.source})",
            parameters=llm.parameters,
            weight_bytes=llm.weight_bytes,
            inputs=(f"text, up to {llm.max_tokens} tokens",),
            default_dims={},
        )
    model, sidecar = load_graph(name), _sidecar(name)
    return CatalogEntry(
        name=name,
        kind=kind,
        describes=sidecar.describes,
        parameters=sidecar.parameters,
        weight_bytes=weight_bytes(model),
        inputs=tuple(_describe(value) for value in model.graph.input),
        default_dims=sidecar.default_dims,
    )


def _describe(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name} {TensorProto.DataType.Name(tensor.elem_type).lower()}[{dims}]"


def _sidecar(name: str) -> _Sidecar:
    text = _folder("graphs").joinpath(f"{name}.json").read_bytes()
    return TypeAdapter(_Sidecar).validate_python(json.loads(text))


def _names(folder: str, suffix: str) -> list[str]:
    files = _folder(folder).iterdir()
    return [file.name.removesuffix(suffix) for file in files if file.name.endswith(suffix)]


def _folder(name: str) -> Traversable:
    return resources.files(__name__).joinpath(name)
