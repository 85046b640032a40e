"""The power daemon as a context manager: the real ``mupower daemon``, beside a server we run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from muserve.errors import ServingError

_STOP_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDaemon:
    """A daemon that was started; ``log`` is the file it writes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def require_alive(self) -> None:
        """Raise ServingError, with the daemon's last line, when it has ended."""
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            last = lines[-1] if lines else "its log is empty"
            raise ServingError(f"mupower daemon ended with code {code}: {last}")


@contextmanager
def running_daemon(plan_dir: Path, metrics_url: str, law: str, log: Path) -> Iterator[RunningDaemon]:
    """Run ``mupower daemon`` under ``law`` on every GPU of the plan for as long as the context lasts.

    It is told to stop by SIGTERM and then unlocks every clock; one that does not stop in time is killed,
    and its supervisor unlocks. Its own metrics endpoint stays off.
    """
    arguments = ["daemon", "--plan", str(plan_dir), "--metrics", metrics_url, "--law", law, "--no-exporter"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from mupower.cli import main; main()", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we tell the daemon
        )
        try:
            yield RunningDaemon(process=process, log=log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
