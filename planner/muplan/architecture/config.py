"""Read a Hugging Face ``config.json`` of a generative model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture
from muplan.architecture.fused_projection_families import Bloom, CodeGen
from muplan.architecture.learned_position_families import Gpt2, Opt
from muplan.architecture.llama_families import Llama, Mixtral, Qwen3Moe
from muplan.architecture.switch_family import Switch
from muserve.errors import InputError, input_error

_ADAPTER: TypeAdapter[Opt | Gpt2 | CodeGen | Bloom | Llama | Mixtral | Qwen3Moe | Switch] = TypeAdapter(
    Annotated[
        Opt | Gpt2 | CodeGen | Bloom | Llama | Mixtral | Qwen3Moe | Switch, Field(discriminator="model_type")
    ]
)

GENERATIVE_TYPES = (
    *(
        "bloom",
        "codegen",
        "gpt2",
        "llama",
        "mistral",
        "mixtral",
        "opt",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "switch_transformers",
    ),
)


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; InputError when there is none."""
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: expected a readable config.json: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model_type"), str):
        raise InputError(f"{file}: expected a Hugging Face config with a model_type")
    return document


def parse_generative(
    config: dict[str, Any], source: Path | str
) -> DecoderArchitecture | EncoderDecoderArchitecture:
    """The network that ``config`` describes; InputError, naming ``source``, when it is not one we know."""
    if config.get("model_type") not in GENERATIVE_TYPES:
        known = ", ".join(GENERATIVE_TYPES)
        raise InputError(f"{source}: model_type: expected one of {known}, got {config.get('model_type')!r}")
    try:
        return _ADAPTER.validate_python(config).architecture()
    except ValidationError as error:
        raise input_error(source, error) from error
