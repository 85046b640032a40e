"""``muplan catalog``: the models and GPUs that come with muServe."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from muplan.catalog import CatalogEntry, catalog_entry, catalog_names
from muserve.console import table_console
from muserve.errors import InputError
from muserve.gpu.parts import BusyCurve, Part, load_part, part_names

_UNITS = {
    "bandwidth_gbs": "GB/s",
    "host_link_gbs": "GB/s",
    "idle_default_w": "W",
    "idle_w": "W",
    "knee_mhz": "MHz",
    "limit_min_w": "W",
    "limit_w": "W",
    "switch_call_ms": "ms",
    "switch_settle_ms": "ms",
}
_PEAKS = ("fp32", "tf32", "fp16", "int8")


@click.command(help="List the models and GPUs that come with muServe, or show one of them in full.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(name: str | None, as_json: bool) -> None:
    if name is not None and name not in (*catalog_names(), *part_names()):
        known = ", ".join([*catalog_names(), *part_names()])
        raise InputError(f"the catalogue has no {name!r}: expected one of {known}")
    models = [catalog_entry(n) for n in catalog_names() if name in (None, n)]
    gpus = [load_part(n) for n in part_names() if name in (None, n)]
    if as_json:
        document = {
            "models": [asdict(model) for model in models],
            "gpus": [asdict(gpu) | {"response_basis": gpu.response_basis} for gpu in gpus],
        }
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    if name is None:
        _show(_model_table(models), _gpu_table(gpus))
    elif models:
        _show(_model_table(models))
        click.echo(models[0].describes)
    else:
        _show(_figure_table(gpus[0]))


def _show(*tables: Any) -> None:
    console = table_console()
    for table in tables:
        console.print(table)


def _model_table(models: list[CatalogEntry]) -> Any:
    from muplan.fitted_table import FittedTable

    table = FittedTable(title="Models", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("weights", justify="right")
    table.add_column("inputs")
    table.add_column("profiled at")
    for model in models:
        table.add_row(
            model.name,
            model.kind.value,
            _parameters(model),
            f"{model.weight_bytes / 1e6:,.0f} MB",
            _plain("\n".join(model.inputs)),
            ", ".join(f"{axis} {size}" for axis, size in model.default_dims.items()) or "-",
        )
    return table


def _parameters(model: CatalogEntry) -> str:
    total = f"{model.parameters / 1e6:,.1f} M"
    if model.active_parameters == model.parameters:
        return total
    return f"{total}\n{model.active_parameters / 1e6:,.1f} M a token"


def _gpu_table(gpus: list[Part]) -> Any:
    from muplan.fitted_table import FittedTable

    table = FittedTable(
        title="GPUs",
        title_justify="left",
        caption=(
            "fp32 to int8: dense peak TFLOPS, bf16 is as fp16 and fp8 as int8. response: of time and power "
            "to the clock. muplan catalog GPU shows every figure and its source"
        ),
        caption_justify="left",
    )
    table.add_column("name", no_wrap=True)
    for heading in ("clocks MHz", "knee MHz", "memory GiB", "GB/s", *_PEAKS, "limit W", "idle W"):
        table.add_column(heading, justify="right")
    table.add_column("response", no_wrap=True)
    for gpu in gpus:
        table.add_row(
            gpu.name,
            f"{gpu.clocks_mhz[0]}-{gpu.top_clock_mhz}",
            str(gpu.knee_mhz),
            f"{gpu.memory_bytes / 2**30:.1f}",
            f"{gpu.bandwidth_gbs:g}",
            *(f"{gpu.peak_tflops[dtype]:g}" if dtype in gpu.peak_tflops else "-" for dtype in _PEAKS),
            f"{gpu.limit_min_w:g}-{gpu.limit_w:g}",
            f"{gpu.idle_w:g}-{gpu.idle_default_w:g}",
            gpu.response_basis.value,
        )
    return table


def _peaks(gpu: Part) -> str:
    """Peaks in ascending order, equal ones together: ``fp32 19.5, fp16/bf16 312``."""
    dtypes: dict[float, list[str]] = {}
    for dtype, peak in sorted(gpu.peak_tflops.items(), key=lambda item: item[1]):
        dtypes.setdefault(peak, []).append(dtype)
    return ", ".join(f"{'/'.join(names)} {peak:g}" for peak, names in dtypes.items())


def _figure_table(gpu: Part) -> Any:
    from muplan.fitted_table import FittedTable

    table = FittedTable(title=gpu.name, title_justify="left", show_lines=True)
    for heading in ("figure", "value", "basis", "source"):
        table.add_column(heading)
    for field, source in sorted(gpu.sources.items()):
        value = _figure(gpu, field)
        table.add_row(field, _plain(value), source.basis.value, _plain(source.text))
    return table


def _figure(gpu: Part, field: str) -> str:
    """One figure of a part in words; long lists by their ends."""
    value = getattr(gpu, field, "")
    if field == "clocks_mhz":
        return f"{len(gpu.clocks_mhz)} clocks, {gpu.clocks_mhz[0]}-{gpu.top_clock_mhz} MHz"
    if field == "busy_curves":
        return "\n".join(_curve(gpu, curve) for curve in gpu.busy_curves)
    if field == "memory_bytes":
        return f"{gpu.memory_bytes / 2**30:.2f} GiB"
    if field == "peak_tflops":
        return _peaks(gpu)
    return f"{value:g} {_UNITS.get(field, '')}".strip() if isinstance(value, int | float) else str(value)


def _curve(gpu: Part, curve: BusyCurve) -> str:
    """A busy curve by its two ends: the slowdown at its lowest clock, and the power at both."""
    low, top = curve.points[0], curve.points[-1]
    return (
        f"{curve.name}: k {curve.sensitivity:g}, {len(curve.points)} clocks, "
        f"{low.clock_mhz} MHz x{low.time_ratio:.2f} {low.power_w:g} W, {top.clock_mhz} MHz {top.power_w:g} W"
    )


def _plain(text: str) -> Any:
    """Text that rich must not read as markup."""
    from rich.text import Text

    return Text(text)
