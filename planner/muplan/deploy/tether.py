"""Replace this process by a command that is told to stop when the process that started it dies.

Run as a script with ``python tether.py PARENT_PID COMMAND...``; it imports only the standard library. The
kernel delivers SIGTERM to the command when the *thread* that started it ends, so that Triton drains
and removes its stubs and shared memory even when its owner is killed with SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(arguments: list[str]) -> None:
    """Tie this process to the parent with pid ``arguments[0]`` and become ``arguments[1:]``."""
    parent, command = int(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the process that wanted this server is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
