"""The ``replay`` executor: recorded or synthetic answers as real token streams on virtual time.

In one decode step every running request gets one token (iteration-level scheduling: Yu et al. 2022,
Orca). Only the time is virtual: a ``VirtualGpu`` says how long each iteration takes at the clock in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mubackend.device import Device
from mubackend.llm_engine.answers import Answers
from mubackend.llm_engine.executor import Output
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.settings import EngineSettings


class ReplayExecutor:
    """``Executor`` whose answers are known beforehand and whose time is that of ``device``."""

    def __init__(self, settings: EngineSettings, device: Device, answers: Answers) -> None:
        self._settings = settings
        self._device = device
        self._answers = answers
        self._running: dict[Job, Iterator[Output]] = {}
        self._finished_s: float | None = None

    @property
    def capacity(self) -> int:
        """The slots."""
        return self._settings.slots

    def admit(self, jobs: Sequence[Job]) -> None:
        """Pay the prefill of ``jobs``, one after another."""
        for job in jobs:
            self._running[job] = self._outputs(job)
        self._spend(self._settings.prefill_ms * len(jobs), self._settings.prefill_sensitivity)

    def step(self) -> list[Output]:
        """One decode step: a token for every running job."""
        self._spend(self._settings.step_ms(len(self._running)), self._settings.decode_sensitivity)
        outputs = [next(answer) for answer in self._running.values()]
        for output in outputs:
            if output.final:
                del self._running[output.job]
        return outputs

    def cancel(self, job: Job) -> None:
        """Forget a job."""
        self._running.pop(job, None)

    def idle(self) -> None:
        """The next work begins when it is asked for, not when the last one ended."""
        self._finished_s = None

    def close(self) -> None:
        """Nothing is held."""

    def _outputs(self, job: Job) -> Iterator[Output]:
        tokens = self._answers.tokens(job.request.prompt, job.request.sampling)
        last = len(tokens) - 1
        return (Output(job=job, text=text, final=place == last) for place, text in enumerate(tokens))

    def _spend(self, latency_ms: float, sensitivity: float) -> None:
        if not latency_ms:  # an engine without a GPU behind it, to measure the rest
            return
        # Sending tokens overlaps with the next step on a real GPU, hence not_before_s.
        run = self._device.run(latency_ms, sensitivity, not_before_s=self._finished_s)
        self._finished_s = run.finished_s
