"""Every error muServe raises on purpose.

    MuServeError                    exit code 1
    ├── InputError                  2   something the user wrote is wrong: file, key, value, expectation
    ├── InfeasiblePlanError         3   a correct spec that no placement can satisfy
    ├── ServingError                1   Triton could not be started or reached
    │   └── TritonNotFoundError     2   no tritonserver on this machine
    ├── MetricsUnavailableError     1   a metrics endpoint did not answer, or answered nonsense
    └── GpuError                    1   a device refused or failed
        ├── GpuPermissionError          the caller may not do this (usually: clocks need root)
        ├── GpuUnsupportedError         the device cannot do this
        ├── GpuLostError                the device has fallen off the bus, or its state is unreadable
        ├── GpuNotFoundError            no such device, or no driver
        └── GpuBusyError                the device or driver did not answer in time

Command lines print these as one sentence; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

_LONGEST_SENTENCE = 1000
_LONGEST_VALUE = 80


def one_line(text: object, longest: int = 300) -> str:
    """``text`` on one line: white space collapsed, what cannot be printed replaced, the end cut off."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))
    return line if len(line) <= longest else line[: longest - 3] + "..."


class MuServeError(Exception):
    """Root of all expected errors; ``exit_code`` is what a command line returns for it."""

    exit_code = 1


class InputError(MuServeError):
    """Wrong user input, in one sentence naming the file, the key, the value and what was expected.

    Names that the user wrote may be long or hold line breaks; the sentence stays one readable line.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence, _LONGEST_SENTENCE))


class InfeasiblePlanError(MuServeError):
    """A valid spec that cannot be met: names the model, the constraint and the smallest change."""

    exit_code = 3


class ServingError(MuServeError):
    """Triton could not be started, reached, or kept alive."""


class TritonNotFoundError(ServingError):
    """No tritonserver was found; the message lists where it was looked for."""

    exit_code = 2


class MetricsUnavailableError(MuServeError):
    """A Prometheus endpoint did not answer in time or its text could not be parsed."""


class GpuError(MuServeError):
    """A GPU refused a command or failed."""


class GpuPermissionError(GpuError):
    """The calling user may not issue this command."""


class GpuUnsupportedError(GpuError):
    """The device or driver does not offer this command."""


class GpuLostError(GpuError):
    """The device stopped existing while it was in use."""


class GpuNotFoundError(GpuError):
    """No such device, or no driver to ask."""


class GpuBusyError(GpuError):
    """The device or driver did not answer in time."""


def input_error(source: Path | str, error: ValidationError, known_keys: Collection[str] = ()) -> InputError:
    """Turn pydantic's first complaint about ``source`` into one sentence.

    Example: ``quickstart.yaml: models[0].slo_ms: expected input should be greater than 0, got -5``. One of
    ``known_keys`` that looks like an unknown one is suggested.
    """
    first = error.errors(include_url=False)[0]
    key = _key(first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        alike = get_close_matches(str(first["loc"][-1]), sorted(known_keys), n=1)
        return InputError(f"{source}: {key}: unknown key" + (f", did you mean {alike[0]}?" if alike else ""))
    if first["type"] == "missing":
        return InputError(f"{source}: {key}: required key is missing")
    if first["type"] == "json_invalid":
        return InputError(f"{source}: not valid JSON: {first['ctx']['error']}")
    expected = first["msg"].removeprefix("Value error, ")
    expected = expected[:1].lower() + expected[1:]
    got = first.get("input")
    shown = "" if isinstance(got, dict | list) else f", got {one_line(repr(got), _LONGEST_VALUE)}"
    return InputError(f"{source}: {key}: {expected}{shown}")


def _key(location: tuple[int | str, ...]) -> str:
    key = ""
    for part in location:
        name = one_line(part, _LONGEST_VALUE)
        key += f"[{part}]" if isinstance(part, int) else f".{name}" if key else name
    return key or "(top level)"
