"""YAML text -> plain mapping, with the strictness a spec wants.

Beyond PyYAML's safe loader: duplicate keys are errors instead of silently the last one, and aliases are
refused, since a spec of a hundred bytes could otherwise expand to gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from muserve.errors import InputError

# A thousand models with every key set and commented are half of this; PyYAML reads 1 MB in about 10 s.
MAX_BYTES = 2_000_000


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases, and whose mappings must have distinct string keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not supported in a spec", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"expected a text key, got {key!r}", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of the YAML file ``path``; InputError with the line when it is not one."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a readable spec: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: expected a spec of at most {MAX_BYTES} bytes, got {len(text)}")
    return parse_mapping(text, path)


def parse_mapping(text: bytes | str, source: Path | str) -> dict[str, Any]:
    """Parse YAML ``text``; ``source`` names it in the InputError raised when it is not a mapping."""
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise InputError(f"{source}: expected a spec, got values nested too deeply") from error
    if not isinstance(document, dict):
        raise InputError(f"{source}: expected a mapping at the top level, got {_kind(document)}")
    return document


def _kind(document: object) -> str:
    if document is None:
        return "an empty file"
    return "a list" if isinstance(document, list) else f"a single value ({document!r:.40})"
