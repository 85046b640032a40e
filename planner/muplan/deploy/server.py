"""One tritonserver process: start it, follow its log, wait until it is ready, stop it."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from muplan.deploy import tether
from muplan.deploy.control import ModelState, TritonControl
from muplan.deploy.ports import Ports, reachable
from muplan.deploy.stubs import living_stubs
from muserve.errors import ServingError

LogSink = Callable[[str], None]

_LOADED = re.compile(r"successfully loaded '([^']+)'")
_MODELS_STOPPED = "All models are stopped"
_POLL_S = 0.1
_EXIT_S = 3.0  # Triton looks once a second whether it may exit
_REASON_LINES = 6
_KEPT_LINES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """How to start one server.

    ``config_name`` chooses ``configs/<config_name>.pbtxt`` of each model that has one. ``drain_s`` is
    how long requests in flight may take to finish when the server is told to stop. ``limits_rates`` says
    whether instances wait for the resources that their configurations name.
    """

    executable: Path
    repository: Path
    backends: Path
    ports: Ports
    address: str
    shared_memory_option: str
    config_name: str | None
    drain_s: int
    limits_rates: bool = False

    def arguments(self) -> list[str]:
        """The command line, program first."""
        arguments = [
            str(self.executable),
            f"--model-repository={self.repository.absolute()}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            "--load-model=*",
            # Keep a server whose models failed long enough to be asked why.
            "--exit-on-error=false",
            f"--exit-timeout-secs={self.drain_s}",
            "--metrics-interval-ms=500",
            self.shared_memory_option,
        ]
        for endpoint in ("http", "grpc", "metrics"):
            arguments += [f"--{endpoint}-address={self.address}"]
            arguments += [f"--{endpoint}-port={getattr(self.ports, endpoint)}"]
        if self.limits_rates:
            arguments.append("--rate-limit=execution_count")
        if self.config_name:
            arguments.append(f"--model-config-name={self.config_name}")
        return arguments


class TritonServer:
    """A running tritonserver. Start it from a thread that lives as long as it should."""

    def __init__(self, command: ServerCommand, environment: Mapping[str, str], sink: LogSink) -> None:
        self.control = TritonControl(reachable(command.address), command.ports.http)
        self._command = command
        self._sink = sink
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._loaded: set[str] = set()
        self._models_stopped = False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command.arguments()],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we tell Triton
            restore_signals=False,  # keep SIGPIPE ignored: a dead log reader must not end a drain
        )
        self._reader = threading.Thread(target=self._read_log, name="triton-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """What the process returned (negative: the signal that ended it); None while it runs."""
        return self._process.poll()

    def wait_until_ready(
        self, timeout_s: float, on_progress: Callable[[int, int], None], stop: threading.Event
    ) -> bool:
        """Wait until every model is loaded; False when ``stop`` was set first.

        ``on_progress`` is told how many of how many models are loaded. Raises ServingError with
        Triton's own reason when a model fails, the process ends, or ``timeout_s`` passes.
        """
        deadline = time.monotonic() + timeout_s
        total = sum(1 for path in self._command.repository.iterdir() if path.is_dir())
        shown = -1
        while not stop.wait(_POLL_S):
            if len(self._loaded) != shown:
                shown = len(self._loaded)
                on_progress(shown, total)
            code = self.exit_code()
            if code is not None:
                self._reader.join(timeout=2)
                raise ServingError(f"Triton {_ending(code)} while starting: {self._last_words()}")
            if self.control.is_live() and self._metrics_answer():
                self._require_all(self.control.index())
                return True
            if time.monotonic() > deadline:
                raise ServingError(
                    f"Triton is not ready after {timeout_s:.0f} s ({shown} of {total} models loaded)"
                )
        return False

    def stop(self) -> int:
        """Let requests in flight finish, then end the process; returns its exit code.

        An exception meanwhile (a second signal) ends the process at once.
        """
        self._process.terminate()
        try:
            self._wait_for_requests()
        except BaseException:
            self.kill()
            raise
        code = self._process.wait()
        self._end_rest()
        return code

    def kill(self) -> None:
        """End the process at once, whatever is in flight."""
        self._process.kill()
        self._process.wait()
        self._end_rest()

    def _end_rest(self) -> None:
        """Processes that models have started end with the server; they hold GPU memory, and its log open."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reader.join(timeout=2)

    def _wait_for_requests(self) -> None:
        deadline = time.monotonic() + self._command.drain_s + _EXIT_S
        idle_since = math.inf
        while self.exit_code() is None:
            now = time.monotonic()
            # A stub that died in the middle of a request leaves an instance that Triton waits for in
            # vain. Once every model is stopped and no stub lives, nothing is lost by not waiting.
            idle = self._models_stopped and not living_stubs(self.pid)
            idle_since = min(idle_since, now) if idle else math.inf
            if now > deadline or now - idle_since > _EXIT_S:
                self._process.kill()
            time.sleep(_POLL_S)

    def ending(self) -> str:
        """How the process ended and its last error lines, as part of a sentence."""
        code = self.exit_code()
        return f"Triton {_ending(code)}: {self._last_words()}" if code is not None else "Triton runs"

    def _metrics_answer(self) -> bool:
        """Whether the metrics port is open; Triton opens it last."""
        address = (reachable(self._command.address), self._command.ports.metrics)
        try:
            socket.create_connection(address, timeout=1).close()
        except OSError:
            return False
        return True

    def _require_all(self, states: tuple[ModelState, ...]) -> None:
        failed = [state for state in states if not state.ready]
        if not states:
            raise ServingError(f"{self._command.repository} holds no model")
        if failed:
            reasons = "; ".join(f"{state.name}: {self._reason(state)}" for state in failed)
            raise ServingError(f"{len(failed)} of {len(states)} models failed to load: {reasons}")

    def _reason(self, state: ModelState) -> str:
        if state.reason:
            # The traceback that follows is in the log already.
            return " ".join(state.reason.split("\n\nAt:")[0].split())
        named = [line for line in self._lines if f"'{state.name}'" in line and line[:1] == "E"]
        return _message(named[-1]) if named else "Triton gave no reason, see its log"

    def _last_words(self) -> str:
        errors = [_message(line) for line in self._lines if line[:1] == "E" or line.startswith("error:")]
        return "; ".join(errors[-_REASON_LINES:]) or "no error in its log"

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as log:
            for raw in log:
                line = raw.decode(errors="replace").rstrip("\n")
                self._lines.append(line)
                if match := _LOADED.search(line):
                    self._loaded.add(match.group(1))
                self._models_stopped |= _MODELS_STOPPED in line
                # Whoever reads our log may go away; Triton must not block on a pipe nobody empties.
                with suppress(OSError):
                    self._sink(line)


def _message(line: str) -> str:
    """The message of one log line without time, pid and source position."""
    return line.split("] ", 1)[-1].strip().strip('"')


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
