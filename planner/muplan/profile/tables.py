"""A profile for people: its buckets, and what takes the time in one bucket of each phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from muplan.fitted_table import FittedTable
from muplan.profile.record import Bucket, Profile, Row
from muserve.plan import Basis

_LONGEST_NAME = 26


def profile_view(profile: Profile, top: int) -> Group:
    """All tables of ``profile``; the ``top`` slowest operators and partitions of each phase."""
    shown: list[RenderableType] = [_title(profile), _bucket_table(profile)]
    for phase in dict.fromkeys(bucket.phase for bucket in profile.buckets):
        bucket = profile.of_phase(phase)[0]
        if bucket.operators:
            shown.append(_row_table(profile, bucket, bucket.operators, "operators", top))
        if len(bucket.partitions) > 1:
            shown.append(_row_table(profile, bucket, bucket.partitions, "candidate partitions", top))
    shown.append(Text(_legend(profile) + _warning(profile)))
    return Group(*shown)


def _legend(profile: Profile) -> str:
    clocks = _one_range(profile)
    named = f"from {clocks[0]} to {clocks[1]} MHz" if clocks else "named"
    return (
        "Latency at the top clock. k: clock sensitivity, t(f) = t(top) x ((1 - k) + k x top / f), for clocks "
        f"{named} and no other. W: board power at the top clock and at the knee."
    )


def _one_range(profile: Profile) -> tuple[int, int] | None:
    """The clocks that every ``k`` holds for; None when they differ."""
    ranges = {(row.from_mhz, row.to_mhz) for b in profile.buckets for row in (b.whole, *b.partitions)}
    return ranges.pop() if len(ranges) == 1 else None


def _warning(profile: Profile) -> str:
    if profile.device is not None and profile.device.virtual:
        return " The device was a VIRTUAL GPU: these figures are a rehearsal of a measurement, not one."
    if profile.bases.latency is Basis.MEASURED and profile.bases.sensitivity is Basis.MODELLED:
        return (
            " The clock could not be locked: latency was measured at the default clock only, k is modelled."
        )
    return ""


def _title(profile: Profile) -> Text:
    dims = "".join(f", {axis} {size}" for axis, size in profile.dims.items())
    text = (
        f"{profile.model} ({profile.kind.value}, {profile.dtype}{dims}) on {profile.part}, "
        f"{profile.runtime.name} {profile.runtime.version}"
    )
    if profile.device is not None:
        text += f", {profile.device.name} {profile.device.uuid}, driver {profile.device.driver}"
    return Text(text, style="bold")


def _bucket_table(profile: Profile) -> FittedTable:
    table = _table("Buckets", profile)
    table.add_column("phase")
    table.add_column("batch", justify="right")
    table.add_column("tokens", justify="right")
    _add_figure_columns(table, profile)
    for bucket in profile.buckets:
        tokens = str(bucket.tokens) if bucket.tokens else "-"
        table.add_row(bucket.phase.value, str(bucket.batch), tokens, *_figures(bucket.whole, profile))
    return table


def _row_table(profile: Profile, bucket: Bucket, rows: Sequence[Row], what: str, top: int) -> FittedTable:
    groups = sorted(_alike(rows), key=lambda group: -group.count * group.row.latency_ms)
    hidden = sum(group.count for group in groups[top:])
    size = f"batch {bucket.batch}" + (f", {bucket.tokens} tokens" if bucket.tokens else "")
    table = _table(f"{bucket.phase.value}, {size}: slowest of {len(rows)} {what}", profile)
    table.add_column("first of its kind")
    table.add_column("times", justify="right")
    table.add_column("share", justify="right")
    _add_figure_columns(table, profile)
    total_ms = sum(row.latency_ms for row in rows)
    for group in groups[:top]:
        share = group.count * group.row.latency_ms / total_ms
        table.add_row(_operator(group.row), str(group.count), f"{share:.0%}", *_figures(group.row, profile))
    if hidden:
        share = sum(group.count * group.row.latency_ms for group in groups[top:]) / total_ms
        table.add_row(f"{hidden} others", "", f"{share:.0%}")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """``count`` rows that cost the same; ``row`` is the first of them."""

    row: Row
    count: int


def _alike(rows: Sequence[Row]) -> Iterator[_Alike]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.latency_ms:
            groups.setdefault((row.op_type, row.latency_ms, row.k, row.flops), []).append(row)
    return (_Alike(row=group[0], count=len(group)) for group in groups.values())


def _table(title: str, profile: Profile) -> FittedTable:
    return FittedTable(title=Text(title), title_justify="left", padding=(0, 0), collapse_padding=True)


def _add_figure_columns(table: FittedTable, profile: Profile) -> None:
    bases = profile.bases
    table.add_column(f"latency\n{bases.latency.value}", justify="right", no_wrap=True)
    if bases.latency is Basis.MODELLED and profile.device is None:
        table.add_column("launch/mem/\ncompute %", justify="right", no_wrap=True)
    table.add_column(f"k\n{bases.sensitivity.value}", justify="right", no_wrap=True)
    if _one_range(profile) is None:
        table.add_column("MHz", justify="right", no_wrap=True)
    table.add_column(f"W\n{bases.power.value}", justify="right", no_wrap=True)
    for heading in ("GFLOP", "MB moved", "weights\nMB", "live\nMB"):
        table.add_column(heading, justify="right", no_wrap=True)


def _figures(row: Row, profile: Profile) -> list[str]:
    cells = [_milliseconds(row.latency_ms)]
    if profile.bases.latency is Basis.MODELLED and profile.device is None:
        pieces = (row.launch_ms or 0.0, row.memory_ms or 0.0, row.compute_ms or 0.0)
        cells.append("/".join(f"{100 * piece / row.latency_ms:.0f}" for piece in pieces))
    cells.append(f"{row.k:.2f} ({row.k_low:.2f}-{row.k_high:.2f})")
    if _one_range(profile) is None:
        cells.append(f"{row.from_mhz}-{row.to_mhz}")
    return [
        *cells,
        "/".join("-" if watts is None else f"{watts:.0f}" for watts in (row.busy_top_w, row.busy_knee_w)),
        f"{row.flops / 1e9:,.0f}"
        if row.flops >= 1e12
        else f"{row.flops / 1e9:.3g}"
        if row.flops >= 1e6
        else "0",
        _megabytes(row.bytes_read + row.bytes_written),
        _megabytes(row.weight_bytes),
        _megabytes(row.activation_bytes),
    ]


def _milliseconds(value: float) -> str:
    return (
        f"{value * 1e3:.1f} us" if value < 0.1 else f"{value:.3g} ms" if value < 1e3 else f"{value:,.0f} ms"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def _operator(row: Row) -> str:
    """The operator's type and name, or the names of the first and last operator of a partition."""
    if row.op_type == "partition":
        return " .. ".join(_end_of(name) for name in row.name.split(" .. "))
    return f"{row.op_type} {_end_of(row.name.removesuffix('/' + row.op_type))}"


def _end_of(name: str) -> str:
    """The end of a long name: where an operator's path starts it shares with all others."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"
