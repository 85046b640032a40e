"""The Python processes of a server: which live, and which model each one serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from muplan.deploy.environment import STUB
from muplan.deploy.runtime import SHARED_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Stub:
    """One Python model process: the model it serves and its region of shared memory."""

    model: str
    region: Path


def living_stubs(server_pid: int) -> dict[int, Stub]:
    """Python model processes of the server by pid. Zombies do not count."""
    try:
        children = psutil.Process(server_pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return {}
    stubs = {}
    for child in children:
        try:
            stub = parse_stub(child.cmdline())
        except psutil.Error:
            continue
        if stub:
            stubs[child.pid] = stub
    return stubs


def parse_stub(command_line: Sequence[str]) -> Stub | None:
    """The stub behind ``STUB REPOSITORY/MODEL/VERSION/model.py REGION ...``; None for other processes."""
    if len(command_line) < 3 or Path(command_line[0]).name != STUB:
        return None
    return Stub(model=Path(command_line[1]).parent.parent.name, region=SHARED_MEMORY / command_line[2])
