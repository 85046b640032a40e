"""Taking the objects out of a JSON array, JSON Lines or a damaged mixture of both, one by one.

Constant memory: what is held is one object and one chunk. A cut-off end is left out; a damaged object
is left out up to the next line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from muserve.errors import InputError

_BETWEEN_OBJECTS = " \t\r\n,[]\ufeff"
_LARGEST_OBJECT_CHARS = 1 << 26
# A literal or an escape that the chunk's end cuts is reported at most this far before that end.
_LONGEST_CUT_CHARS = 16


def objects(
    chunks: Iterable[str], name: str, on_skip: Callable[[str], None] = lambda reason: None
) -> Iterator[dict[str, Any]]:
    """Yield the objects in the text that ``chunks`` make up; ``name`` is the file's, for messages.

    ``on_skip`` is told why, once for each thing that is left out.

    Raises InputError when one object is longer than 64 million characters.
    """
    decode = json.JSONDecoder().raw_decode
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        position = 0
        while True:
            position = _skip(buffer, position)
            try:
                value, end = decode(buffer, position)
            except json.JSONDecodeError as error:
                if _is_incomplete(error, len(buffer)):
                    break
                on_skip("damaged object or line")
                line_end = buffer.find("\n", error.pos)
                position = line_end if line_end >= 0 else len(buffer)
                continue
            # A bare number could go on in the next chunk; an object knows where it ends.
            if isinstance(value, dict):
                yield value
            position = end
        buffer = buffer[position:]
        if len(buffer) > _LARGEST_OBJECT_CHARS:
            raise InputError(f"{name}: not JSON: {buffer[:40]!r} starts no complete object")
    if buffer.strip(_BETWEEN_OBJECTS):
        on_skip("incomplete last object")


def _is_incomplete(error: json.JSONDecodeError, length: int) -> bool:
    """Whether more text might make it right: the text ends inside a string, a literal or a container."""
    return error.pos >= length - _LONGEST_CUT_CHARS or error.msg.startswith("Unterminated string")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BETWEEN_OBJECTS:
        position += 1
    return position
