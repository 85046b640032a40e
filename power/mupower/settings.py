"""The daemon's settings: flags, then ``MUPOWER_*`` variables, then the file of ``--config``, then defaults.

Each layer has the same keys; a setting comes from the first layer that has it. The file is YAML::

    plan: plan.json                 # beside this file, or an absolute path
    metrics: [http://127.0.0.1:8002/metrics]
    law: miad
    period_s: 1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from mupower.actuator import Actuator
from mupower.control import law_named
from mupower.exporter import parse_listen
from mupower.scrape import check_url
from muserve.errors import InputError, input_error

PREFIX = "MUPOWER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``mupower daemon`` is told. ``period_s`` None: as short as sensible for the GPUs, 1 s at least.

    ``stale_after_s`` None: five periods, 5 s at least.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    plan: Path
    metrics: tuple[str, ...]
    node: str | None = None
    law: str = "miad"
    period_s: float | None = None
    stale_after_s: float | None = None
    actuator: Actuator = Actuator.AUTO
    dry_run: bool = False
    listen: str = "127.0.0.1:9105"
    exporter: bool = True


_ADAPTER: TypeAdapter[Settings] = TypeAdapter(Settings)
_KEYS = tuple(field.name for field in fields(Settings))


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> Settings:
    """Merge the layers (``flags`` holds those given only); InputError naming where a bad value stands."""
    given = [key for key in _KEYS if environment.get(_variable(key))]
    variables: dict[str, Any] = {key: environment[_variable(key)] for key in given}
    if "metrics" in variables:
        variables["metrics"] = variables["metrics"].split()
    document = _document(file)
    merged = document | variables | dict(flags)
    for key in ("plan", "metrics"):
        if not merged.get(key):
            others = f"as {_variable(key)}, or as {key} in the --config file"
            raise InputError(f"--{key}: required: as a flag, {others}")
    try:
        settings = _ADAPTER.validate_python(merged)
    except ValidationError as error:
        raise _bad_value(error, flags, variables, file) from error
    law_named(settings.law)
    parse_listen(settings.listen)
    for url in settings.metrics:
        check_url(url)
    return settings


def _document(file: Path | None) -> dict[str, Any]:
    """The file's keys; a relative plan is meant from where the file is."""
    if file is None:
        return {}
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a readable settings file: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{file}: expected settings as key: value, got {type(document).__name__}")
    if isinstance(document.get("plan"), str):
        document["plan"] = str(file.parent / document["plan"])
    return {str(key): value for key, value in document.items()}


def _bad_value(
    error: ValidationError, flags: Mapping[str, Any], variables: Mapping[str, Any], file: Path | None
) -> InputError:
    """One sentence that names the flag, the variable, or the file and its key."""
    key = str(error.errors(include_url=False)[0]["loc"][0])
    if key not in flags and key not in variables:
        return input_error(str(file), error, _KEYS)
    flag = f"--{key.removesuffix('_s').replace('_', '-')}"
    source = flag if key in flags else _variable(key)
    return InputError(str(input_error(source, error)).replace(f": {key}", "", 1))


def _variable(key: str) -> str:
    return PREFIX + key.upper()
