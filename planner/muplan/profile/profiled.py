"""Laws from a profile file in place of the roofline's: checked against what is planned, never extrapolated.

Between buckets of a generative model the clocked and the unclocked part of the time, ``k t`` and
``(1 - k) t``, are interpolated linearly in tokens, context and batch, for work grows nearly so. Stages of a
single-pass model are sums of the profile's partitions; what those lose by running alone, a few launches, is
taken out again by scaling their sum to the time of the whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from muplan.profile.operators import BATCH_AXIS, OperatorCost
from muplan.profile.profile_file import Bucket, Profile, Row
from muplan.sources import LoadedModel
from muserve.errors import InputError
from muserve.plan import Phase, Sensitivity, TimeLaw


def check_profile(profile: Profile, file: Path, source: LoadedModel, parts: Collection[str]) -> None:
    """InputError unless ``profile``, from ``file``, is of ``source`` as it is, on one of ``parts``."""
    if profile.part not in parts:
        known = ", ".join(sorted(parts))
        raise InputError(f"profile: {file} is for {profile.part}: expected a part of the cluster, {known}")
    if profile.model_fingerprint == source.fingerprint:
        return
    if profile.model != source.source:
        raise InputError(f"profile: {file} is of {profile.model}: expected one of {source.source}")
    raise InputError(
        f"profile: {file} is stale, {source.source} has changed since: expected the fingerprint "
        f"{source.fingerprint[:12]}, got {profile.model_fingerprint[:12]}"
    )


def inference_bucket(profile: Profile, dims: Mapping[str, int]) -> Bucket:
    """The bucket of a single-pass model at sizes ``dims``; InputError when the profile has none."""
    batch = dims.get(BATCH_AXIS, 1)
    for axis, size in profile.dims.items():
        if dims.get(axis) != size:
            raise InputError(f"profile: made at {axis} {size}: expected {axis} {dims.get(axis)}, as planned")
    for bucket in profile.of_phase(Phase.INFERENCE):
        if bucket.batch == batch:
            return bucket
    raise InputError(
        f"profile: expected a bucket of batch {batch}, got {_listed(b.batch for b in profile.buckets)}"
    )


def cut_where_profiled(costs: Sequence[OperatorCost], bucket: Bucket) -> tuple[OperatorCost, ...]:
    """``costs`` with cuts offered only between partitions that the profile has figures of.

    Raises InputError when the bucket is of another number of operators.
    """
    if bucket.whole.last + 1 != len(costs):
        raise InputError(
            f"profile: expected one of {len(costs)} operators, got {bucket.whole.last + 1}: it was made by a "
            "version of muServe that reads this model differently"
        )
    ends = {row.last for row in bucket.partitions}
    return tuple(
        replace(cost, cuttable=cost.cuttable and position in ends) for position, cost in enumerate(costs)
    )


def stage_laws(profile: Profile, bucket: Bucket, operators: Sequence[int]) -> tuple[TimeLaw, ...]:
    """The law of each stage of so many ``operators``; stages end where partitions of ``bucket`` end."""
    whole_ms = sum(row.latency_ms for row in bucket.partitions)
    scale = bucket.whole.latency_ms / whole_ms if whole_ms else 1.0
    laws, first = [], 0
    for count in operators:
        rows = [row for row in bucket.partitions if first <= row.first and row.last < first + count]
        assert sum(row.last - row.first + 1 for row in rows) == count, "cuts are where partitions end"
        laws.append(_law(profile, Phase.INFERENCE, [(scale, row) for row in rows]))
        first += count
    return tuple(laws)


def prefill_law(profile: Profile, prompt_tokens: float) -> TimeLaw:
    """Reading one prompt; InputError when its length is outside of the profile's buckets."""
    weights = _between(profile, Phase.PREFILL, "--prompt", "prompt tokens", prompt_tokens, "tokens")
    rows = [(weights[b.tokens], b.whole) for b in profile.of_phase(Phase.PREFILL) if b.tokens in weights]
    return _law(profile, Phase.PREFILL, rows)


def decode_law(profile: Profile, batch: int, context_tokens: float) -> TimeLaw:
    """One token step; InputError when batch or context are outside of the profile's buckets."""
    batches = _between(profile, Phase.DECODE, "--batch", "running requests", batch, "batch")
    contexts = _between(profile, Phase.DECODE, "--context", "tokens of context", context_tokens, "tokens")
    buckets = {(b.batch, b.tokens): b for b in profile.of_phase(Phase.DECODE)}
    rows = []
    for (size, share), (context, part) in ((b, c) for b in batches.items() for c in contexts.items()):
        if (size, context) not in buckets:
            raise InputError(
                f"profile: expected a decode bucket of batch {size} and context {context}, got none"
            )
        rows.append((share * part, buckets[size, context].whole))
    return _law(profile, Phase.DECODE, rows)


def decode_growth_ms(profile: Profile, slots: int, context_tokens: float) -> float:
    """As ``muplan.profile.llm.decode_growth_ms``, from the profile."""
    if slots < 2:
        return 0.0
    one, full = (decode_law(profile, batch, context_tokens).latency_ms for batch in (1, slots))
    return max(0.0, (full - one) / (slots - 1))


def _between(
    profile: Profile, phase: Phase, option: str, what: str, wanted: float, field: str
) -> dict[int, float]:
    """The buckets' sizes on both sides of ``wanted`` and their shares, which add up to 1."""
    sizes = sorted({int(getattr(bucket, field)) for bucket in profile.of_phase(phase)})
    if not sizes[0] <= wanted <= sizes[-1]:
        raise InputError(
            f"profile: expected {phase.value} buckets around {wanted:g} {what}, "
            f"got {_listed(sizes)}: make it with a wider {option}"
        )
    if wanted in sizes:
        return {int(wanted): 1.0}
    position = bisect_left(sizes, wanted)
    low, high = sizes[position - 1], sizes[position]
    share = (wanted - low) / (high - low)
    return {low: 1 - share, high: share}


def _law(profile: Profile, phase: Phase, rows: Sequence[tuple[float, Row]]) -> TimeLaw:
    """The law of rows run one after another, each counted as often as its weight says."""
    latency_ms = sum(weight * row.latency_ms for weight, row in rows)

    def mean(sensitivity: Iterable[float]) -> float:
        clocked = sum(w * row.latency_ms * k for (w, row), k in zip(rows, sensitivity, strict=True))
        return clocked / latency_ms if latency_ms else 0.0

    value = mean(row.k for _, row in rows)
    return TimeLaw(
        phase=phase,
        latency_ms=latency_ms,
        sensitivity=Sensitivity(
            value=value,
            low=min(mean(row.k_low for _, row in rows), value),
            high=max(mean(row.k_high for _, row in rows), value),
            basis=profile.bases.sensitivity,
        ),
        basis=profile.bases.latency,
    )


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(str(size) for size in sizes)
