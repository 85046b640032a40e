from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from mubackend.llm_engine.executor import Output
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.request import parse_request
from mubackend.llm_engine.settings import EngineSettings
from mubackend.llm_engine.virtual_time import OnVirtualGpu, VirtualTime
from muserve.errors import GpuLostError
from muserve.gpu.virtual import VirtualRun

SETTINGS = EngineSettings(
    model="llm", slots=4, queue_limit=9, prefill_ms=7.0, prefill_sensitivity=0.9, decode_ms=10.0,
    decode_ms_per_running_request=1.0, decode_sensitivity=0.1, slo_ms=1000.0,
)  # fmt: skip


@dataclass
class Gpu:
    """Writes down what it is asked to run; ``slow_s`` is how long each run takes."""

    slow_s: float = 0.0
    lost: bool = False
    runs: list[tuple[float, float, float | None]] = field(default_factory=list)

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        if self.lost:
            raise GpuLostError("VGPU-x-0 has gone")
        self.runs.append((latency_ms, sensitivity, not_before_s))
        time.sleep(self.slow_s)
        return VirtualRun(started_s=0.0, finished_s=float(len(self.runs)), gpu_s=latency_ms / 1000)


@dataclass
class Counter:
    """An executor whose answers have ``length`` tokens."""

    length: int = 3
    capacity: int = 4
    left: dict[Job, int] = field(default_factory=dict)
    threads: set[str] = field(default_factory=set)
    closed: bool = False

    def admit(self, jobs: Sequence[Job]) -> None:
        self.left |= dict.fromkeys(jobs, self.length)

    def step(self) -> list[Output]:
        self.threads.add(threading.current_thread().name)
        for job in self.left:
            self.left[job] -= 1
        outputs = [Output(job=job, final=not left) for job, left in self.left.items()]
        self.left = {job: left for job, left in self.left.items() if left}
        return outputs

    def cancel(self, job: Job) -> None:
        self.left.pop(job, None)

    def idle(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Nobody:
    def send(self, text: str, *, final: bool) -> None: ...

    def fail(self, code: str, message: str) -> None: ...

    def cancelled(self) -> bool:
        return False


def job(number: int) -> Job:
    request = parse_request("p", stream=True, exclude_input_in_output=None, sampling_parameters="")
    return Job(request=request, reply=Nobody(), number=number, arrival_ms=0, undecided_until_s=0.0)


def test_a_prefill_for_whoever_came_then_a_step_of_all_that_run() -> None:
    gpu, counter = Gpu(), Counter()
    executor = OnVirtualGpu(counter, VirtualTime(SETTINGS, gpu))
    executor.admit([job(1), job(2)])
    executor.step()
    executor.step()
    executor.admit([job(3)])
    executor.step()
    executor.step()
    executor.idle()
    executor.admit([job(4)])
    executor.step()
    executor.close()
    assert [run[:2] for run in gpu.runs] == [(14.0, 0.9), (11.0, 0.1), (7.0, 0.9), (10.0, 0.1), (7.0, 0.9)]
    assert [run[2] for run in gpu.runs] == [None, 1.0, 2.0, 3.0, None], "idle time is not made up for"
    assert counter.closed


def test_a_cancelled_job_costs_nothing_more() -> None:
    gpu, counter = Gpu(), Counter(length=9)
    executor = OnVirtualGpu(counter, VirtualTime(SETTINGS, gpu))
    first, second = job(1), job(2)
    executor.admit([first, second])
    executor.step()
    executor.cancel(first)
    executor.step()
    executor.close()
    assert gpu.runs[-1][0] == 10.0


def test_a_step_is_over_when_both_have_finished() -> None:
    executor = OnVirtualGpu(Counter(), VirtualTime(SETTINGS, Gpu(slow_s=0.05)))
    executor.admit([job(1)])
    started_s = time.monotonic()
    executor.step()
    assert time.monotonic() - started_s >= 0.05
    executor.close()


def test_a_lost_gpu_fails_the_step() -> None:
    executor = OnVirtualGpu(Counter(), VirtualTime(SETTINGS, Gpu(lost=True)))
    executor.admit([job(1)])
    with pytest.raises(GpuLostError):
        executor.step()
    executor.close()
