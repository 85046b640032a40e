"""The control loop in virtual time: a clock that only moves when the daemon waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mupower.actuator import CapHold
from mupower.clocks import ClockLocks
from mupower.control import law_named
from mupower.daemon import Charge, Daemon, Timing
from mupower.exporter import Telemetry
from mupower.run_files import LimitNote
from mupower.scrape import Answer
from muserve.errors import GpuLostError
from muserve.plan import Plan

URL = "http://triton/metrics"


class World:
    """Virtual time, a fake Triton, recording GPUs, and a script of what happens when."""

    def __init__(self, plan: Plan, triton: Any, make_gpu: Callable[..., Any]) -> None:
        self.now_s = 100.0
        self.plan = plan
        self.triton = triton
        self.gpus = {gpu.name: make_gpu(index=gpu.index) for gpu in plan.gpus}
        self.holds: dict[str, CapHold] = {}
        self.answer: Callable[[], str | None] = triton.text
        self.fetch_takes_s = 0.0
        self.beats = 0
        self.cycles_s: list[float] = []
        self.load: Callable[[], None] = lambda: None
        self.registry = CollectorRegistry()

    def fetch(self) -> tuple[Answer, ...]:
        self.cycles_s.append(self.now_s)
        self.now_s += self.fetch_takes_s
        self.load()
        text = self.answer()
        return (Answer(url=URL, text=text, problem="refused" if text is None else ""),)

    def beat(self) -> None:
        self.beats += 1

    def run(
        self,
        cycles: int,
        law: str = "miad",
        *,
        dry_run: bool = False,
        at: dict[int, Callable[[], None]] | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Run ``cycles`` cycles; ``at[n]`` happens after cycle ``n`` (from 1)."""
        ended = 0

        def wait(seconds: float) -> bool:
            nonlocal ended
            self.now_s += seconds
            ended += 1
            if at and ended in at:
                at[ended]()
            return ended == cycles

        telemetry = Telemetry(law, dry_run, self.gpus)
        self.registry = telemetry.registry
        with ClockLocks(self.gpus | self.holds, dry_run=dry_run) as locks:
            Daemon(
                charges=self.charges(),
                law=law_named(law),
                locks=locks,
                fetch=self.fetch,
                clock=lambda: self.now_s,
                beat=self.beat,
                telemetry=telemetry,
                timing=timing or Timing(),
                dry_run=dry_run,
            ).run(wait)

    def charges(self) -> tuple[Charge, ...]:
        return tuple(
            Charge(
                name=gpu.name,
                gpu=self.gpus[gpu.name],
                models=self.plan.models_on(gpu.name),
                initial_clock_mhz=gpu.initial_clock_mhz,
                knee_mhz=945,
                supported_clocks_mhz=self.gpus[gpu.name].supported_clocks_mhz(),
                cap=self.holds.get(gpu.name),
            )
            for gpu in self.plan.gpus
        )

    def commands(self, index: int = 0) -> list[int | None]:
        history: list[int | None] = self.gpus[f"node0/gpu{index}"].history
        return history

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"mupower_{name}", labels)


@pytest.fixture
def world(plan: Plan, triton: Any, make_gpu: Callable[..., Any]) -> World:
    return World(plan, triton, make_gpu)


def test_slack_walks_down_to_the_knee_and_the_end_unlocks(world: World) -> None:
    world.load = lambda: world.triton.serve("bert", 30, 10.0)
    world.run(15)
    for index in range(2):
        commands = world.commands(index)
        assert commands[0] is None  # at the start everything is unlocked
        assert commands[1:4] == [1170, 1140, 1110]  # from the plan's 1200 MHz
        assert commands[-2:] == [945, None]
    assert world.metric("decisions_total", gpu="node0/gpu0", cause="slack") == 14
    assert world.metric("cycles_total") == 15
    assert world.beats == 15


def test_the_first_cycle_locks_nothing(world: World) -> None:
    world.run(1)
    assert world.commands() == [None, None]


def test_a_breach_goes_to_the_top_at_once(world: World) -> None:
    world.load = lambda: world.triton.serve("bert", 30, 10.0)

    def slow_down() -> None:
        world.load = lambda: world.triton.serve("bert", 30, 51.0)

    world.run(7, at={6: slow_down})
    assert world.commands()[-2:] == [1530, None]


def test_predicted_backlog_raises_before_any_latency_is_known(world: World) -> None:
    def pile_up() -> None:
        world.triton.backlog_s = 6.0  # of a 10 s SLO

    world.run(6, at={4: pile_up})
    assert world.commands(1) == [None, 1170, 1140, 1110, 1395, 1530, None]
    # gpu0 does not serve the model with the backlog
    assert world.commands(0) == [None, 1170, 1140, 1110, 1080, 1050, None]


def test_static_locks_once(world: World) -> None:
    world.run(10, "static")
    assert world.commands() == [None, 1200, None]


def test_default_locks_nothing(world: World) -> None:
    world.run(10, "default")
    assert world.commands() == [None, None]


def test_unanswered_scrapes_are_forgiven_until_metrics_are_stale(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def die() -> None:
        world.answer = lambda: None

    unlocked_at: list[float] = []

    def look() -> None:
        if world.gpus["node0/gpu0"].locked_mhz is None:
            unlocked_at.append(world.now_s)

    with caplog.at_level(logging.INFO):
        world.run(12, "static", at={3: die} | dict.fromkeys(range(4, 12), look))
    # cycles begin at 100, 101, ..; the last answer is of 102, so 107 is the last second of grace
    assert unlocked_at[0] == 109.0  # seen after the cycle of 108
    assert world.commands() == [None, 1200, None, None]
    assert caplog.text.count("clocks stay until metrics are 5 s old") == 1
    assert "unlocked (was at 1200 MHz): no metrics for 6.0 s (http://triton/metrics: refused)" in caplog.text
    assert world.metric("scrape_failures_total", endpoint=URL) == 9


def test_a_short_outage_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def answering(answer: Callable[[], str | None]) -> Callable[[], None]:
        return lambda: setattr(world, "answer", answer)

    with caplog.at_level(logging.INFO):
        world.run(12, "static", at={4: answering(lambda: None), 7: answering(world.triton.text)})
    assert world.commands() == [None, 1200, None]
    assert "metrics answer again" in caplog.text


def test_after_an_outage_it_takes_a_window_to_lock_again(world: World) -> None:
    def answering(answer: Callable[[], str | None]) -> Callable[[], None]:
        return lambda: setattr(world, "answer", answer)

    world.run(16, "static", at={2: answering(lambda: None), 12: answering(world.triton.text)})
    assert world.commands() == [None, 1200, None, 1200, None]


def test_corrupt_text_unlocks_at_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def corrupt() -> None:
        world.answer = lambda: "<html>Bad gateway</html>"

    with caplog.at_level(logging.INFO):
        world.run(4, "static", at={3: corrupt})
    assert world.commands() == [None, 1200, None, None]
    assert world.metric("decisions_total", gpu="node0/gpu0", cause="stale") == 2
    sentence = next(r for r in caplog.records if "not Prometheus text" in r.getMessage())
    assert sentence.getMessage().startswith("node0/gpu0: unlocked (was at 1200 MHz): http://triton/")
    assert "\n" not in sentence.getMessage()


def test_metrics_that_never_come_are_mentioned_every_so_often(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.answer = lambda: None
    with caplog.at_level(logging.INFO):
        world.run(21, timing=Timing(log_every=10))
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("node0/gpu0")]
    assert lines == ["node0/gpu0: kept unlocked: no metrics yet (http://triton/metrics: refused)"] * 3


def test_a_model_that_disappears_from_triton_unlocks_its_gpus_only(world: World) -> None:
    world.run(6, "static", at={3: lambda: world.triton.completed.pop("llm")})
    assert world.commands(0) == [None, 1200, None]
    assert world.commands(1) == [None, 1200, None, None]


def test_a_lost_gpu_is_let_go_and_the_others_are_steered(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    lost = world.gpus["node0/gpu0"]

    def lose() -> None:
        lost.failure, lost.failing = GpuLostError("TEST-0 is lost"), frozenset({"read", "lock"})

    def find() -> None:
        lost.failing = frozenset()

    with caplog.at_level(logging.INFO):
        world.run(9, at={3: lose, 6: find})
    assert world.commands(0) == [None, 1170, 1140, None, 1500, 1470, 1440, None]
    assert world.commands(1) == [None, *range(1170, 930, -30), None]
    assert "node0/gpu0: unlocked (was at 1140 MHz): TEST-0 is lost" in caplog.text
    assert world.metric("decisions_total", gpu="node0/gpu0", cause="error") == 3


def test_a_gpu_that_cannot_be_unlocked_either_is_said_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    lost = world.gpus["node0/gpu0"]

    def lose() -> None:
        lost.failure = GpuLostError("TEST-0 is lost")
        lost.failing = frozenset({"read", "lock", "unlock"})

    with pytest.raises(GpuLostError):  # leaving cannot unlock it, and says so by its exit
        world.run(5, at={3: lose})
    assert caplog.text.count("it cannot be unlocked and may still be held: TEST-0 is lost") == 1
    assert world.commands(1)[-1] is None


def test_a_bug_unlocks_and_is_not_swallowed(world: World) -> None:
    def break_it() -> None:
        world.answer = lambda: 1 / 0  # type: ignore[assignment, return-value]

    with pytest.raises(ZeroDivisionError):
        world.run(9, "static", at={4: break_it})
    assert world.commands() == [None, 1200, None]


def test_a_dry_run_commands_nothing_and_says_would(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        world.run(4, "static", dry_run=True)
    assert world.commands() == []
    assert "node0/gpu0: would be locked at 1200 MHz (was unlocked): the plan asks for" in caplog.text


def test_the_schedule_does_not_drift(world: World) -> None:
    world.fetch_takes_s = 0.25
    world.run(10)
    assert world.cycles_s == [100.0 + n for n in range(10)]


def test_an_overrun_restarts_the_schedule_instead_of_bursting(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def pace(seconds: float) -> Callable[[], None]:
        return lambda: setattr(world, "fetch_takes_s", seconds)

    world.run(6, at={2: pace(2.5), 3: pace(0.0)})
    assert world.cycles_s == [100.0, 101.0, 102.0, 104.5, 105.5, 106.5]
    assert "cycle ended 1.50 s late" in caplog.text


def test_after_a_long_sleep_locks_are_made_sure_of(world: World) -> None:
    def sleep() -> None:
        world.now_s += 8.0  # stopped, or suspended: the lease has run out and the supervisor unlocked

    world.run(8, "static", at={4: sleep}, timing=Timing(stale_after_s=60.0, window_s=60.0))
    assert world.commands() == [None, 1200, 1200, None]


def test_a_gpu_faster_than_commanded_is_locked_anew(world: World, caplog: pytest.LogCaptureFixture) -> None:
    gpu = world.gpus["node0/gpu0"]
    with caplog.at_level(logging.INFO):
        world.run(
            8,
            "static",
            at={3: lambda: setattr(gpu, "observed_mhz", 1530), 5: lambda: setattr(gpu, "observed_mhz", None)},
        )
    assert world.commands() == [None, 1200, 1200, 1200, None]
    said = (
        "node0/gpu0: its clock is not the commanded 1200 MHz: unlocked by somebody else (now 1530 MHz, 50 W)"
    )
    assert caplog.text.count(said) == 1
    reason = "unlocked by somebody else"
    assert world.metric("clock_mismatches_total", gpu="node0/gpu0", reason=reason) == 2


def test_a_power_limit_without_effect_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The recorder draws 50 W whatever is done to it."""
    name = "node0/gpu0"
    hold = CapHold(world.gpus[name], LimitNote(tmp_path / "g.limit"), lambda clock: clock / 10)
    world.holds[name] = hold
    with caplog.at_level(logging.INFO):
        world.run(8, "static")
    assert caplog.text.count("node0/gpu0: its power limit of 120 W is inert: it draws less by itself") == 1
    assert world.metric("power_cap_watts", gpu=name) == 120.0
    assert world.metric("power_cap_inert", gpu=name) == 1.0
    assert world.metric("clock_mismatches_total", gpu=name, reason="unexplained") is None
    assert world.gpus[name].limits_w == [120.0, 300.0]
    assert world.commands(1) == [None, 1200, None], "the other GPU is locked as ever"


@pytest.mark.parametrize(
    ("reasons", "utilisation", "reason"),
    [
        (frozenset({"SwPowerCap", "HwSlowdown"}), 0.0, "HwSlowdown+SwPowerCap"),
        (frozenset(), 0.0, "idle"),
        (frozenset(), 0.5, "unexplained"),
    ],
)
def test_a_gpu_slower_than_commanded_is_counted_with_the_reason(
    world: World,
    caplog: pytest.LogCaptureFixture,
    reasons: frozenset[str],
    utilisation: float,
    reason: str,
) -> None:
    gpu = world.gpus["node0/gpu0"]

    def throttle() -> None:
        gpu.observed_mhz, gpu.reasons, gpu.busy = 900, reasons, utilisation

    with caplog.at_level(logging.INFO):
        world.run(6, "static", at={3: throttle})
    assert world.commands() == [None, 1200, None], "commanding it again would not help"
    assert caplog.text.count(f"its clock is not the commanded 1200 MHz: {reason} (now 900 MHz") == 1
    assert world.metric("clock_mismatches_total", gpu="node0/gpu0", reason=reason) == 3
    assert world.metric("clock_mismatches_total", gpu="node0/gpu1", reason=reason) is None


def test_a_decision_is_one_sentence_when_something_changed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.load = lambda: world.triton.serve("bert", 30, 35.0)
    with caplog.at_level(logging.INFO):
        world.run(20)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("node0/gpu0")]
    assert lines == [
        "node0/gpu0: kept unlocked: a first window of metrics is not complete yet",
        "node0/gpu0: locked at 1200 MHz (was unlocked): latency of bert is 35 ms, 70% of its 50 ms SLO",
    ]


def test_one_model_on_an_unsupported_initial_clock(world: World) -> None:
    odd = replace(world.plan.gpus[0], initial_clock_mhz=1201)
    world.plan = replace(world.plan, gpus=(odd, world.plan.gpus[1]))
    world.run(3, "static")
    assert world.commands() == [None, 1215, None]
