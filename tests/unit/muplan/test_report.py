from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from muplan.load.outcome import Outcome
from muplan.load.schedule import PlannedRequest
from muplan.report.arm import ArmRun, GpuTrace, arm_figures
from muplan.report.bootstrap import mean_ratio
from muplan.report.document import Report
from muplan.report.page import headline, render_page
from muplan.report.plots import total_power
from muplan.report.rows import comparison, seconds
from muplan.report.terminal import print_report, sparkline
from muplan.report.window import same_window

SLO_MS = {"llm": 2000.0, "cnn": 50.0}


def _outcome(model: str, planned_s: float, jct_s: float | None) -> Outcome:
    return Outcome(
        request=PlannedRequest(model=model, planned_s=planned_s, prompt=None, tensor_seed=0),
        sent_s=planned_s + 0.004,
        first_response_s=None if jct_s is None else planned_s + jct_s,
        completed_s=None if jct_s is None else planned_s + jct_s,
        responses=0 if jct_s is None else 1,
        error="Exceeds maximum queue size" if jct_s is None else "",
    )


def _trace(gpu: str, watts: float, clocks: tuple[int, int]) -> GpuTrace:
    return GpuTrace(
        gpu=gpu,
        time_s=(0.0, 10.0, 40.0),
        clock_mhz=(clocks[0], clocks[1], clocks[1]),
        energy_j=(1000.0, 1000 + 10 * watts, 1000 + 40 * watts),
        utilisation=(0.0, 0.5, 1.0),
    )


def _run(name: str, scale: float, watts: float) -> ArmRun:
    return ArmRun(
        name=name,
        description=f"arm {name}",
        window_s=40.0,
        outcomes=(
            _outcome("llm", 1.0, 1.0 * scale),
            _outcome("cnn", 2.0, 0.020 * scale),
            _outcome("llm", 3.0, 3.0 * scale),
            _outcome("llm", 4.0, None),
            _outcome("cnn", 30.0, 0.060 * scale),
        ),
        gpus=(_trace("n/gpu0", watts, (1380, 690)), _trace("n/gpu1", watts / 2, (1380, 1380))),
        overrun_s={"cnn": 0.25},
    )


def _report() -> Report:
    return Report(
        title="two <virtual> GPUs",
        runs=(_run("base", 1.0, 100.0), _run("ours", 0.5, 60.0)),
        slo_ms=SLO_MS,
        setup={"virtual": True, "seed": 0, "versions": {"muserve": "1"}, "gpus": []},
        notes=("one run",),
    )


def test_attainment_counts_failed_requests_as_missed() -> None:
    figures = arm_figures(_run("base", 1.0, 100.0), SLO_MS)
    assert figures.attainment == {"llm": pytest.approx(1 / 3), "cnn": 0.5}
    llm = figures.requests["llm"]
    assert (llm.arrived, llm.completed, llm.failed, llm.good) == (3, 2, 1, 1)
    assert figures.good_requests == 2
    assert figures.errors == {"Exceeds maximum queue size": 1}


def test_energy_is_that_of_all_gpus_over_the_window() -> None:
    figures = arm_figures(_run("base", 1.0, 100.0), SLO_MS)
    assert figures.energy_j == pytest.approx(6000)
    assert figures.energy_j_by_gpu == {"n/gpu0": 4000, "n/gpu1": 2000}
    assert figures.average_power_w == pytest.approx(150)
    assert figures.joules_per_good_request == pytest.approx(3000)
    assert figures.mean_clock_mhz["n/gpu0"] == pytest.approx((1380 * 10 + 690 * 30) / 40)


def test_jct_and_makespan_are_over_completed_requests() -> None:
    figures = arm_figures(_run("base", 1.0, 100.0), SLO_MS)
    llm = figures.jct_s_by_model["llm"]
    assert llm is not None
    assert llm.mean == pytest.approx(2.0)
    assert llm.p50 == pytest.approx(2.0)
    assert llm.p99 == pytest.approx(2.98)
    assert figures.makespan_throughput_rps == pytest.approx(4 / 30.06)
    assert figures.sender_lateness_ms["max"] == pytest.approx(4.0)


def test_an_arm_without_any_good_request_has_no_energy_per_good_request() -> None:
    run = replace(_run("base", 1.0, 100.0), outcomes=(_outcome("llm", 1.0, None),))
    figures = arm_figures(run, SLO_MS)
    assert figures.joules_per_good_request is None
    assert figures.jct_s is None
    assert figures.makespan_throughput_rps == 0
    assert figures.attainment == {"llm": 0.0}
    failed = tuple(replace(o, completed_s=None) for o in _run("ours", 1.0, 100.0).outcomes)
    broken = replace(_report(), runs=(_run("base", 1.0, 100.0), replace(run, outcomes=failed)))
    assert broken.ratios().joules_per_good_request is None
    assert broken.ratios().jct_mean is None
    assert "-" in {row.change for section in comparison(broken) for row in section.rows}


def test_report_json_has_the_agreed_shape_baseline_first() -> None:
    document = json.loads(_report().json_text())
    assert list(document["arms"]) == ["base", "ours"]
    for arm in document["arms"].values():
        assert {"average_power_w", "energy_j", "good_requests", "joules_per_good_request"} <= set(arm)
        assert set(arm["jct_s"]) == {"mean", "p50", "p95", "p99"}
        assert set(arm["attainment"]) == {"llm", "cnn"}
        assert arm["makespan_throughput_rps"] > 0
    assert document["setup"]["virtual"] is True
    assert document["ratios"]["energy_j"] == pytest.approx(0.6)
    assert document["ratios"]["jct_mean_by_model"]["llm"]["value"] == pytest.approx(0.5)


def test_jct_ratios_compare_only_requests_that_both_arms_completed() -> None:
    base, ours = _report().runs
    lost = (replace(ours.outcomes[0], completed_s=None), *ours.outcomes[1:])
    report = replace(_report(), runs=(base, replace(ours, outcomes=lost)))
    ratio = report.ratios().jct_mean_by_model["llm"]
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5)


def test_arms_with_different_loads_cannot_be_compared() -> None:
    base, ours = _report().runs
    report = replace(_report(), runs=(base, replace(ours, outcomes=ours.outcomes[1:])))
    with pytest.raises(ValueError, match="zip"):
        report.ratios()


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=60))
@settings(deadline=None)
def test_the_interval_is_deterministic_and_ordered(pairs: list[tuple[float, float]]) -> None:
    ours, base = np.array(pairs).T
    interval = mean_ratio(ours, base)
    assert interval == mean_ratio(ours, base)
    assert interval.low <= interval.high
    assert interval.value == pytest.approx(ours.mean() / base.mean())


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        base = rng.lognormal(0, 0.7, 200)
        ours = base * 0.8 * rng.lognormal(-0.02, 0.2, 200)
        interval = mean_ratio(ours, base)
        hits += interval.low <= 0.8 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_bursts_widen_the_interval() -> None:
    # The same JCTs: 20 bursts of 20 requests that share one fate, against the same in random order.
    rng = np.random.default_rng(1)
    bursts = np.repeat(rng.lognormal(0, 1, 20), 20)
    base = np.ones(400)
    independent = mean_ratio(rng.permutation(bursts), base)
    together = mean_ratio(bursts, base)
    assert together.value == pytest.approx(independent.value)
    assert (together.high - together.low) > 2 * (independent.high - independent.low)


def test_the_window_ends_with_the_last_answer_of_the_slower_arm() -> None:
    base, ours = _report().runs  # last answers after 30.06 and 30.03 s, sampled for 40 s
    cut = same_window((base, ours), load_s=20.0)
    assert [run.window_s for run in cut] == [pytest.approx(30.06)] * 2
    assert cut[0].gpus[0].burnt_j == pytest.approx(30.06 * 100)
    assert cut[0].gpus[0].clock_mhz == (1380, 690, 690)
    assert [run.window_s for run in same_window((base, ours), load_s=35.0)] == [35.0, 35.0]


def test_an_arm_that_was_not_watched_long_enough_keeps_its_window() -> None:
    base, ours = _report().runs
    late = replace(ours, outcomes=(*ours.outcomes[:-1], _outcome("cnn", 30.0, 25.0)))
    assert [run.window_s for run in same_window((base, late), load_s=20.0)] == [40.0, 40.0]


def test_models_bound_by_the_cpu_are_marked_and_make_no_headline() -> None:
    base, ours = _report().runs
    report = replace(_report(), runs=(base, replace(ours, overrun_s={"cnn": 0.001})))
    assert base.cpu_share("cnn") == 1.0
    assert base.cpu_share("llm") == 0.0
    assert list(report.cpu_bound()) == ["cnn"]
    assert [tile.label for tile in headline(report)][2:] == ["mean JCT llm"]
    assert "100% of its JCT is this machine's CPU" in comparison(report)[1].title
    assert report.all_notes()[0].startswith("cnn: up to 100%")


def test_samples_of_different_length_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="equal length"):
        mean_ratio(np.ones(3), np.ones(2))


def test_the_terminal_shows_every_figure_and_the_clocks() -> None:
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as capture:
        print_report(_report(), console)
    text = capture.get()
    for expected in ("llm: 3 requests, SLO 2 s", "33.3%", "6,000 J", "x0.60", "690 to 1380 MHz", "one run"):
        assert expected in text
    assert "x0.50 [0.50, 0.50]" in text


def test_the_page_stands_alone_and_says_that_gpus_are_virtual() -> None:
    page = render_page(_report())
    assert "The GPUs are virtual." in page
    assert "two &lt;virtual&gt; GPUs" in page
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page == render_page(_report())


def test_the_headline_also_shows_what_got_worse() -> None:
    base, ours = _report().runs
    worse = replace(_report(), runs=(replace(ours, name="base"), replace(base, name="ours")))
    figures = [tile.figure for tile in headline(worse)]
    assert figures[0] == "+67 %"
    assert "+100 %" in figures


def test_every_row_has_a_cell_for_each_arm() -> None:
    for section in comparison(_report()):
        assert all(len(row.cells) == 2 for row in section.rows)


def test_power_over_time_adds_up_to_the_energy() -> None:
    run = _run("base", 1.0, 100.0)
    ends_s, power_w = total_power(run.gpus, 1.0)
    assert len(ends_s) == 39
    assert sum(power_w) == pytest.approx(150 * 39)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "12.3 ms"), (0.9, "900 ms"), (3.4567, "3.46 s"), (123.4, "123 s"), (0.0, "0 ms")],
)
def test_durations_are_readable(value: float, text: str) -> None:
    assert seconds(value) == text


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=300))
def test_a_sparkline_stays_inside_its_width_and_alphabet(values: list[float]) -> None:
    bars = sparkline(values, min(values), max(values), width=40)
    assert len(bars) == min(40, len(values))
    assert set(bars) <= set("▁▂▃▄▅▆▇█")
