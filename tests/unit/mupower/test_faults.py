"""Whatever an NVML call answers, and whenever: the daemon goes on, and the end unlocks.

The real binding, the real device class and the real control loop on the fake driver, in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_nvml import FakeDriver, build_fake_nvml, load_fake_nvml
from mupower.actuator import CapHold, LockHold
from mupower.clocks import ClockLocks
from mupower.control import law_named
from mupower.daemon import Charge, Daemon, Timing
from mupower.exporter import Telemetry
from mupower.run_files import LimitNote
from mupower.scrape import Answer
from muserve.gpu.nvml import NvmlGpu
from muserve.plan import Plan

FUNCTIONS = (
    "nvmlDevice*",
    "nvmlDeviceGet*",
    "nvmlDeviceSet*",
    "nvmlDeviceReset*",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetPowerManagementLimit",
)
CODES = sorted(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))
ORDERS = st.one_of(
    st.tuples(st.sampled_from(FUNCTIONS), st.sampled_from([*CODES, 4242])).map(
        lambda f: f"fail {f[0]} {f[1]}"
    ),
    st.integers(0, 1).map(lambda index: f"lose {index}"),
    st.tuples(st.integers(0, 1), st.integers(0, 3000)).map(lambda o: f"observe {o[0]} {o[1]}"),
    st.tuples(st.integers(0, 1), st.integers(0, 0x7FF)).map(lambda r: f"reasons {r[0]} {r[1]}"),
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDriver]:
    folder = tmp_path_factory.mktemp("nvml")
    with pytest.MonkeyPatch.context() as patch:
        yield load_fake_nvml(build_fake_nvml(folder), folder, patch)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(st.lists(ORDERS, max_size=2), min_size=1, max_size=8), capped=st.booleans())
def test_any_call_may_fail_at_any_time(
    driver: FakeDriver, plan: Plan, triton: Any, tmp_path: Path, script: list[list[str]], capped: bool
) -> None:
    driver.tell()
    gpus = {gpu.name: NvmlGpu.open(gpu.index) for gpu in plan.gpus}
    notes = {name: LimitNote(tmp_path / f"{index}.limit") for index, name in enumerate(gpus)}
    holds: dict[str, LockHold | CapHold] = {
        name: CapHold(gpu, notes[name], lambda clock: clock / 8) if capped else LockHold(gpu, notes[name])
        for name, gpu in gpus.items()
    }
    now_s = 100.0
    steps = iter([[], [], *script])

    def wait(seconds: float) -> bool:
        """Time passes, and the driver gets its next orders; at the end it is well again."""
        nonlocal now_s
        now_s += seconds
        orders = next(steps, None)
        driver.tell(*(orders or ()))
        return orders is None

    def fetch() -> tuple[Answer, ...]:
        triton.serve("bert", 30, 10.0)
        return (Answer(url="u", text=triton.text()),)

    with ClockLocks(holds, clock=lambda: now_s) as locks:
        Daemon(
            charges=tuple(
                Charge(
                    name=gpu.name,
                    gpu=gpus[gpu.name],
                    models=plan.models_on(gpu.name),
                    initial_clock_mhz=gpu.initial_clock_mhz,
                    knee_mhz=945,
                    supported_clocks_mhz=gpus[gpu.name].supported_clocks_mhz(),
                    cap=hold if isinstance(hold := holds[gpu.name], CapHold) else None,
                )
                for gpu in plan.gpus
            ),
            law=law_named("miad"),
            locks=locks,
            fetch=fetch,
            clock=lambda: now_s,
            beat=lambda: None,
            telemetry=Telemetry("miad", False, gpus),
            timing=Timing(),
        ).run(wait)
        assert capped or driver.clock_commands(0) > 0
    assert [driver.locked_mhz(index) for index in (0, 1)] == [None, None]
    assert {driver.limit_mw(index) for index in (0, 1)} <= {None, 250_000}
    assert not list(tmp_path.glob("*.limit"))
