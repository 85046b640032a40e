"""The time that the planned GPU takes for the work of an engine, spent on a virtual GPU."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mubackend.device import Device
from mubackend.llm_engine.executor import Executor, Output
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.settings import EngineSettings


class VirtualTime:
    """Blocks for as long as ``device`` needs. One thread."""

    def __init__(self, settings: EngineSettings, device: Device) -> None:
        self._settings = settings
        self._device = device
        self._finished_s: float | None = None

    def prefill(self, jobs: int) -> None:
        """Read the prompts of so many jobs, one after another."""
        self._spend(self._settings.prefill_ms * jobs, self._settings.prefill_sensitivity)

    def decode(self, running: int) -> None:
        """One token of each running job."""
        self._spend(self._settings.step_ms(running), self._settings.decode_sensitivity)

    def idle(self) -> None:
        """The next work begins when it is asked for, not when the last one ended."""
        self._finished_s = None

    def _spend(self, latency_ms: float, sensitivity: float) -> None:
        if not latency_ms:  # an engine without a GPU behind it, to measure the rest
            return
        # Sending tokens overlaps with the next step on a real GPU, hence not_before_s.
        run = self._device.run(latency_ms, sensitivity, not_before_s=self._finished_s)
        self._finished_s = run.finished_s


class OnVirtualGpu:
    """An executor that computes on the CPU and takes at least the time of the planned GPU for it.

    A step that follows ``admit`` is the prefill of the jobs that came; each other one is a token.
    """

    def __init__(self, executor: Executor, time: VirtualTime) -> None:
        self._executor = executor
        self._time = time
        self._joining: set[Job] = set()
        self._running: set[Job] = set()
        self._gpu = ThreadPoolExecutor(1, thread_name_prefix="virtual-gpu")

    @property
    def capacity(self) -> int:
        """That of the executor."""
        return self._executor.capacity

    def admit(self, jobs: Sequence[Job]) -> None:
        """Take in jobs."""
        self._joining.update(jobs)
        self._executor.admit(jobs)

    def step(self) -> Sequence[Output]:
        """One step on both, CPU and GPU."""
        if self._joining:
            spent = self._gpu.submit(self._time.prefill, len(self._joining))
        else:
            spent = self._gpu.submit(self._time.decode, len(self._running))
        try:
            outputs = self._executor.step()
        finally:
            spent.result()
        self._running |= self._joining
        self._joining = set()
        self._running -= {output.job for output in outputs if output.final}
        return outputs

    def cancel(self, job: Job) -> None:
        """Forget a job."""
        self._joining.discard(job)
        self._running.discard(job)
        self._executor.cancel(job)

    def idle(self) -> None:
        """Until the next ``admit`` no GPU time is spent."""
        self._time.idle()
        self._executor.idle()

    def close(self) -> None:
        """Let go of the executor and of the thread that waits for the GPU."""
        self._gpu.shutdown()
        self._executor.close()
