"""The modelled profile: the roofline's times for every bucket, and the part's power at each row's ``k``.

A kernel's time above its launch is divided between memory and compute as its power mean weighs them:
``M^p`` to ``C^p`` (``muplan.profile.roofline``), so that the three shares add up to the latency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

from muplan.profile.buckets import Work
from muplan.profile.operators import OperatorCost
from muplan.profile.profile_file import PROFILE_VERSION, Bases, Bucket, Profile, Row, RuntimeVersion
from muplan.profile.roofline import EXPONENT, Efficiency, KernelTime, operator_time
from muplan.sensitivity import sum_law
from muplan.sources import LoadedModel
from muserve import __version__
from muserve.gpu.parts import Part
from muserve.physics import busy_power_w
from muserve.plan import Basis
from muserve.power_fit import FittedPower, fit_power

_DIGITS = 6
_POWER_STEPS = 6


def modelled_profile(
    source: LoadedModel, part: Part, works: Iterable[Work], done: Callable[[Work], None] | None = None
) -> Profile:
    """The profile of ``source`` on ``part`` at every one of ``works``; ``done`` is told after each.

    Raises InputError when the part has no peak for the model's dtype, or a shape cannot be inferred.
    """
    buckets, last = [], None
    for work in works:
        buckets.append(_bucket(work, part))
        last = work
        if done is not None:
            done(work)
    assert last is not None, "there is at least one bucket"
    modelled = Basis.MODELLED
    return Profile(
        version=PROFILE_VERSION,
        muserve_version=__version__,
        model=source.source,
        kind=source.kind,
        model_fingerprint=source.fingerprint,
        dtype=last.dtype,
        dims=dict(last.fixed_dims),
        part=part.name,
        bases=Bases(latency=modelled, sensitivity=modelled, power=modelled),
        runtime=RuntimeVersion(name="roofline", version=__version__),
        device=None,
        measured_at=None,
        buckets=tuple(buckets),
    )


class ModelledRows:
    """Rows of any span of a work's operators; every operator's time is computed once."""

    def __init__(self, work: Work, part: Part) -> None:
        self._work, self._part = work, part
        self._times: dict[Efficiency, tuple[KernelTime, ...]] = {}
        self._power = cache(lambda k: _power(part, k))

    def times(self, use: Efficiency) -> tuple[KernelTime, ...]:
        """The time of each operator, in order, with the coefficients ``use``."""
        if use not in self._times:
            work, part = self._work, self._part
            self._times[use] = tuple(operator_time(cost, part, work.dtype, use) for cost in work.costs)
        return self._times[use]

    def row(self, first: int, last: int, name: str, op_type: str) -> Row:
        """The figures of operators ``first`` to ``last``."""
        work, part = self._work, self._part
        costs = work.costs[first : last + 1]
        law = sum_law(work.phase, lambda use: self.times(use)[first : last + 1], part, work.runtime)
        launch, memory, compute = _split(self.times(work.runtime.expected)[first : last + 1])
        k = round(law.sensitivity.value, _DIGITS)
        power = self._power(k)
        return Row(
            name=name,
            op_type=op_type,
            first=first,
            last=last,
            latency_ms=rounded(law.latency_ms),
            launch_ms=rounded(launch),
            memory_ms=rounded(memory),
            compute_ms=rounded(compute),
            k=k,
            k_low=round(min(law.sensitivity.low, k), _DIGITS),
            k_high=round(max(law.sensitivity.high, k), _DIGITS),
            from_mhz=part.knee_mhz,
            to_mhz=part.top_clock_mhz,
            busy_top_w=rounded(busy_power_w(part, k, part.top_clock_mhz)),
            busy_knee_w=rounded(busy_power_w(part, k, part.knee_mhz)),
            static_w=rounded(power.static_w),
            linear_w=rounded(power.linear_w),
            steep_w=rounded(power.steep_w),
            steep_exponent=power.exponent,
            flops=rounded(sum(cost.flops for cost in costs)),
            bytes_read=sum(cost.bytes_read for cost in costs),
            bytes_written=sum(cost.bytes_written for cost in costs),
            weight_bytes=sum(cost.weight_bytes for cost in costs),
            activation_bytes=max(_live_bytes(cost) for cost in costs),
        )

    def span(self, first: int, last: int) -> Row:
        """The row of a partition: named by the operators it starts and ends with."""
        costs = self._work.costs
        name = costs[first].name if first == last else f"{costs[first].name} .. {costs[last].name}"
        return self.row(first, last, name, "partition")

    def whole(self) -> Row:
        """The row of the whole graph."""
        return self.row(0, len(self._work.costs) - 1, "model", "model")


def spans(places: Sequence[int], operators: int) -> tuple[tuple[int, int], ...]:
    """First and last position of every piece between neighbouring ``places`` of ``operators`` operators."""
    return tuple((low + 1, high) for low, high in pairwise((-1, *places, operators - 1)))


def _bucket(work: Work, part: Part) -> Bucket:
    rows = ModelledRows(work, part)
    return Bucket(
        phase=work.phase,
        batch=work.batch,
        tokens=work.tokens,
        whole=rows.whole(),
        partitions=tuple(rows.span(*span) for span in spans(work.places, len(work.costs))),
        operators=tuple(rows.row(i, i, cost.name, cost.op_type) for i, cost in enumerate(work.costs)),
        points=(),
    )


def _split(times: Sequence[KernelTime]) -> tuple[float, float, float]:
    """Milliseconds of launch, memory and compute; they add up to the latency."""
    launch = memory = compute = 0.0
    for time in times:
        launch += time.launch_ms
        longest = max(time.memory_ms, time.compute_ms)
        if longest:
            shares = [math.pow(t / longest, EXPONENT) for t in (time.memory_ms, time.compute_ms)]
            work = time.latency_ms - time.launch_ms
            memory += work * shares[0] / sum(shares)
            compute += work * shares[1] / sum(shares)
    return launch, memory, compute


def _power(part: Part, k: float) -> FittedPower:
    """The law of the board power of work of sensitivity ``k``, fitted over the working clocks."""
    clocks = part.working_clocks_mhz
    sampled = {clocks[round(step * (len(clocks) - 1) / _POWER_STEPS)] for step in range(_POWER_STEPS + 1)}
    return fit_power({clock: busy_power_w(part, k, clock) for clock in sorted(sampled)})


def _live_bytes(cost: OperatorCost) -> int:
    """Bytes that are live while an operator runs: what crosses it, and what it reads and writes itself."""
    return cost.cut_bytes + max(cost.bytes_read - cost.weight_bytes, 0) + cost.bytes_written


def rounded(value: float) -> float:
    """``value`` with digits that do not depend on the Python version."""
    return float(f"{value:.{_DIGITS}g}")
