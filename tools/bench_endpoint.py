"""How fast a generative model's endpoint is: ensemble, native queue, and the engine called directly.

Serves the generative model of a spec on real Tritons, once with the engine's own queue (ensemble, and its
engine called directly) and once with ``serving.queue: native`` (front, slots, engine), and measures all in
turns:

* tokens per second with an engine whose tokens take no time: the cost of the software alone;
* time to first token and gap between tokens with an engine that takes --pace-ms for each token; what an arm
  adds to their p99 is the median over the rounds;
* what the predictor adds to a request that finds the engine idle.

Client, servers and models share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import perf_analyzer_streams
from endpoint_streams import Endpoint, Timing, one_token_s, run_streams

from muplan.deploy.running import running_triton
from muplan.load.conversations import held_out_conversations
from muplan.pipeline import generate
from muplan.repository.model_config import config_bytes, parse_config
from muplan.spec import SpecFile, read_spec
from muserve.gpu.opening import open_gpus
from muserve.plan import ModelKind, read_plan

ENGINE, ENSEMBLE, NATIVE = "engine called directly", "through the ensemble", "native queue"
ARMS = (ENGINE, ENSEMBLE, NATIVE)
PREFILL_FREE = {"decode_ms_per_running_request": "0.0", "prefill_ms": "0.0"}


def main() -> None:
    """Measure, and print a table or, with --json, the report."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    spec = read_spec(options.spec)
    most = max(4, *options.streams)
    with _served(spec, options.arms, most, decode_ms=0.0) as endpoints:
        rates = _in_turns(endpoints, options, tokens=options.tokens)
        waits = _idle_waits(endpoints)
        analyzed = _analyzed(endpoints, options) if perf_analyzer_streams.is_here() else {}
    with _served(spec, options.arms, most, decode_ms=options.pace_ms) as endpoints:
        tokens = max(2, round(1000 / options.pace_ms))
        paced = _in_turns(endpoints, options, tokens=tokens, requests=4, apart_s=0.013)
    report = _report(options, rates, paced, waits) | ({"perf_analyzer": analyzed} if analyzed else {})
    print(json.dumps(report, indent=2) if options.json else table(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--spec", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=500, help="tokens of each answer at full speed")
    parser.add_argument(
        "--pace-ms", type=float, default=20.0, help="a token's time where latency is measured"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", action="store_true", help="print report.json's shape")
    return parser.parse_args()


@contextmanager
def _served(
    spec: SpecFile, arms: list[str], slots: int, *, decode_ms: float
) -> Iterator[dict[str, Endpoint]]:
    """The endpoint of each arm, with an engine of ``slots`` slots and ``decode_ms`` for a token."""
    with ExitStack() as stack:
        own = stack.enter_context(_triton(spec, slots, decode_ms, queue="engine"))
        endpoints = {ENGINE: replace(own, model=f"{own.model}_engine", advised=True), ENSEMBLE: own}
        if NATIVE in arms:
            endpoints[NATIVE] = stack.enter_context(_triton(spec, slots, decode_ms, queue="native"))
        yield {arm: endpoints[arm] for arm in arms}


@contextmanager
def _triton(spec: SpecFile, slots: int, decode_ms: float, *, queue: str) -> Iterator[Endpoint]:
    serving = spec.spec.serving.model_copy(update={"queue": queue})
    with tempfile.TemporaryDirectory() as directory:
        plan_dir = Path(directory, "plan")
        generate(replace(spec, spec=spec.spec.model_copy(update={"serving": serving})), plan_dir)
        plan = read_plan(plan_dir)
        model = next(model for model in plan.models if model.kind is ModelKind.GENERATIVE)
        node = plan.gpu(model.partitions[0].replicas[0].gpu).node
        repository = plan_dir / node / "model_repository"
        for entry in repository.iterdir():
            if entry.name != model.name and not entry.name.startswith(f"{model.name}_"):
                shutil.rmtree(entry)
        changes = PREFILL_FREE | {"decode_ms": repr(decode_ms), "slots": str(slots)}
        for file in repository.rglob("*.pbtxt"):
            _rewrite(file, changes)
        open_gpus(plan, plan_dir, node)
        with running_triton(repository, plan_dir=plan_dir) as triton:
            yield Endpoint(url=triton.grpc_url, model=model.name)


def _rewrite(file: Path, changes: dict[str, str]) -> None:
    """Other values for the parameters that a model has, and as many slots' processes."""
    config = parse_config(file.read_bytes())
    for key, value in changes.items():
        if key in config.parameters:
            config.parameters[key].string_value = value
    if config.HasField("dynamic_batching"):
        config.instance_group[0].count = int(changes["slots"])
    file.write_bytes(config_bytes(config))


Timings = dict[str, dict[int, list[Timing]]]


def _in_turns(endpoints: dict[str, Endpoint], options: argparse.Namespace, **work: Any) -> Timings:
    """Every arm in every round, so that what else the machine does hits all alike."""
    timings: Timings = {arm: {n: [] for n in options.streams} for arm in options.arms}
    for _ in range(options.rounds):
        for count in options.streams:
            for arm in options.arms:
                timings[arm][count].append(run_streams(endpoints[arm], count, **work))
    return timings


def _idle_waits(endpoints: dict[str, Endpoint]) -> dict[str, list[float]]:
    prompts = [conversation.prompt for conversation in held_out_conversations()[:300]]
    waits: dict[str, list[float]] = {arm: [] for arm in endpoints}
    for at in range(0, len(prompts), 10):
        for arm, endpoint in endpoints.items():
            waits[arm] += one_token_s(endpoint, prompts[at : at + 10])
    return waits


def _analyzed(endpoints: dict[str, Endpoint], options: argparse.Namespace) -> dict[str, Any]:
    streams = sorted(options.streams)[len(options.streams) // 2]
    return {"streams": streams} | {
        arm: perf_analyzer_streams.analyze(endpoints[arm], streams, options.tokens) for arm in options.arms
    }


def _report(
    options: argparse.Namespace, rates: Timings, paced: Timings, waits: dict[str, list[float]]
) -> dict[str, Any]:
    arms = {
        arm: {
            "tokens_per_s": {str(n): _rates(rates[arm][n]) for n in options.streams},
            "ttft_ms": {str(n): _spread_ms(paced[arm][n], "first_s") for n in options.streams},
            "gap_ms": {str(n): _spread_ms(paced[arm][n], "gaps_s") for n in options.streams},
            "one_token_request_ms": _percentiles_ms(waits[arm]),
        }
        for arm in options.arms
    }
    ratios, added = {}, {}
    for arm in options.arms[1:]:
        for n in map(str, options.streams):
            base, here = arms[options.arms[0]], arms[arm]
            ratios[f"tokens_per_s, {arm}, {n} streams"] = (
                here["tokens_per_s"][n]["median"] / base["tokens_per_s"][n]["median"]
            )
            for figure, name in (("ttft_ms", "first_s"), ("gap_ms", "gaps_s")):
                pairs = zip(paced[arm][int(n)], paced[options.arms[0]][int(n)], strict=True)
                gains = [_percentiles_ms(getattr(a, name))["p99"] - _percentiles_ms(getattr(b, name))["p99"]
                         for a, b in pairs]  # fmt: skip
                added[f"{figure} p99, {arm}, {n} streams"] = _median(gains)
    setup = {
        "spec": str(options.spec), "cores": os.cpu_count(), "virtual": True, "rounds": options.rounds,
        "tokens": options.tokens, "pace_ms": options.pace_ms, "baseline": options.arms[0],
        "load_average": os.getloadavg()[0],
    }  # fmt: skip
    return {"arms": arms, "ratios": ratios, "added_ms": added, "setup": setup}


def _rates(timings: list[Timing]) -> dict[str, float]:
    return _median([timing.tokens / timing.seconds for timing in timings])


def _median(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def _spread_ms(timings: list[Timing], name: str) -> dict[str, float]:
    return _percentiles_ms([second for timing in timings for second in getattr(timing, name)])


def _percentiles_ms(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(seconds, q)) * 1000 for q in (50, 99)}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    setup = report["setup"]
    for title, row in (
        ("tokens/s at full speed, median (least to most)", _rate_cell),
        (f"time to first token, {setup['pace_ms']:g} ms a token, p50 / p99 ms", _latency_cell("ttft_ms")),
        ("gap between tokens, p50 / p99 ms", _latency_cell("gap_ms")),
    ):
        streams = list(next(iter(report["arms"].values()))["tokens_per_s"])
        lines += ["", f"{title:50}" + "".join(f"{f'{n} streams':>28}" for n in streams)]
        for arm, figures in report["arms"].items():
            lines.append(f"  {arm:48}" + "".join(f"{row(figures, n):>28}" for n in streams))
    lines += ["", f"against {setup['baseline']}"]
    lines += [f"  {name:60} x{ratio:.2f}" for name, ratio in report["ratios"].items()]
    lines += [
        f"  {name:60} {added['median']:+.2f} ms ({added['least']:+.2f} to {added['most']:+.2f} in the rounds)"
        for name, added in report["added_ms"].items()
    ]
    lines.append("one token, engine idle, p50 / p99 ms")
    for arm, figures in report["arms"].items():
        wait = figures["one_token_request_ms"]
        lines.append(f"  {arm:60} {wait['p50']:.2f} / {wait['p99']:.2f}")
    for arm, figures in report.get("perf_analyzer", {}).items():
        if arm == "streams":
            lines.append(
                f"perf_analyzer, {figures} streams: tokens/s, first token p50 / p99, gap p50 / p99 ms"
            )
        else:
            lines.append(
                "  {:48} {:>10,.0f} {:>8.2f} / {:.2f} {:>8.2f} / {:.2f}".format(arm, *figures.values())
            )
    return "\n".join(lines[1:])


def _rate_cell(figures: dict[str, Any], streams: str) -> str:
    rate = figures["tokens_per_s"][streams]
    return f"{rate['median']:,.0f} ({rate['least']:,.0f} to {rate['most']:,.0f})"


def _latency_cell(name: str) -> Any:
    return lambda figures, streams: (
        f"{figures[name][streams]['p50']:.2f} / {figures[name][streams]['p99']:.2f}"
    )


if __name__ == "__main__":
    main()
