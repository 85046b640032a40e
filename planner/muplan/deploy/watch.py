"""Bringing models back whose Python process died; Triton itself never does.

A Python-backend instance is one stub process. When a stub is killed, Triton answers every request
for its model with "Stub process is not healthy", still calls the model ready, and takes a plain load
for a no-op because no file is newer. So: count the stubs, touch the model's files, load it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from muplan.deploy.server import TritonServer
from muplan.deploy.stubs import Stub, living_stubs
from muserve.errors import ServingError

_PERIOD_S = 0.25
_WAITS_S = (0.0, 1.0, 5.0, 30.0)
_STABLE_S = 60.0

logger = logging.getLogger(__name__)


class ReloadSchedule:
    """When to load a model again: at once the first time, later and later while it keeps dying.

    A model that lived for a minute after it was loaded starts again at the shortest wait. Times are
    seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()
        self._loaded_at: dict[str, float] = {}
        self._due_at: dict[str, float] = {}

    def died(self, model: str, now_s: float) -> float | None:
        """Plan a load of ``model``; returns the wait in seconds, None when one is planned already."""
        if model in self._due_at:
            return None
        if now_s - self._loaded_at.get(model, -_STABLE_S) >= _STABLE_S:
            self._deaths[model] = 0
        wait_s = _WAITS_S[min(self._deaths[model], len(_WAITS_S) - 1)]
        self._deaths[model] += 1
        self._due_at[model] = now_s + wait_s
        return wait_s

    def due(self, now_s: float) -> tuple[str, ...]:
        """Models to load now."""
        return tuple(model for model, due_at in self._due_at.items() if due_at <= now_s)

    def loaded(self, model: str, now_s: float) -> None:
        """``model`` was loaded, or loading it failed."""
        self._due_at.pop(model, None)
        self._loaded_at[model] = now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """Stubs that a model should have (``wanted``) and that live."""

    wanted: int
    living: int


class StubWatch:
    """Watches one server's stubs in a thread for as long as the context lasts."""

    def __init__(self, server: TritonServer, repository: Path) -> None:
        self._server = server
        self._repository = repository
        self._wanted: dict[str, int] = {}
        self._stubs: dict[int, Stub] = {}
        self._schedule = ReloadSchedule()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub-watch", daemon=True)

    def __enter__(self) -> Self:
        self._wanted = {
            state.name: self._server.control.python_instances(state.name)
            for state in self._server.control.index()
        }
        self._stubs = living_stubs(self._server.pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # Not longer: it may be in the middle of loading a model, which ends with the server.
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S) and self._server.exit_code() is None:
            try:
                losses = self._losses()
            except ServingError as error:
                logger.debug("cannot compare the models' processes with their configuration: %s", error)
                continue
            for model, loss in losses.items():
                self._plan_load(model, loss)
            for model in self._schedule.due(time.monotonic()):
                self._load(model)

    def _losses(self) -> dict[str, _Loss]:
        """Ready models with too few stubs. Triton is asked only about models whose number changed.

        A model may be unloaded, or its instance count changed, through Triton's own control interface:
        then its configuration agrees with what lives, and nothing is lost.
        """
        stubs = living_stubs(self._server.pid)
        for pid in self._stubs.keys() - stubs.keys():
            # Triton keeps the region of a stub that was killed; /dev/shm may be as small as 64 MB.
            self._stubs[pid].region.unlink(missing_ok=True)
        self._stubs = stubs
        living = Counter(stub.model for stub in stubs.values())
        changed = [m for m in self._wanted.keys() | living.keys() if living[m] != self._wanted.get(m, 0)]
        if not changed:
            return {}
        control = self._server.control
        ready = {state.name for state in control.index() if state.ready}
        for model in changed:
            self._wanted[model] = control.python_instances(model) if model in ready else 0
        return {
            model: _Loss(wanted=self._wanted[model], living=living[model])
            for model in sorted(changed)
            if living[model] < self._wanted[model]
        }

    def _plan_load(self, model: str, loss: _Loss) -> None:
        wait_s = self._schedule.died(model, time.monotonic())
        if wait_s is None:
            return
        logger.warning(
            "%d of %d processes of model %s died; loading it again%s",
            loss.wanted - loss.living,
            loss.wanted,
            model,
            f" in {wait_s:.0f} s, because it keeps dying" if wait_s else "",
        )

    def _load(self, model: str) -> None:
        started_s = time.monotonic()
        try:
            self._server.control.reload(model, self._repository / model)
        except ServingError as error:
            logger.error("model %s cannot be loaded again: %s", model, error)
        else:
            logger.warning("model %s answers again after %.1f s", model, time.monotonic() - started_s)
        self._schedule.loaded(model, time.monotonic())
