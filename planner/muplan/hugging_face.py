"""Models in Hugging Face's layout: a directory with ``config.json``, or an id on the hub.

What is in the local cache is used as it is; only a missing ``config.json`` is downloaded, never weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muplan.architecture.config import GENERATIVE_TYPES, parse_generative, read_config
from muplan.architecture.generative import GenerativeModel, generative_model
from muplan.architecture.torch_export import export_graph, single_pass_export
from muserve.errors import InputError

if TYPE_CHECKING:
    import onnx

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CONFIG = "config.json"
_ANSWERS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceModel:
    """A model's directory and its config. ``name`` is the directory's, or the last part of the hub id."""

    name: str
    directory: Path
    config: dict[str, Any]

    @property
    def config_file(self) -> Path:
        """What the model was read from."""
        return self.directory / _CONFIG

    @property
    def generative(self) -> bool:
        """Whether it answers token by token."""
        return self.config["model_type"] in GENERATIVE_TYPES

    @property
    def has_weights(self) -> bool:
        """Whether safetensors files lie beside the config."""
        return any(self.directory.glob("*.safetensors"))

    def language_model(self) -> GenerativeModel:
        """The prefill and decode graphs; InputError when the config is not one we can build."""
        return generative_model(self.name, parse_generative(self.config, self.config_file))

    def single_pass_graph(self) -> tuple[onnx.ModelProto, dict[str, int]]:
        """The graph, with its weights where there are any, and the sizes it is profiled at.

        Raises InputError for a network of an unknown kind, without the [train] extra, and for weights that
        transformers cannot load.
        """
        checkpoint = self.directory if self.has_weights else None
        export = single_pass_export(self.config, str(self.config_file), checkpoint)
        return export_graph(export, self.name), export.default_dims


def find_model(place: str, relative_to: Path) -> HuggingFaceModel:
    """The model at ``place``: a directory, relative to ``relative_to``, or an id on the Hugging Face hub.

    Raises InputError when it is neither, or when the hub cannot be asked and the cache does not have it.
    """
    directory = relative_to / Path(place).expanduser()
    if not directory.is_dir():
        if not _HUB_ID.fullmatch(place):
            raise InputError(f"{directory}: expected a directory with {_CONFIG}, or an id on the hub")
        directory = _from_hub(place)
    config = read_config(directory / _CONFIG)
    return HuggingFaceModel(name=place.rstrip("/").rpartition("/")[2], directory=directory, config=config)


def _from_hub(repository: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"hf:{repository}: no such directory, and asking the hub needs the package huggingface_hub"
        ) from error
    cached = huggingface_hub.try_to_load_from_cache(repository, _CONFIG)
    if isinstance(cached, str):
        return Path(cached).parent
    try:
        # The hub's client retries for half a minute before it admits that nobody answers: asked once here.
        address = huggingface_hub.hf_hub_url(repository, _CONFIG)
        huggingface_hub.get_session().head(address, timeout=_ANSWERS_WITHIN_S)
        return Path(huggingface_hub.hf_hub_download(repository, _CONFIG)).parent
    except Exception as error:  # the hub's, the HTTP client's and the operating system's errors
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(
            f"hf:{repository}: no such directory, not in the cache {huggingface_hub.constants.HF_HUB_CACHE}, "
            f"and not to be had from {huggingface_hub.constants.ENDPOINT}: {reason}"
        ) from error
