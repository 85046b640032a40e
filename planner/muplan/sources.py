"""Load the model that a spec's ``source`` names: ``catalog:NAME``, ``onnx:PATH`` or ``hf:DIR-or-ID``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from muplan.architecture.generative import GenerativeModel
from muplan.catalog import catalog_kind, default_dims, graph_bytes, llm_bytes, load_graph, load_llm
from muplan.hugging_face import HuggingFaceModel, find_model
from muplan.profile.profile_file import fingerprint
from muplan.profile.record import Profile
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.weightless import load_model, missing_weights, strip_weights

if TYPE_CHECKING:
    import onnx

_LARGEST_CHECKED_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model to plan: ``graph`` when single-pass, ``llm`` (with its two graphs) when generative.

    ``has_weights`` is False when initialisers must come from a seed or a weights file. ``default_dims``
    are sizes for dynamic axes that a spec may leave out. ``fingerprint`` is the SHA-256 of the model file
    (of an ONNX file with external data: of the graph file; of a Hugging Face model: of its config).
    ``profile`` is the one to take the laws from, None to model them.
    """

    source: str
    kind: ModelKind
    graph: onnx.ModelProto | None
    llm: GenerativeModel | None
    has_weights: bool
    default_dims: dict[str, int]
    fingerprint: str
    profile: Profile | None = None

    @property
    def profile_fingerprint(self) -> str:
        """What the laws of this model come from: its profile, else the model itself."""
        return self.fingerprint if self.profile is None else fingerprint(self.profile)


def load_source(source: str, relative_to: Path) -> LoadedModel:
    """The model named by ``source``; file paths are taken relative to the directory ``relative_to``.

    Raises InputError for an unknown scheme or name, a missing or broken file, and a graph that cannot be
    planned (no operators, control flow, inputs that are not tensors).
    """
    scheme, _, rest = source.partition(":")
    if scheme == "catalog" and rest:
        return _from_catalog(source, rest)
    if scheme == "onnx" and rest:
        return _from_file(source, relative_to / Path(rest).expanduser())
    if scheme == "hf" and rest:
        return _from_hugging_face(source, find_model(rest, relative_to))
    raise InputError(f"source: expected catalog:NAME, onnx:PATH or hf:DIR-or-ID, got {source!r}")


def _from_catalog(source: str, name: str) -> LoadedModel:
    kind = catalog_kind(name)
    generative = kind is ModelKind.GENERATIVE
    data = b"".join(llm_bytes(name)) if generative else graph_bytes(name)
    return LoadedModel(
        source=source,
        kind=kind,
        graph=None if generative else load_graph(name),
        llm=load_llm(name) if generative else None,
        has_weights=False,
        default_dims={} if generative else default_dims(name),
        fingerprint=hashlib.sha256(data).hexdigest(),
    )


def _from_file(source: str, file: Path) -> LoadedModel:
    model = _checked(load_model(file), file)
    if not model.graph.name:
        model.graph.name = file.stem
    return LoadedModel(
        source=source,
        kind=ModelKind.SINGLE_PASS,
        graph=model,
        llm=None,
        has_weights=not missing_weights(model),
        default_dims={},
        fingerprint=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _from_hugging_face(source: str, found: HuggingFaceModel) -> LoadedModel:
    llm = found.language_model() if found.generative else None
    graph, dims = (None, {}) if found.generative else found.single_pass_graph()
    return LoadedModel(
        source=source,
        kind=ModelKind.GENERATIVE if found.generative else ModelKind.SINGLE_PASS,
        graph=graph,
        llm=llm,
        has_weights=found.has_weights,
        default_dims=dims,
        fingerprint=hashlib.sha256(found.config_file.read_bytes()).hexdigest(),
    )


def _checked(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """``model`` with its local functions inlined, after ONNX's own checks and ours."""
    from onnx import checker, inliner

    try:
        checker.check_model(_without_big_data(model))
        if model.functions:
            model = inliner.inline_local_functions(model)
    except Exception as error:  # ValidationError, or RuntimeError from the inliner
        raise InputError(f"{file}: not a valid ONNX model: {_one_line(error)}") from error
    complaint = next(_complaints(model), None)
    if complaint:
        raise InputError(f"{file}: {complaint}")
    return model


def _complaints(model: onnx.ModelProto) -> Iterator[str]:
    """What keeps a valid graph from being planned."""
    if not model.graph.node or not model.graph.output:
        yield "expected a graph with operators and outputs"
    if model.graph.sparse_initializer:
        yield "sparse initialisers are not supported"
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield f"operator {node.name or node.output[0]}: control flow ({node.op_type}) is not supported"
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.HasField("tensor_type"):
            yield f"{value.name}: expected graph inputs and outputs to be tensors"


def _without_big_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """A light copy whose big initialisers are inputs: the checker would look for the files of hollow ones."""
    from onnx import helper

    light = strip_weights(model, _LARGEST_CHECKED_BYTES)
    hollow = missing_weights(light)
    names, inputs = {t.name for t in hollow}, {value.name for value in light.graph.input}
    light.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in hollow
        if t.name not in inputs
    )
    kept = [tensor for tensor in light.graph.initializer if tensor.name not in names]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
