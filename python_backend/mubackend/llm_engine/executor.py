"""What works on the admitted requests; the engine in front of it decides who is admitted, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mubackend.failure import RequestError
from mubackend.llm_engine.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one step made of one job: ``tokens`` more tokens and the text that is certain now.

    The text may be empty: part of a character, or what may still turn out to be a stop string. With
    ``failure`` the job has ended without an answer.
    """

    job: Job
    text: str = ""
    tokens: int = 1
    final: bool = False
    failure: RequestError | None = None


class Executor(Protocol):
    """Generates tokens for up to ``capacity`` jobs at once. All calls come from one thread.

    ``capacity`` is the number of slots, or more where the executor has a waiting line of its own and
    orders it by ``Job.priority``.
    """

    @property
    def capacity(self) -> int:
        """How many admitted jobs it can hold."""

    def admit(self, jobs: Sequence[Job]) -> None:
        """Take in new jobs, best first. May block for their prefill."""

    def step(self) -> Sequence[Output]:
        """Work on the admitted jobs for one step; blocks for as long as that takes.

        A job is forgotten with its final output.
        """

    def cancel(self, job: Job) -> None:
        """Forget a job, wherever it is; nothing happens when it is not there."""

    def idle(self) -> None:
        """No job is left, and none waits: until the next ``admit`` time passes unused."""

    def close(self) -> None:
        """Let go of everything. Nothing is called afterwards."""
