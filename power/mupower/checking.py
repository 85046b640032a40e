"""What a host permits the daemon to do, and how to permit the rest. See ``mupower check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mupower.actuator import refusal_of_cap, refusal_of_clock
from mupower.fleet import open_guarded
from mupower.lease import holder
from mupower.reading import read_gpu
from mupower.run_files import GpuFiles, gpu_files, run_dir
from mupower.scrape import Endpoints
from muserve.errors import GpuBusyError, GpuError, GpuNotFoundError, GpuPermissionError, MuServeError
from muserve.gpu.guarded import DriverThread, GuardedGpu
from muserve.gpu.parts import PARTS_DIR, load_part
from muserve.gpu.protocol import Gpu
from muserve.plan import GpuPlan

HOST = "host"


class Verdict(StrEnum):
    """``warning``: the daemon works, but not as well as it could."""

    OK = "ok"
    WARNING = "warning"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried on ``subject`` (a GPU, or the host); ``fix`` when it was not ok."""

    subject: str
    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


def check_planned(gpu: GpuPlan, plan_dir: Path, *, probe: bool) -> Iterator[Finding]:
    """Everything about one GPU of a plan."""
    try:
        device = open_guarded(gpu, plan_dir)
    except GpuError as error:
        yield _refused(gpu.name, "device", error)
        return
    who = device.identity
    product = load_part(gpu.part, plan_dir / PARTS_DIR).product
    if not who.virtual and product != who.name:
        detail = f"{who.name}, the plan expects {product}"
        yield Finding(
            subject=gpu.name,
            check="device",
            verdict=Verdict.WARNING,
            detail=detail,
            fix="plan again with the right GPU: `muplan generate`",
        )
    else:
        yield _ok(gpu.name, "device", f"{who.name}, {who.uuid}")
    yield from _check_device(gpu.name, device, gpu_files(gpu, who.uuid, plan_dir), probe=probe)


def check_driver() -> tuple[list[Finding], tuple[int, ...]]:
    """The driver, and the indices of the GPUs that it shows."""
    from muserve.gpu.nvml import count_gpus, driver_version

    thread = DriverThread("NVML")
    try:
        version = thread.ask("driver version", driver_version)
        count = thread.ask("number of GPUs", count_gpus)
    except GpuError as error:
        return [_refused(HOST, "driver", error)], ()
    return [_ok(HOST, "driver", f"{version}, {count} GPUs")], tuple(range(count))


def check_index(index: int, *, probe: bool) -> Iterator[Finding]:
    """Everything about the GPU with this NVML index."""
    from muserve.gpu.nvml import NvmlGpu

    name = f"gpu{index}"
    try:
        device = GuardedGpu(name, lambda: NvmlGpu.open(index))
    except GpuError as error:
        yield _refused(name, "device", error)
        return
    yield _ok(name, "device", f"{device.identity.name}, {device.identity.uuid}")
    yield from _check_device(name, device, GpuFiles(run_dir(), device.identity.uuid), probe=probe)


def check_metrics(url: str) -> Finding:
    """Whether Triton's metrics can be scraped there."""
    (answer,) = Endpoints([url], 2.0).fetch()
    if answer.text is not None and "nv_inference_request_success" in answer.text:
        return _ok(HOST, "metrics", url)
    shown = answer.problem or "answers, but shows no model of a Triton"
    return Finding(
        subject=HOST,
        check="metrics",
        verdict=Verdict.REFUSED,
        detail=f"{url}: {shown}",
        fix="start Triton with --allow-metrics=true, or name its --metrics-port",
    )


def can_steer(findings: list[Finding]) -> bool:
    """True when a daemon with ``--actuator auto`` could steer every GPU that was checked.

    A refused clock is forgiven where a power limit is permitted, and the other way round.
    """
    refused = {(f.subject, f.check) for f in findings if f.verdict is Verdict.REFUSED}
    actuators = ("lock clock", "limit power")
    for subject in {f.subject for f in findings}:
        if all((subject, check) in refused for check in actuators):
            return False
    return not any(check not in actuators for _, check in refused)


def _check_device(name: str, gpu: Gpu, files: GpuFiles, *, probe: bool) -> Iterator[Finding]:
    yield from _check_health(name, gpu)
    yield _check_readings(name, gpu)
    other = holder(files.lease)
    if other is not None:
        yield Finding(
            subject=name,
            check="steering",
            verdict=Verdict.WARNING,
            detail=f"steered by {other}: locks and limits were not tried",
            fix="stop that daemon to try them",
        )
    elif probe:
        clocks = gpu.supported_clocks_mhz()
        span = f"{len(clocks)} clocks from {clocks[0]} to {clocks[-1]} MHz"
        yield _tried(name, "lock clock", lambda: refusal_of_clock(gpu), lambda: span, "--actuator cap")
        yield _tried(
            name, "limit power", lambda: refusal_of_cap(gpu), lambda: _limit_range(gpu), "--actuator clock"
        )


def _limit_range(gpu: Gpu) -> str:
    limits = gpu.power_limits()
    return f"{limits.least_w:g} to {limits.most_w:g} W, now {limits.limit_w:g} W"


def _check_health(name: str, gpu: Gpu) -> Iterator[Finding]:
    index = gpu.identity.index
    try:
        health = gpu.health()
    except GpuError as error:
        yield _refused(name, "health", error)
        return
    if health.persistence is False:
        yield Finding(
            subject=name,
            check="persistence",
            verdict=Verdict.WARNING,
            detail="off: locks are lost whenever the last user of the GPU leaves",
            fix=f"nvidia-smi -i {index} -pm 1, or run nvidia-persistenced",
        )
    elif health.persistence:
        yield _ok(name, "persistence", "on")
    errors = health.uncorrected_ecc_errors
    if health.needs_reset or errors:
        waits = ", rows wait to be remapped" if health.needs_reset else ""
        yield Finding(
            subject=name,
            check="memory",
            verdict=Verdict.WARNING,
            detail=f"{errors or 0} uncorrected ECC errors since boot{waits}",
            fix=f"drain it, then nvidia-smi --gpu-reset -i {index}",
        )
    elif errors is not None:
        yield _ok(name, "memory", "no uncorrected ECC error since boot")


def _check_readings(name: str, gpu: Gpu) -> Finding:
    try:
        reading = read_gpu(gpu)
    except GpuError as error:
        return _refused(name, "readings", error)
    reasons = f", throttled: {', '.join(reading.throttle_reasons)}" if reading.throttle_reasons else ""
    return _ok(name, "readings", f"{reading.clock_mhz} MHz, {reading.power_w:.0f} W{reasons}")


def _tried(
    name: str, check: str, refusal: Callable[[], GpuError | None], detail: Callable[[], str], instead: str
) -> Finding:
    try:
        why = refusal()
        if why is None:
            return _ok(name, check, detail())
    except GpuError as error:
        return _refused(name, check, error)
    fix = f"this GPU or its driver does not offer it: {instead}"
    if isinstance(why, GpuPermissionError):
        fix = f"run as root, or give the container CAP_SYS_ADMIN; where neither is allowed: {instead}"
    return Finding(subject=name, check=check, verdict=Verdict.REFUSED, detail=str(why), fix=fix)


def _ok(subject: str, check: str, detail: str) -> Finding:
    return Finding(subject=subject, check=check, verdict=Verdict.OK, detail=detail)


def _refused(subject: str, check: str, error: MuServeError) -> Finding:
    fix = "see the driver's log: `dmesg | grep -i nvrm`"
    if isinstance(error, GpuNotFoundError):
        fix = "install the NVIDIA driver, or give the container this GPU (`--gpus all`)"
    elif isinstance(error, GpuPermissionError):
        fix = "run as root, or give the container CAP_SYS_ADMIN"
    elif isinstance(error, GpuBusyError):
        fix = "the driver hangs: see `dmesg | grep -i nvrm`, then reset the GPU or reboot"
    return Finding(subject=subject, check=check, verdict=Verdict.REFUSED, detail=str(error), fix=fix)
