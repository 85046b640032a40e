"""Queue orders against each other on a real Triton: the whole endpoint, replay engine, real prompts.

One arm is one order. Every arm has its own ensemble (length predictor, engine) and virtual GPU on one Triton;
the arms are measured one after another in turns (or --together), each on the same seeds: same arrivals,
prompts and answers, which are those of the test side of the ShareGPT split. The engine's time is virtual but
real to wait for: a step with all slots busy takes --step-ms for each slot, which keeps the rate of requests
the same whatever the number of slots. *pace* says whether the machine kept up: it should be the same for all
arms. The first part of each run (--warm-up) is not measured.

*captured*: (FCFS - arm) / (FCFS - oracle) in mean completion time, the oracle knowing each answer's length.
Completion counts from the planned arrival, predictor and routing included. Spreads are standard deviations
over the rounds. Arrivals: Gamma gaps of --cvs (1 is Poisson), or --trace FILE scaled to the load.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Console
from scheduler_report import plot, table
from tritonclient.grpc import service_pb2, service_pb2_grpc

from muplan.deploy.running import RunningTriton, running_triton
from muplan.load.arrivals import gamma_arrivals
from muplan.load.trace import read_trace
from muplan.pipeline import generate
from muplan.predictor.dataset import read_exchanges
from muplan.predictor.rows import TEST, make_rows
from muplan.repository.model_config import config_bytes, parse_config
from muplan.spec import read_spec
from muserve.gpu.opening import open_gpus
from muserve.plan import read_plan
from muserve.queue_order import PARAMETERS_OF, Order, OrderParameters

BASELINE, KNOWS = Order.FCFS, Order.ORACLE
NAME, NODE = "llm", "node0"
SPEC: dict[str, Any] = {
    "cluster": {
        "nodes": [{"name": NODE, "gpus": [{"part": "V100-16GB", "count": len(Order), "virtual": True}]}]
    },
    "models": [
        {
            "name": NAME,
            "source": "catalog:opt-1.3b",
            "kind": "generative",
            "slo_ms": 600_000,
            "engine": {"queue_limit": 4096},
            "load": {"rate_rps": 0.1},
        }
    ],
}
LEAST_GAIN = 0.02  # where the oracle gains less of the mean than this, a share of it says nothing
Floats = npt.NDArray[np.float64]
console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of a run: when, what, and how many tokens its answer will have."""

    at_s: float
    prompt: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One place of the grid; ``rounds``: prompts are from the first so many rounds of conversations."""

    slots: int
    load: float
    arrivals: str
    rounds: int


def main() -> None:
    """Measure the grid; print a table or, with --json, the report."""
    options = _options()
    cells = []
    with tempfile.TemporaryDirectory() as scratch:
        for rounds, slots in itertools.product(options.conversation_rounds, options.slots):
            prompts = _prompts(rounds, options.prompts)
            directory = Path(scratch, f"{rounds}-{slots}")
            with _served(directory, prompts, slots, options) as triton:
                for load, arrivals in itertools.product(options.loads, _arrival_laws(options)):
                    cell = Cell(slots=slots, load=load, arrivals=arrivals, rounds=rounds)
                    cells.append(_measure(triton, cell, prompts, options))
                    if not options.json:
                        print(table(cells[-1]), flush=True)
    report = {"cells": cells, "setup": _setup(options)}
    if options.plot:
        plot(report, options.plot)
    if options.json:
        print(json.dumps(report if len(cells) > 1 else cells[0] | {"setup": _setup(options)}, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default_arms = [Order.FCFS, Order.ORACLE, Order.SSJF, Order.AGING, Order.ADAPTIVE, Order.BOUNDED]
    parser.add_argument("--arms", nargs="+", choices=list(Order), default=default_arms)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.9, 1.2])
    parser.add_argument("--cvs", type=float, nargs="+", default=[2.0], help="burstiness of Gamma arrivals")
    parser.add_argument("--trace", type=Path, help="recorded arrivals instead of --cvs")
    parser.add_argument("--conversation-rounds", type=int, nargs="+", default=[1], help="1 to 5 in the talk")
    parser.add_argument("--requests", type=int, default=400, help="of a run, warm-up included")
    parser.add_argument("--warm-up", type=float, default=0.25, help="share of a run that is not measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="one run of every arm for each")
    parser.add_argument("--step-ms", type=float, default=0.5, help="one token step, for each slot")
    parser.add_argument("--prompts", type=int, default=2000, help="prompts to draw from")
    parser.add_argument(
        "--together", action="store_true", help="all arms at once: a busy machine's noise hits all alike"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (.png or .svg)")
    parser.add_argument("--json", action="store_true", help="print report.json's shape")
    options = parser.parse_args()
    options.arms = list(dict.fromkeys((BASELINE, KNOWS, *map(Order, options.arms))))
    return options


def _arrival_laws(options: argparse.Namespace) -> list[str]:
    return [f"trace {options.trace.name}"] if options.trace else [f"gamma cv {cv:g}" for cv in options.cvs]


def _prompts(rounds: int, most: int) -> dict[str, int]:
    """Prompts from the first ``rounds`` rounds on the test side, and the tokens of their answers."""
    with console.status("reading conversations"):
        rows = make_rows(read_exchanges(None))
    earlier: dict[int, int] = {}
    chosen: dict[str, int] = {}
    for row in np.flatnonzero(rows.part == TEST):
        group = int(rows.group[row])
        earlier[group] = earlier.get(group, 0) + 1
        if earlier[group] <= rounds:
            chosen.setdefault(rows.prompts[row], int(rows.tokens[row]))
    names = sorted(chosen, key=lambda prompt: hashlib.sha256(prompt.encode("utf-8", "replace")).digest())
    return {prompt: chosen[prompt] for prompt in names[:most]}


@contextmanager
def _served(
    directory: Path, prompts: dict[str, int], slots: int, options: argparse.Namespace
) -> Iterator[RunningTriton]:
    """A Triton with one ensemble for each arm, named after it."""
    directory.mkdir(parents=True)
    answers = directory / "answers.jsonl"
    with answers.open("w", encoding="utf-8") as lines:
        for prompt, tokens in prompts.items():
            digest = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()
            lines.write(json.dumps({"prompt_sha256": digest, "answer": " ".join(["a"] * tokens)}) + "\n")
    spec = {**SPEC, "models": [SPEC["models"][0] | {"engine": {
        "slots": slots, "queue_limit": 4096, "answers": str(answers)}}]}  # fmt: skip
    (directory / "spec.yaml").write_text(yaml.safe_dump(spec))
    plan_dir = directory / "plan"
    generate(read_spec(directory / "spec.yaml"), plan_dir)
    repository = plan_dir / NODE / "model_repository"
    models = [model.name for model in sorted(repository.iterdir())]
    for arm, model in itertools.product(options.arms, models):
        _copy_for(arm, repository / model, slots, options.step_ms)
    for model in models:
        shutil.rmtree(repository / model)
    open_gpus(read_plan(plan_dir), plan_dir, NODE)
    with running_triton(repository, plan_dir=plan_dir, log=directory / "triton.log") as triton:
        yield triton


def _copy_for(arm: Order, model: Path, slots: int, step_ms: float) -> None:
    """The model ``llm...`` once more as ``<arm>...``, with the arm's order and the benchmark's times."""
    name = model.name.replace(NAME, arm.value, 1)
    shutil.copytree(model, model.with_name(name))
    times = {
        "decode_ms": str(step_ms * slots),
        "decode_ms_per_running_request": "0.0",
        "prefill_ms": str(step_ms),
        "const_ms": str(step_ms),
        "ms_per_token": str(step_ms * slots),
        "queue_order": arm.value,
        "muserve_model": arm.value,
        "gpu": f"{NODE}/gpu{list(Order).index(arm)}",
        "gpu_uuid": f"VGPU-{NODE}-{list(Order).index(arm)}",
        "predictor_model": f"{arm.value}_length_predictor",
    }
    numbers = {key: str(getattr(OrderParameters(), key)) for key in PARAMETERS_OF[arm]}
    for file in model.with_name(name).rglob("*.pbtxt"):
        config = parse_config(file.read_bytes())
        config.name = name
        for key, value in (times | numbers).items():
            if key in config.parameters or (key in numbers and "queue_order" in config.parameters):
                config.parameters[key].string_value = value
        for step in config.ensemble_scheduling.step:
            step.model_name = step.model_name.replace(NAME, arm.value, 1)
        file.write_bytes(config_bytes(config))


def _measure(
    triton: RunningTriton, cell: Cell, prompts: dict[str, int], options: argparse.Namespace
) -> dict[str, Any]:
    """The report of one cell: every arm on every seed, in turns."""
    runs: dict[Order, list[Floats]] = {arm: [] for arm in options.arms}
    measured_rps: dict[Order, list[float]] = {arm: [] for arm in options.arms}
    paces: dict[Order, list[float]] = {arm: [] for arm in options.arms}
    tokens: dict[int, Floats] = {}
    for turn, seed in enumerate(options.seeds):
        asks = plan(cell, prompts, seed, options)
        first = int(options.warm_up * len(asks))
        tokens[seed] = np.array([ask.tokens for ask in asks[first:]], np.float64)
        turned = options.arms[turn % len(options.arms) :] + options.arms[: turn % len(options.arms)]
        for together in [turned] if options.together else [[arm] for arm in turned]:
            names = ", ".join(arm.value for arm in together)
            with console.status(f"{cell} seed {seed}: {names}, about {asks[-1].at_s:.0f} s"):
                done = asyncio.run(_run_together(triton.grpc_url, together, asks))
            for arm, (jct_s, span_s) in zip(together, done, strict=True):
                runs[arm].append(jct_s[first:])
                measured_rps[arm].append(len(asks) / span_s)
                paces[arm].append(_pace(triton.metrics_url, arm))
    arms: dict[str, Any] = {}
    last = [arm for arm in options.arms if arm not in (BASELINE, Order.BOUNDED)]
    for arm in (BASELINE, *last, *(a for a in options.arms if a is Order.BOUNDED)):
        arms[arm.value] = _figures(runs, arm, list(tokens.values()), cell, options.step_ms)
        arms[arm.value]["makespan_throughput_rps"] = statistics.mean(measured_rps[arm])
        arms[arm.value]["service_pace"] = statistics.mean(paces[arm])
    ours = list(arms)[-1]
    return {
        "cell": {"slots": cell.slots, "load": cell.load, "arrivals": cell.arrivals, "rounds": cell.rounds},
        "arms": arms,
        "ratios": {
            f"mean jct, {ours} / fcfs": arms[ours]["jct_s"]["mean"] / arms["fcfs"]["jct_s"]["mean"],
        }
        | ({f"captured, {ours}": arms[ours]["captured"]["mean"]} if arms[ours]["captured"] else {}),
    }


def plan(cell: Cell, prompts: dict[str, int], seed: int, options: argparse.Namespace) -> list[Ask]:
    """The requests of one run, in order of arrival."""
    rng = np.random.default_rng([seed, cell.slots])
    names = list(prompts)
    drawn = rng.permutation(len(names))[: options.requests] if len(names) >= options.requests else (
        rng.integers(0, len(names), options.requests)
    )  # fmt: skip
    tokens = np.array([prompts[names[place]] for place in drawn], np.float64)
    # Prefill is paid by the whole batch.
    service_s = options.step_ms * (1 + float(tokens.mean())) / 1000
    rate_rps = cell.load / service_s
    if options.trace:
        trace = read_trace(options.trace)
        start = int(rng.integers(0, max(1, len(trace.arrival_s) - len(drawn))))
        times = trace.arrival_s[start : start + len(drawn)]
        at_s = (times - times[0]) / max(float(times[-1] - times[0]), 1e-9) * len(times) / rate_rps
    else:
        cv = float(cell.arrivals.split()[-1])
        at_s = gamma_arrivals(rate_rps, cv, 3 * len(drawn) / rate_rps + 60, rng)[: len(drawn)]
    return [
        Ask(at_s=float(at), prompt=names[place], tokens=int(count))
        for at, place, count in zip(at_s, drawn, tokens, strict=False)
    ]


async def _run_together(url: str, arms: Sequence[Order], asks: Sequence[Ask]) -> list[tuple[Floats, float]]:
    return await asyncio.gather(*(_run(url, arm, asks) for arm in arms))


async def _run(url: str, arm: Order, asks: Sequence[Ask]) -> tuple[Floats, float]:
    """Completion minus planned arrival of each request, and the time to the last completion (s)."""
    async with grpc.aio.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        start_s = time.perf_counter() + 0.5

        async def one(ask: Ask) -> float:
            await asyncio.sleep(max(0.0, start_s + ask.at_s - time.perf_counter()))
            async for response in stub.ModelStreamInfer(iter([_request(arm, ask)])):
                if response.error_message:
                    raise SystemExit(f"{arm.value}: {response.error_message}")
            return time.perf_counter() - start_s

        done_s = np.array(await asyncio.gather(*(one(ask) for ask in asks)))
    return done_s - np.array([ask.at_s for ask in asks]), float(done_s.max())


def _pace(metrics_url: str, arm: Order) -> float:
    """Actual over predicted time in a slot: the same for all arms, unless the machine could not keep up."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    series = (
        line for line in lines if line.startswith("mu_service_pace{") and f'model="{arm.value}"' in line
    )
    return float(next(series).split()[-1])


def _request(arm: Order, ask: Ask) -> Any:
    request = service_pb2.ModelInferRequest(model_name=arm.value)
    sampling = {"oracle_tokens": ask.tokens} if arm is KNOWS else {}
    for name, text in (("text_input", ask.prompt), ("sampling_parameters", json.dumps(sampling))):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text.encode("utf-8", "replace"))
    return request


def _figures(
    runs: dict[Order, list[Floats]], arm: Order, tokens: list[Floats], cell: Cell, step_ms: float
) -> dict[str, Any]:
    def over_runs(values: Sequence[float]) -> dict[str, float]:
        return {"mean": float(np.mean(values)), "spread": float(np.std(values))}

    fcfs, oracle, own = runs[BASELINE], runs[KNOWS], runs[arm]
    rounds = range(len(own))
    gains_s = [float(fcfs[n].mean() - oracle[n].mean()) for n in rounds]
    telling = [n for n in rounds if gains_s[n] > LEAST_GAIN * fcfs[n].mean()]
    alone_s = [step_ms * (1 + cell.slots * counts) / 1000 for counts in tokens]
    waits_s = [np.maximum(own[n] - alone_s[n], 0.0).max() for n in rounds]
    fcfs_waits_s = [np.maximum(fcfs[n] - alone_s[n], 1e-3).max() for n in rounds]
    together = np.concatenate(own)
    percentiles = {f"p{share}": float(np.percentile(together, share)) for share in (50, 95, 99)}
    return {
        "jct_s": {"mean": float(together.mean()), **percentiles},
        "captured": over_runs([float(fcfs[n].mean() - own[n].mean()) / gains_s[n] for n in telling])
        if telling
        else None,
        "p99_ratio": over_runs(
            [float(np.percentile(own[n], 99) / np.percentile(fcfs[n], 99)) for n in rounds]
        ),
        "longest_wait_ratio": over_runs([float(waits_s[n] / fcfs_waits_s[n]) for n in rounds]),
        "slowdown_p99": float(np.percentile(np.concatenate([own[n] / alone_s[n] for n in rounds]), 99)),
        "requests": len(together),
    }


def _setup(options: argparse.Namespace) -> dict[str, Any]:
    values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return values | {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "virtual": True}


if __name__ == "__main__":
    main()
