"""One measured run: a generated plan on a real Triton, the power daemon beside it, a load, and its energy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from muplan.deploy.daemon import running_daemon
from muplan.deploy.serve import ServeOptions, serving
from muplan.load.replay import LoadProgress, ModelShapes, replay, warm_up
from muplan.load.schedule import PlannedRequest
from muplan.report.arm import ArmRun, GpuTrace
from mupower.metrics import Snapshot, counter_increase, parse_metrics
from mupower.scrape import Endpoints
from muserve.errors import MetricsUnavailableError
from muserve.gpu.opening import open_gpus
from muserve.gpu.protocol import Gpu
from muserve.plan import Plan, read_plan

_SCRAPE_S = 5.0
_OVERRUN = "mu_stage_overrun_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What to run. Energy is counted over ``window_s`` from the load's start, or longer when requests are
    still in flight then; ``give_up_s`` after the start those have failed. Logs go to ``<log_stem>.*.log``.
    """

    name: str
    description: str
    plan_dir: Path
    node: str
    law: str
    requests: Sequence[PlannedRequest]
    shapes: ModelShapes
    window_s: float
    give_up_s: float
    log_stem: Path
    tritonserver: Path | None = None


class Watcher:
    """Who is told how a measurement goes; does nothing by itself."""

    def stage(self, text: str) -> None:
        """A new stage began."""

    def load(self, progress: LoadProgress, window_s: float, clock_mhz: Mapping[str, int]) -> None:
        """The load goes on; the clocks are those of this moment, by GPU."""


def measure(experiment: Experiment, watcher: Watcher) -> tuple[ArmRun, str]:
    """Run ``experiment``; returns what it measured and Triton's version.

    Raises InputError, ServingError, GpuError or MetricsUnavailableError; whatever happens, Triton and the
    daemon are stopped and the clocks unlocked.
    """
    plan = read_plan(experiment.plan_dir)
    with ExitStack() as stack:
        watcher.stage(f"{experiment.name}: starting Triton")
        sampler = GpuSampler(open_gpus(plan, experiment.plan_dir, experiment.node))
        log = experiment.log_stem.with_suffix(".triton.log")
        log.unlink(missing_ok=True)
        options = ServeOptions(node=experiment.node, tritonserver=experiment.tritonserver)
        triton = stack.enter_context(serving(experiment.plan_dir, options, log=log))
        daemon = stack.enter_context(
            running_daemon(
                experiment.plan_dir,
                triton.metrics_url,
                experiment.law,
                experiment.log_stem.with_suffix(".mupower.log"),
            )
        )
        watcher.stage(f"{experiment.name}: warming up")
        version = warm_up(triton.grpc_url, experiment.requests, experiment.shapes)

        def on_sample(progress: LoadProgress) -> None:
            watcher.load(progress, experiment.window_s, sampler.sample(progress.time_s))
            daemon.require_alive()

        watcher.stage(f"{experiment.name}: {len(experiment.requests)} requests, then drain")
        before = _scrape(triton.metrics_url)
        outcomes = replay(
            triton.grpc_url,
            experiment.requests,
            experiment.shapes,
            window_s=experiment.window_s,
            give_up_s=experiment.give_up_s,
            on_sample=on_sample,
        )
        overrun_s = _overrun_s(before, _scrape(triton.metrics_url), plan)
        watcher.stage(f"{experiment.name}: stopping")
    traces = sampler.traces()
    run = ArmRun(
        name=experiment.name,
        description=experiment.description,
        window_s=traces[0].time_s[-1] - traces[0].time_s[0],
        outcomes=outcomes,
        gpus=traces,
        overrun_s=overrun_s,
    )
    return run, version


class GpuSampler:
    """Collects samples of GPUs through the protocol, so what is recorded is what was in force."""

    def __init__(self, gpus: Mapping[str, Gpu]) -> None:
        self._gpus = dict(gpus)
        self._samples: dict[str, list[tuple[float, int, float, float]]] = {name: [] for name in gpus}

    def sample(self, time_s: float) -> dict[str, int]:
        """Read every GPU now and file it under ``time_s``; returns the clocks."""
        for name, gpu in self._gpus.items():
            self._samples[name].append((time_s, gpu.clock_mhz(), gpu.energy_j(), gpu.utilisation()))
        return {name: samples[-1][1] for name, samples in self._samples.items()}

    def traces(self) -> tuple[GpuTrace, ...]:
        """What was sampled, in the order of the GPUs."""
        return tuple(_trace(name, samples) for name, samples in self._samples.items())


def _trace(name: str, samples: Sequence[tuple[float, int, float, float]]) -> GpuTrace:
    time_s, clock_mhz, energy_j, utilisation = zip(*samples, strict=True)
    return GpuTrace(gpu=name, time_s=time_s, clock_mhz=clock_mhz, energy_j=energy_j, utilisation=utilisation)


def _scrape(url: str) -> Snapshot:
    (answer,) = Endpoints([url], _SCRAPE_S).fetch()
    if answer.text is None:
        raise MetricsUnavailableError(f"{url}: {answer.problem}")
    return parse_metrics(answer.text, time.monotonic(), url)


def _overrun_s(before: Snapshot, after: Snapshot, plan: Plan) -> dict[str, float]:
    overrun = {
        model.name: counter_increase(before, after, _OVERRUN, model=model.name) for model in plan.models
    }
    return {model: seconds for model, seconds in overrun.items() if seconds > 0}
