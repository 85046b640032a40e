"""Which boot this is and whether a process is still alive, from ``/proc``. Cheap enough for every lock."""

from __future__ import annotations

from pathlib import Path

_GONE = ("Z", "X", "x")


def boot_id() -> str:
    """Random identity of the running kernel's boot: monotonic times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_start(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None when it is gone or a zombie.

    Together with the pid this names a process for good. Participants must see each other's pids: one
    machine or one container, not two containers.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may itself contain spaces and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0].decode() in _GONE else int(fields[19])
