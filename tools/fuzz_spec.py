#!/usr/bin/env python3
"""Fuzz the spec loader: any bytes are a spec or an InputError of one line.

python tools/fuzz_spec.py --seconds 300
"""

from __future__ import annotations

import random
from pathlib import Path

from fuzzing import main, mutate_bytes

from muplan.spec import parse_spec
from muplan.spec_text import MAX_BYTES, parse_mapping

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ODD_VALUES = (
    *("", "~", "-1", "0", ".nan", ".inf", "-.inf", "1e400", "9" * 400, "true", "2024-02-30", "1:60", "0x"),
    *("[]", "{}", "[[[[", "{a: b}", "&a [*a]", "*a", "!!set {a}", "!!binary =", "!!python/none x", "|", ">"),
    *('"\\ud800"', '"\\0"', "'\n'", "? x", "<<: {}", "\t", "- ", ": ", "#", "%YAML 9.9", "---", "\u2028"),
)


def check(data: bytes) -> None:
    """Read ``data`` as a spec. Raises InputError when it is none."""
    parse_spec(parse_mapping(data[:MAX_BYTES], "s.yaml"), "s.yaml")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Lines moved, dropped or repeated, values replaced by odd ones, or bytes changed."""
    lines = data.splitlines(keepends=True)
    if not lines or not chance.randrange(3):
        return mutate_bytes(data, chance)
    place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[other])
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case _:
            key, colon, _ = lines[place].partition(b": ")
            lines[place] = key + colon + chance.choice(ODD_VALUES).encode() + b"\n"
    return b"".join(lines)


def seeds() -> list[bytes]:
    """The example specs."""
    return [file.read_bytes() for file in sorted(EXAMPLES.glob("*.yaml"))]


if __name__ == "__main__":
    main(__doc__ or "", check, seeds(), mutate)
