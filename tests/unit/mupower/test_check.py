"""``mupower check`` and ``reset`` on the real NVML binding with the fake driver."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fake_nvml import FakeDriver, build_fake_nvml, load_fake_nvml
from mupower.cli import main
from mupower.lease import leases
from muserve.gpu.guarded import GuardedGpu
from muserve.plan import plan_bytes
from sample_plans import sample_gpu, sample_model, sample_partition, sample_plan


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setenv("MUPOWER_RUN_DIR", str(tmp_path / "run"))
    return load_fake_nvml(library, tmp_path, monkeypatch)


@pytest.fixture
def real_plan(tmp_path: Path) -> Path:
    gpus = [sample_gpu(0, virtual=False, uuid=None), sample_gpu(1, virtual=False, uuid="GPU-fake-1")]
    partition = sample_partition("bert", [gpu.name for gpu in gpus])
    file = tmp_path / "plan.json"
    file.write_bytes(plan_bytes(sample_plan(gpus, [sample_model("bert", partitions=(partition,))])))
    return file


def mupower(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check(*arguments: str | Path) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    result = mupower("check", "--json", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    document = json.loads(result.stdout)
    assert document["steerable"] is (result.exit_code == 0)
    return result.exit_code, {(f["subject"], f["check"]): f for f in document["findings"]}


def test_a_host_that_permits_everything(driver: FakeDriver) -> None:
    code, found = check()
    assert code == 0
    assert {finding["verdict"] for finding in found.values()} == {"ok"}
    assert found["host", "driver"]["detail"] == "550.54.15, 2 GPUs"
    assert found["gpu1", "device"]["detail"] == "Tesla Fake, GPU-fake-1"
    assert found["gpu0", "lock clock"]["detail"] == "84 clocks from 135 to 1380 MHz"
    assert found["gpu0", "limit power"]["detail"] == "100 to 250 W, now 250 W"
    assert found["gpu0", "readings"]["detail"] == "1380 MHz, 174 W"
    assert (driver.locked_mhz(0), driver.limit_mw(0)) == (None, 250_000)


def test_the_table_names_the_fix(driver: FakeDriver) -> None:
    driver.tell("persistence 0")
    result = CliRunner().invoke(main, ["check"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "nvidia-smi -i 1 -pm 1" in result.stdout


def test_without_permission_each_refusal_has_its_fix(driver: FakeDriver) -> None:
    driver.tell("fail nvmlDeviceSet* 4", "fail nvmlDeviceReset* 4")
    code, found = check()
    assert code == 1
    for what, instead in (("lock clock", "cap"), ("limit power", "clock")):
        refused = found["gpu0", what]
        assert refused["verdict"] == "refused"
        assert "changing clocks or power limits needs root" in refused["detail"]
        assert refused["fix"].startswith("run as root, or give the container CAP_SYS_ADMIN")
        assert refused["fix"].endswith(f"--actuator {instead}")


def test_where_only_power_may_be_limited_a_daemon_can_steer(driver: FakeDriver) -> None:
    driver.tell("fail nvmlDeviceSetGpuLockedClocks 3")
    code, found = check()
    assert code == 0
    assert found["gpu0", "lock clock"]["verdict"] == "refused"
    fix = "this GPU or its driver does not offer it: --actuator cap"
    assert found["gpu0", "lock clock"]["fix"] == fix
    assert found["gpu0", "limit power"]["verdict"] == "ok"


def test_one_bad_gpu_is_told_from_the_good_one(driver: FakeDriver) -> None:
    for order, sentence in (("lose 1", "fallen off the bus"), ("mig 1", "nvidia-smi -i 1 -mig 0")):
        driver.tell(order)
        code, found = check()
        assert code == 1
        assert sentence in found["gpu1", "device"]["detail"]
        assert found["gpu0", "lock clock"]["verdict"] == "ok"


def test_memory_errors_are_a_warning(driver: FakeDriver) -> None:
    driver.tell("ecc 0 3", "remap 0")
    code, found = check()
    assert code == 0
    memory = found["gpu0", "memory"]
    assert memory["detail"] == "3 uncorrected ECC errors since boot, rows wait to be remapped"
    assert memory["fix"] == "drain it, then nvidia-smi --gpu-reset -i 0"


def test_a_hanging_driver_is_said_so(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedGpu.__init__, "__defaults__", (0.1,))
    driver.tell("hang nvmlDeviceGetPersistenceMode 0")
    code, found = check("--no-probe")
    driver.tell()  # lets the stuck thread go
    assert code == 1
    assert "did not answer (health) within 0.1 s" in found["gpu0", "health"]["detail"]
    assert "dmesg" in found["gpu0", "health"]["fix"]
    assert found["gpu1", "readings"]["verdict"] == "ok"


def test_without_a_driver_there_is_one_finding(driver: FakeDriver) -> None:
    driver.tell("fail nvmlInitWithFlags 9")
    code, found = check()
    assert code == 1
    assert found["host", "driver"]["detail"] == "NVML: the NVIDIA driver is not loaded"
    assert "install the NVIDIA driver" in found["host", "driver"]["fix"]


def test_a_steered_gpu_is_left_alone(driver: FakeDriver, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with leases({"x": tmp_path / "run/GPU-fake-0.lease"}):
        before = driver.clock_commands(0)
        code, found = check()
    assert code == 0
    assert "locks and limits were not tried" in found["gpu0", "steering"]["detail"]
    assert ("gpu0", "lock clock") not in found
    assert driver.clock_commands(0) == before


def test_the_gpus_of_a_plan(driver: FakeDriver, real_plan: Path) -> None:
    code, found = check("--plan", real_plan, "--no-probe")
    assert code == 0
    wrong = found["node0/gpu0", "device"]
    assert (wrong["verdict"], wrong["detail"]) == (
        "warning",
        "Tesla Fake, the plan expects Tesla V100-PCIE-16GB",
    )
    assert driver.clock_commands(0) == 0


def test_virtual_gpus_can_be_steered_anywhere(plan_file: Path) -> None:
    code, found = check("--plan", plan_file)
    assert code == 0
    assert found["node0/gpu0", "lock clock"]["verdict"] == "ok"


def test_metrics_that_do_not_answer(plan_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code, found = check("--plan", plan_file, "--metrics", f"http://127.0.0.1:{port}/metrics")
    assert code == 1
    assert "Connection refused" in found["host", "metrics"]["detail"]
    assert "--metrics-port" in found["host", "metrics"]["fix"]


def test_reset_unlocks_what_it_can(driver: FakeDriver, real_plan: Path, tmp_path: Path) -> None:
    from muserve.gpu.nvml import NvmlGpu

    for index in (0, 1):
        NvmlGpu.open(index).lock_clock(945)
    driver.tell("fail nvmlDeviceResetGpuLockedClocks 10 1 1")
    result = mupower("reset", "--plan", real_plan)
    assert result.exit_code == 1
    assert "node0/gpu0: not unlocked: GPU 0 (Tesla Fake) unlock: Timeout" in result.stderr
    assert "node0/gpu1: unlocked (Tesla Fake, 1380 MHz now)" in result.stdout
    assert (driver.locked_mhz(0), driver.locked_mhz(1)) == (945, None)


def test_reset_takes_back_a_power_limit_where_clocks_may_not_be_unlocked(
    driver: FakeDriver, real_plan: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/GPU-fake-0.limit").write_text("200.0")
    driver.tell("fail nvmlDeviceResetGpuLockedClocks 3")
    result = mupower("reset", "--plan", real_plan)
    assert driver.limit_mw(0) == 200_000
    assert "node0/gpu0: unlocked" in result.stdout
    assert result.exit_code == 1, "gpu1 was not held by a limit, so it may still be locked"
    assert not (tmp_path / "run/GPU-fake-0.limit").exists()
