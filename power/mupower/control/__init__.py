"""Control laws: pure functions from what was observed to the clock each GPU should have."""

from __future__ import annotations

from typing import Any

from mupower.control.default import DefaultLaw
from mupower.control.law import ControlLaw
from mupower.control.miad import MiadLaw
from mupower.control.static import StaticLaw
from muserve.errors import InputError

_LAWS: tuple[ControlLaw[Any], ...] = (DefaultLaw(), StaticLaw(), MiadLaw())

LAW_NAMES = tuple(law.name for law in _LAWS)


def law_named(name: str) -> ControlLaw[Any]:
    """The control law called ``name`` with its documented constants; InputError when there is none."""
    for law in _LAWS:
        if law.name == name:
            return law
    raise InputError(f"control law: expected one of {', '.join(LAW_NAMES)}, got {name!r}")
