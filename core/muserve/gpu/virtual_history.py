"""The clock commands a virtual GPU has received: JSON lines beside its state file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockCommand:
    """One ``lock_clock`` (with its clock) or ``unlock_clock`` (None), and the process that gave it.

    ``time_s`` is monotonic, ``wall_time_s`` seconds since 1970.
    """

    time_s: float
    wall_time_s: float
    pid: int
    action: Literal["lock", "unlock"]
    clock_mhz: int | None


def history_file(state_file: Path) -> Path:
    """Where the commands of the virtual GPU with this state file are kept."""
    return state_file.with_suffix(".clocks.jsonl")


def append_command(file: Path, command: ClockCommand, boot_id: str) -> None:
    """Append one command in a single write; call it with the GPU's lock held."""
    line = json.dumps({**asdict(command), "boot_id": boot_id}, sort_keys=True) + "\n"
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read_commands(file: Path, boot_id: str) -> tuple[ClockCommand, ...]:
    """The commands given since this boot, oldest first; a last line cut short by a crash is left out."""
    if not file.exists():
        return ()
    commands = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if document.pop("boot_id") == boot_id:
            commands.append(ClockCommand(**document))
    return tuple(commands)
