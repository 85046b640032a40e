"""A recording GPU, a small plan, and Triton-like metrics text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from muserve.errors import GpuError
from muserve.gpu.protocol import GpuHealth, GpuIdentity, PowerLimits
from muserve.plan import ModelKind, Plan, plan_bytes
from sample_plans import sample_gpu, sample_model, sample_partition, sample_plan

CLOCKS_MHZ = tuple(range(300, 1531, 15))


@dataclass
class RecordingGpu:
    """A GPU of the protocol that remembers every command and fails when told to."""

    index: int = 0
    clocks_mhz: tuple[int, ...] = CLOCKS_MHZ
    locked_mhz: int | None = None
    history: list[int | None] = field(default_factory=list)
    failure: GpuError | None = None
    failing: frozenset[str] = frozenset()
    observed_mhz: int | None = None
    busy: float = 0.5
    limit_w: float = 300.0
    limits_w: list[float] = field(default_factory=list)
    reasons: frozenset[str] = frozenset()

    def _maybe_fail(self, what: str) -> None:
        if self.failure is not None and what in self.failing:
            raise self.failure

    @property
    def identity(self) -> GpuIdentity:
        return GpuIdentity(index=self.index, uuid=f"TEST-{self.index}", name="Recorder", virtual=True)

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        return self.clocks_mhz

    def clock_mhz(self) -> int:
        self._maybe_fail("read")
        return self.observed_mhz or self.locked_mhz or self.clocks_mhz[-1]

    def locked_clock_mhz(self) -> int | None:
        return self.locked_mhz

    def lock_clock(self, clock_mhz: int) -> None:
        self._maybe_fail("lock")
        self.locked_mhz = clock_mhz
        self.history.append(clock_mhz)

    def unlock_clock(self) -> None:
        self._maybe_fail("unlock")
        self.locked_mhz = None
        self.history.append(None)

    def power_limits(self) -> PowerLimits:
        self._maybe_fail("read")
        return PowerLimits(least_w=100.0, most_w=300.0, default_w=300.0, limit_w=self.limit_w)

    def limit_power(self, limit_w: float) -> None:
        self._maybe_fail("limit")
        self.limit_w = limit_w
        self.limits_w.append(limit_w)

    def power_w(self) -> float:
        return 50.0

    def energy_j(self) -> float:
        return 1000.0 + len(self.history)

    def utilisation(self) -> float:
        return self.busy

    def throttle_reasons(self) -> frozenset[str]:
        return self.reasons

    def health(self) -> GpuHealth:
        return GpuHealth()


@pytest.fixture
def make_gpu() -> Callable[..., RecordingGpu]:
    return RecordingGpu


@pytest.fixture
def plan() -> Plan:
    """Two virtual V100s; ``bert`` on both, ``llm`` on the second."""
    gpus = [sample_gpu(0), sample_gpu(1)]
    stages = tuple(sample_partition(f"bert_stage{gpu.index}", [gpu.name]) for gpu in gpus)
    bert = sample_model("bert", slo_ms=50.0, partitions=stages)
    engine = sample_partition("llm_stage0", ["node0/gpu1"])
    llm = sample_model("llm", kind=ModelKind.GENERATIVE, slo_ms=10_000.0, partitions=(engine,))
    return sample_plan(gpus, [bert, llm])


@pytest.fixture
def plan_file(plan: Plan, tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    file.write_bytes(plan_bytes(plan))
    return file


@dataclass
class FakeTriton:
    """Counters of a Triton that serves the plan's models, as its metrics endpoint prints them."""

    completed: dict[str, int] = field(default_factory=lambda: {"bert": 0, "llm": 0})
    duration_us: dict[str, float] = field(default_factory=lambda: {"bert": 0.0, "llm": 0.0})
    pending: dict[str, int] = field(default_factory=dict)
    backlog_s: float = 0.0
    queue: int = 0
    rejected: int = 0
    llm_latencies_ms: list[float] = field(default_factory=list)
    bounds_ms: tuple[float, ...] = (1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0)

    def serve(self, model: str, requests: int, latency_ms: float) -> None:
        """``requests`` complete, each after ``latency_ms``."""
        self.completed[model] += requests
        self.duration_us[model] += requests * latency_ms * 1000
        if model == "llm":
            self.llm_latencies_ms += [latency_ms] * requests

    def text(self) -> str:
        lines = ["# HELP nv_inference_request_success Number of successful requests"]
        lines += ["# TYPE nv_inference_request_success counter"]
        for model, count in self.completed.items():
            lines.append(f'nv_inference_request_success{{model="{model}",version="1"}} {count}')
        lines.append("# TYPE nv_inference_request_duration_us counter")
        for model, duration in self.duration_us.items():
            lines.append(f'nv_inference_request_duration_us{{model="{model}",version="1"}} {duration}')
        lines.append("# TYPE nv_inference_pending_request_count gauge")
        for model, count in self.pending.items():
            lines.append(f'nv_inference_pending_request_count{{model="{model}",version="1"}} {count}')
        lines.append("# TYPE mu_request_latency_ms histogram")
        where = 'gpu="node0/gpu1",model="llm"'
        for bound in self.bounds_ms:
            count = sum(latency <= bound for latency in self.llm_latencies_ms)
            lines.append(f'mu_request_latency_ms_bucket{{{where},le="{bound:g}"}} {count}')
        total = len(self.llm_latencies_ms)
        lines.append(f'mu_request_latency_ms_bucket{{{where},le="+Inf"}} {total}')
        lines.append(f"mu_request_latency_ms_count{{{where}}} {total}")
        lines.append(f"mu_request_latency_ms_sum{{{where}}} {sum(self.llm_latencies_ms)}")
        lines.append("# TYPE mu_rejected_total counter")
        lines.append(f"mu_rejected_total{{{where}}} {self.rejected}")
        lines.append("# TYPE mu_queue_length gauge")
        lines.append(f"mu_queue_length{{{where}}} {self.queue}")
        lines.append("# TYPE mu_predicted_backlog_seconds gauge")
        lines.append(f"mu_predicted_backlog_seconds{{{where}}} {self.backlog_s}")
        lines.append("# TYPE nv_inference_request_summary_us summary")
        lines.append('nv_inference_request_summary_us{model="bert",quantile="0.95"} Nan')
        return "\n".join(lines) + "\n"


@pytest.fixture
def triton() -> Any:
    return FakeTriton()
