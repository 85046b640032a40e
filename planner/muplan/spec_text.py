"""YAML text -> plain mapping, with the strictness a spec wants.

Beyond PyYAML's safe loader: duplicate keys are errors instead of silently the last one, aliases are
refused, since a spec of a hundred bytes could otherwise expand to gigabytes, and ``1e3`` is a number as in
YAML 1.2 (https://yaml.org/spec/1.2.2/, section 10.3.2), not a text as in YAML 1.1.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from muserve.errors import InputError, one_line

MAX_BYTES = 2_000_000
"""A thousand models with every key set and commented are half of this; 1 MB is read in two seconds."""

_MOST_LEVELS = 50

# libyaml where PyYAML was built with it, three times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):  # type: ignore[misc]
    """Safe loader whose mappings must have distinct string keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _problem(f"expected a text key, got {key!r}", key_node)
            if key in seen:
                raise _problem(f"duplicate key {key}", key_node)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def read_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of the YAML file ``path``; InputError with the line when it is not one."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: expected a readable spec: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: expected a spec of at most {MAX_BYTES} bytes, got more")
    return parse_mapping(text, path)


def parse_mapping(text: bytes | str, source: Path | str) -> dict[str, Any]:
    """Parse YAML ``text``; ``source`` names it in the InputError raised when it is not a mapping."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        _check_structure(text)
        document = yaml.load(text, Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        line_number = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source}:{line_number}: expected UTF-8 text, got the byte {error.object[error.start]:#04x}"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{source}: not valid YAML: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise InputError(f"{source}: expected a mapping at the top level, got {_kind(document)}")
    return document


def _check_structure(text: str) -> None:
    """Refuse aliases and deep nesting while reading along, before anything is built of them."""
    levels = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise _problem("aliases are not supported in a spec", event)
        if isinstance(event, yaml.CollectionStartEvent):
            levels += 1
            if levels > _MOST_LEVELS:
                raise _problem(f"values nested too deeply, expected at most {_MOST_LEVELS} levels", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            levels -= 1


def _problem(sentence: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=sentence, problem_mark=place.start_mark)


def _kind(document: object) -> str:
    if document is None:
        return "an empty file"
    return "a list" if isinstance(document, list) else f"a single value ({document!r:.40})"
