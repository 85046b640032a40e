"""The chat template of a served language model, as its tokenizer's configuration has it.

Format: ``tokenizer_config.json`` of Hugging Face tokenizers, with the template in it or, in newer ones, in
``chat_template.jinja`` beside it (https://huggingface.co/docs/transformers/chat_templating).
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from muplan.hugging_face import find_model
from muplan.spec import SpecFile
from muplan.spec_model import ModelSpec
from muserve.errors import InputError

DIRECTORY = "chat_templates"
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


def chat_template_files(model: ModelSpec, spec_file: SpecFile) -> dict[PurePosixPath, bytes]:
    """``chat_templates/<model>.json`` of the node, where the model brings a template; else nothing.

    Looked for beside the spec's ``tokenizer``, then in the directory (or the hub's local cache) of an ``hf:``
    source. The file has the keys ``template``, ``bos_token`` and ``eos_token``. Raises InputError for a
    configuration that cannot be read.
    """
    for directory in _directories(model, spec_file):
        found = _read(directory)
        if found is not None:
            document = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            return {PurePosixPath(DIRECTORY, f"{model.name}.json"): document.encode()}
    return {}


def _directories(model: ModelSpec, spec_file: SpecFile) -> list[Path]:
    scheme, _, rest = model.source.partition(":")
    directories = [] if model.tokenizer is None else [spec_file.resolve(model.tokenizer).parent]
    if scheme == "hf":
        directories.append(find_model(rest, spec_file.path.parent).directory)
    return directories


def _read(directory: Path) -> dict[str, str] | None:
    file = directory / _CONFIG
    config: Any = {}
    if file.is_file():
        try:
            config = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: expected a tokenizer's configuration in JSON: {error}") from error
        if not isinstance(config, dict):
            raise InputError(f"{file}: expected a tokenizer's configuration, got {type(config).__name__}")
    template = _default_of(config.get("chat_template"))
    if (directory / _TEMPLATE).is_file():
        template = (directory / _TEMPLATE).read_text(encoding="utf-8")
    if template is None:
        return None
    return {"template": template} | {key: _token(config.get(key)) for key in ("bos_token", "eos_token")}


def _default_of(template: Any) -> str | None:
    """The template; of several named ones that named ``default``."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token(token: Any) -> str:
    """A special token's text; some files have it with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
