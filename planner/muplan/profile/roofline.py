"""How long one kernel takes on a GPU and how that changes with the clock: a roofline with launch cost.

    t(x) = L + [ (M ((1 - s) + s x))^p + (C x)^p ]^(1/p),    x = fmax / f

``L`` launch overhead (host and front end, not clocked by the SMs), ``M`` = bytes / (bandwidth x memory
efficiency), ``C`` = flops / (peak x compute efficiency), ``s`` the small share of the memory path (L2,
crossbar) that follows the SM clock. The power mean with exponent ``p`` is the smooth form of the roofline
max(M, C) of Williams et al. 2009. Hence, in closed form at x = 1 with W = t - L,

    k = d ln t / d ln x = (W / t) (s M^p + C^p) / (M^p + C^p).

The compute efficiencies are those of Volta and Turing. Tensor cores from Ampere on (parts with a bf16 peak)
come closer to their peak in 16 and 8 bit: ``TENSOR_GAIN`` times as close, at most ``NEAREST_TO_PEAK``.

The coefficients are modelled; they were fitted to, or bracket, published measurements:

* bf16 matrix products at default clocks (ai-dynamo/aiconfigurator, A100 and H100 and H200, 439 points,
  mean error 6-7 %): L 3.5-4.0 us, memory efficiency .74-.86, compute efficiency .80-.87, p 1.7-5.8;
* Mistral-7B fp16 in vLLM on a V100-SXM2 (Slowist-Lee/log_vllm): decode 24.2 ms a token at batch 1 and 27.4
  at 16, flat in the clock down to 850 MHz; prefill of 625 tokens 161 ms at 1300 MHz with compute share .94.
  ``EAGER`` gives 23.8 ms with k .03, 24.8 ms, and 155 ms with k .97;
* memory-bound kernels on a V100 above its knee lose 0-2 % of speed for a third of the clock
  (blackjack2015/NV-DVFS-Benchmark): ``s`` 0-.10;
* Qwen2.5-7B bf16 in vLLM on an L20 (pdblend): a test holds the laws to it and says where they deviate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from muplan.profile.operators import OperatorCost
from muserve.errors import InputError
from muserve.gpu.parts import Part

EXPONENT = 3.0
TENSOR_GAIN = 1.5
NEAREST_TO_PEAK = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """One set of coefficients: shares of peak and bandwidth reached, launch cost, clocked memory share."""

    compute: float
    memory: float
    launch_us: float
    clocked_memory: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A kind of runtime: expected coefficients, and the two plausible ends for the sensitivity."""

    expected: Efficiency
    least_sensitive: Efficiency
    most_sensitive: Efficiency


GRAPH_RUNTIME = Runtime(
    expected=Efficiency(compute=0.55, memory=0.78, launch_us=5.0, clocked_memory=0.03),
    least_sensitive=Efficiency(compute=0.80, memory=0.68, launch_us=10.0, clocked_memory=0.0),
    most_sensitive=Efficiency(compute=0.40, memory=0.88, launch_us=3.0, clocked_memory=0.10),
)
"""Compiled graphs: ONNX Runtime, TensorRT."""

EAGER = Runtime(
    expected=Efficiency(compute=0.55, memory=0.78, launch_us=10.0, clocked_memory=0.03),
    least_sensitive=Efficiency(compute=0.80, memory=0.68, launch_us=15.0, clocked_memory=0.0),
    most_sensitive=Efficiency(compute=0.40, memory=0.88, launch_us=4.0, clocked_memory=0.10),
)
"""Token engines that launch every kernel from the host: vLLM and transformers without CUDA graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """The pieces of one kernel's time at the top clock, in milliseconds."""

    launch_ms: float
    memory_ms: float
    compute_ms: float
    clocked_memory: float

    def at(self, clock_ratio: float) -> float:
        """Milliseconds when the top clock is ``clock_ratio`` (>= 1) times the clock in force."""
        memory = self.memory_ms * (1 - self.clocked_memory + self.clocked_memory * clock_ratio)
        return self.launch_ms + _power_mean(memory, self.compute_ms * clock_ratio)

    @property
    def latency_ms(self) -> float:
        """Milliseconds at the top clock."""
        return self.at(1.0)

    @property
    def clocked_ms(self) -> float:
        """``dt/dx`` at the top clock: the milliseconds that grow with 1 / clock."""
        work = _power_mean(self.memory_ms, self.compute_ms)
        if work == 0:
            return 0.0
        memory = math.pow(self.memory_ms / work, EXPONENT)
        compute = math.pow(self.compute_ms / work, EXPONENT)
        return work * (self.clocked_memory * memory + compute)

    @property
    def sensitivity(self) -> float:
        """``k`` of this kernel; 0 for an operator that takes no time."""
        latency = self.latency_ms
        return self.clocked_ms / latency if latency else 0.0


def kernel_time(
    *,
    flops: float,
    moved_bytes: float,
    launches: float,
    matrix: bool,
    part: Part,
    dtype: str,
    use: Efficiency,
) -> KernelTime:
    """The time of work given as counts. ``matrix`` work runs at the peak of ``dtype``, other at fp32's.

    Raises InputError when the part has no peak for ``dtype``.
    """
    if dtype not in part.peak_tflops:
        known = ", ".join(sorted(part.peak_tflops))
        raise InputError(f"GPU part {part.name} has no peak for {dtype}: expected one of {known}")
    peak, efficiency = part.peak_tflops["fp32"], use.compute
    if matrix and dtype != "fp32":
        peak = part.peak_tflops[dtype]
        if "bf16" in part.peak_tflops:
            efficiency = min(TENSOR_GAIN * efficiency, NEAREST_TO_PEAK)
    return KernelTime(
        launch_ms=launches * use.launch_us * 1e-3,
        memory_ms=moved_bytes / (part.bandwidth_gbs * use.memory) * 1e-6,
        compute_ms=flops / (peak * efficiency) * 1e-9,
        clocked_memory=use.clocked_memory,
    )


def operator_time(cost: OperatorCost, part: Part, dtype: str, use: Efficiency) -> KernelTime:
    """The time of one operator; fused and free operators launch nothing."""
    return kernel_time(
        flops=cost.flops,
        moved_bytes=cost.bytes_read + cost.bytes_written,
        launches=float(cost.launches),
        matrix=cost.matrix,
        part=part,
        dtype=dtype,
        use=use,
    )


def _power_mean(memory: float, compute: float) -> float:
    largest = max(memory, compute)
    if largest == 0:
        return 0.0
    shares = math.pow(memory / largest, EXPONENT) + math.pow(compute / largest, EXPONENT)
    return largest * math.pow(shares, 1 / EXPONENT)
