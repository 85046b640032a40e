"""Load the model that a spec's ``source`` names: ``catalog:NAME``, ``onnx:PATH`` or ``hf:DIR-or-ID``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from muplan.architecture.generative import GenerativeModel
from muplan.catalog import catalog_kind, default_dims, graph_bytes, llm_bytes, load_graph, load_llm
from muplan.hugging_face import HuggingFaceModel, find_model
from muplan.onnx_file import read_graph
from muplan.profile.profile_file import Profile
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.weightless import missing_weights

if TYPE_CHECKING:
    import onnx


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
        return self.fingerprint if self.profile is None else self.profile.fingerprint


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
    model = read_graph(file)
    with file.open("rb") as data:
        fingerprint = hashlib.file_digest(data, "sha256").hexdigest()
    return LoadedModel(
        source=source,
        kind=ModelKind.SINGLE_PASS,
        graph=model,
        llm=None,
        has_weights=not missing_weights(model),
        default_dims={},
        fingerprint=fingerprint,
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
