"""The ``replay`` executor: recorded or synthetic answers as real token streams on virtual time.

In one decode step every running request gets one token (iteration-level scheduling: Yu et al. 2022,
Orca). Only the time is virtual: a ``VirtualGpu`` says how long each iteration takes at the clock in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mubackend.llm_engine.answers import Answers
from mubackend.llm_engine.executor import Output
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.virtual_time import VirtualTime


class ReplayExecutor:
    """``Executor`` whose answers are known beforehand and whose time is virtual."""

    def __init__(self, slots: int, time: VirtualTime, answers: Answers) -> None:
        self._slots = slots
        self._time = time
        self._answers = answers
        self._running: dict[Job, Iterator[Output]] = {}

    @property
    def capacity(self) -> int:
        """The slots."""
        return self._slots

    def admit(self, jobs: Sequence[Job]) -> None:
        """Pay the prefill of ``jobs``."""
        for job in jobs:
            self._running[job] = self._outputs(job)
        self._time.prefill(len(jobs))

    def step(self) -> list[Output]:
        """One decode step: a token for every running job."""
        self._time.decode(len(self._running))
        outputs = [next(answer) for answer in self._running.values()]
        for output in outputs:
            if output.final:
                del self._running[output.job]
        return outputs

    def cancel(self, job: Job) -> None:
        """Forget a job."""
        self._running.pop(job, None)

    def idle(self) -> None:
        """Until the next ``admit`` no GPU time is spent."""
        self._time.idle()

    def close(self) -> None:
        """Nothing is held."""

    def _outputs(self, job: Job) -> Iterator[Output]:
        tokens = self._answers.tokens(job.request.prompt, job.request.sampling)
        last = len(tokens) - 1
        return (Output(job=job, text=text, final=place == last) for place, text in enumerate(tokens))
