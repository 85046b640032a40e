"""The state of a virtual GPU as bytes, and back."""

from __future__ import annotations

import json
from dataclasses import fields
from operator import attrgetter
from typing import Any

from muserve.gpu.virtual_state import BusyMark, ClockChange, Job, VirtualState


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


# ``dataclasses.asdict`` copies deeply and would dominate the time that the file is locked.
_STATE_FIELDS = _names(VirtualState)
_MARK_FIELDS, _CHANGE_FIELDS, _JOB_FIELDS = _names(BusyMark), _names(ClockChange), _names(Job)
_MARK_VALUES, _CHANGE_VALUES = attrgetter(*_MARK_FIELDS), attrgetter(*_CHANGE_FIELDS)
_JOB_VALUES = attrgetter(*_JOB_FIELDS)


def encode(state: VirtualState) -> bytes:
    """The state as JSON bytes; ``decode`` gives back an equal one (floats keep every digit)."""
    document = {name: getattr(state, name) for name in _STATE_FIELDS}
    document["older"] = _MARK_VALUES(state.older)
    document["newer"] = _MARK_VALUES(state.newer)
    document["changes"] = [_CHANGE_VALUES(change) for change in state.changes]
    document["jobs"] = [_JOB_VALUES(job) for job in state.jobs]
    return json.dumps(document, separators=(",", ":")).encode()


def decode(payload: bytes) -> VirtualState:
    """Inverse of ``encode``; ValueError, TypeError or KeyError when it is no state of this version."""
    document: dict[str, Any] = json.loads(payload)
    for name in ("older", "newer"):
        document[name] = BusyMark(**dict(zip(_MARK_FIELDS, document[name], strict=True)))
    document["changes"] = tuple(
        ClockChange(**dict(zip(_CHANGE_FIELDS, values, strict=True))) for values in document["changes"]
    )
    document["jobs"] = tuple(
        Job(**dict(zip(_JOB_FIELDS, values, strict=True))) for values in document["jobs"]
    )
    return VirtualState(**document)
