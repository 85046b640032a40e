"""The report of a plan: self-contained, the same bytes every time, nothing left out in silence."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from muplan.cli import main
from muplan.pipeline import Planned, plan_spec
from muplan.report import plan_page as page_module
from muplan.report.plan_baselines import COMPARED, baseline_powers
from muplan.report.plan_page import REPORT_FILE, plan_page
from muplan.report.plan_plots import merged
from muplan.repository.directory import read_manifest
from muplan.spec import read_spec
from muserve.plan import Basis, PartitionPlan, Plan
from sample_plans import sample_gpu, sample_model, sample_partition, sample_plan

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"


@pytest.fixture(scope="module")
def planned() -> Planned:
    return plan_spec(read_spec(QUICKSTART))


@pytest.fixture(scope="module")
def page(planned: Planned) -> str:
    return plan_page(planned.plan, planned.staged, {"one model per GPU": 300.0}).decode()


def test_the_page_names_everything_and_says_that_it_is_predicted(planned: Planned, page: str) -> None:
    plan = planned.plan
    for name in [m.name for m in plan.models] + [g.name for g in plan.gpus]:
        assert name in page
    for partition in (p for model in plan.models for p in model.partitions):
        assert partition.name in page
    for gpu in plan.gpus:
        assert f"{gpu.initial_clock_mhz} of " in page
        assert gpu.initial_clock_reason in page
    assert f"{plan.default_clock_power_w:.0f} to {plan.predicted_power_w:.0f} W, predicted" in page
    assert "Everything here is predicted." in page
    assert page.count('alt="Sensitivity of ') == len(plan.models)


def test_a_baseline_that_misses_an_slo_is_named_without_a_figure(planned: Planned) -> None:
    text = plan_page(planned.plan, (), {"one model per GPU": 300.0, "round robin": None}).decode()
    assert "Left out, for they miss an SLO: round robin." in text


def test_baselines_are_those_of_the_placement(planned: Planned) -> None:
    demands = [model.demand for model in planned.staged]
    powers = baseline_powers(demands, planned.slots)
    assert tuple(powers) == COMPARED
    one_each = powers["one model per GPU"]
    assert one_each is not None
    assert one_each > planned.plan.predicted_power_w
    hurried = [replace(demand, rate_rps=1e4) for demand in demands]
    assert set(baseline_powers(hurried, planned.slots).values()) == {None}
    assert baseline_powers(demands * 1000, planned.slots) == {}


def test_measured_laws_are_told_apart(planned: Planned, page: str) -> None:
    assert "measured profiles" not in page
    first, *others = planned.plan.models
    laws = tuple(replace(law, basis=Basis.MEASURED) for law in first.partitions[0].laws)
    partitions = (replace(first.partitions[0], laws=laws), *first.partitions[1:])
    plan = replace(planned.plan, models=(replace(first, partitions=partitions), *others))
    text = plan_page(plan, (), {}).decode()
    assert f"those of {first.partitions[0].name} from measured profiles" in text


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.findall(r"<(?:script|link|iframe)", page)
    assert all(source.startswith("data:image/svg+xml") for source in re.findall(r'src="([^"]*)', page))
    assert "url(" not in page


def test_the_same_plan_gives_the_same_bytes(planned: Planned, page: str) -> None:
    again = plan_page(planned.plan, planned.staged, {"one model per GPU": 300.0})
    assert again.decode() == page
    other = replace(planned.plan, seed=planned.plan.seed + 1)
    assert plan_page(other, planned.staged, {"one model per GPU": 300.0}).decode() != page


def test_names_are_escaped(planned: Planned) -> None:
    assert "<b>bold" not in plan_page(_large(1, name="<b>bold"), (), {}).decode()


def test_a_large_plan_says_what_the_page_leaves_out() -> None:
    text = plan_page(_large(60), (), {}).decode()
    assert text.count('<div class="card">') == 48
    assert "12 more GPUs are in the plan" in text


def _large(gpus: int, name: str = "m") -> Plan:
    models = [sample_model(f"{name}{i}", partitions=(_on(f"{name}{i}", i),)) for i in range(gpus)]
    return sample_plan([sample_gpu(i) for i in range(gpus)], models)


def _on(name: str, gpu: int) -> PartitionPlan:
    return sample_partition(name, [f"node0/gpu{gpu}"])


SHARES = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1).map(lambda x: round(x, 3)))


@given(SHARES, st.integers(1, 20))
def test_merging_keeps_the_time_and_the_mean(latency_ms: np.ndarray, most: int) -> None:
    sensitivity = np.linspace(0, 1, len(latency_ms))
    times, means = merged(latency_ms, sensitivity, most)
    assert len(times) <= max(most, 1)
    assert times.sum() == pytest.approx(latency_ms.sum())
    assert (times * means).sum() == pytest.approx((latency_ms * sensitivity).sum())
    assert ((means >= 0) & (means <= 1 + 1e-12)).all()


class TestGenerate:
    def run(self, tmp_path: Path, *options: str) -> tuple[str, bool]:
        out = tmp_path / "out"
        result = CliRunner().invoke(main, ["generate", str(QUICKSTART), "-o", str(out), *options])
        assert result.exit_code == 0, result.stderr
        manifest = read_manifest(out)
        assert manifest is not None
        assert (REPORT_FILE in manifest) is (out / REPORT_FILE).exists()
        return result.stderr, (out / REPORT_FILE).exists()

    def test_report_is_written_beside_the_plan(self, tmp_path: Path) -> None:
        log, written = self.run(tmp_path)
        assert written
        assert "drawing report.html" in log

    def test_report_can_be_left_out(self, tmp_path: Path) -> None:
        log, written = self.run(tmp_path, "--no-report")
        assert not written
        assert "report.html" not in log

    def test_what_is_missing_is_said_once_and_the_plan_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page_module, "_NEEDED", ("jinja2", "no_such_drawing_library"))
        log, written = self.run(tmp_path)
        assert not written
        assert log.count("no report.html, which needs no_such_drawing_library") == 1
