"""How fast a generative model's endpoint is: through its ensemble, and its engine called directly.

Serves the generative model of a spec on a real Triton with an engine whose tokens take no GPU time (the
virtual GPU is left out), so that what is left is the cost of the software: tokens per second at several
numbers of parallel streams, and what the predictor adds to a request that finds the engine idle. Client,
server and models share this machine's cores. Both arms are measured in turns; figures are medians over
the rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from muplan.deploy.running import running_triton
from muplan.load.conversations import held_out_conversations
from muplan.pipeline import generate
from muplan.repository.model_config import config_bytes, parse_config
from muplan.spec import read_spec
from muserve.gpu.opening import open_gpus
from muserve.plan import ModelKind, read_plan

ENGINE, ENSEMBLE = "engine called directly", "through the ensemble"
IDEAL = {"decode_ms": "0.0", "decode_ms_per_running_request": "0.0", "prefill_ms": "0.0", "slots": "32"}


def main() -> None:
    """Measure, and print a table or, with --json, the report."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as directory, _served(options.spec, Path(directory)) as (url, model):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(url))
        report = measure(stub, model, options.streams, options.rounds, options.tokens)
    report["setup"] |= {"spec": str(options.spec), "cores": os.cpu_count(), "virtual": True}
    print(json.dumps(report, indent=2) if options.json else table(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--spec", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=500, help="tokens of each answer")
    parser.add_argument("--json", action="store_true", help="print report.json's shape")
    return parser.parse_args()


@contextmanager
def _served(spec: Path, directory: Path) -> Iterator[tuple[str, str]]:
    """(gRPC address, model name) of the spec's generative model with an engine that takes no time."""
    plan_dir = directory / "plan"
    generate(read_spec(spec), plan_dir)
    plan = read_plan(plan_dir)
    model = next(model for model in plan.models if model.kind is ModelKind.GENERATIVE)
    engine = model.partitions[0]
    node = plan.gpu(engine.replicas[0].gpu).node
    repository = plan_dir / node / "model_repository"
    for other in repository.iterdir():
        if other.name not in (model.name, f"{model.name}_length_predictor", engine.name):
            shutil.rmtree(other)
    for file in (repository / engine.name).rglob("*.pbtxt"):
        config = parse_config(file.read_bytes())
        for key, value in IDEAL.items():
            config.parameters[key].string_value = value
        file.write_bytes(config_bytes(config))
    open_gpus(plan, plan_dir, node)
    with running_triton(repository, plan_dir=plan_dir) as triton:
        yield triton.grpc_url, model.name


def measure(stub: Any, model: str, streams: list[int], rounds: int, tokens: int) -> dict[str, Any]:
    """The report of both arms."""
    rates: dict[str, dict[int, list[float]]] = {arm: {n: [] for n in streams} for arm in (ENGINE, ENSEMBLE)}
    for _ in range(rounds):
        for count in streams:
            for arm in (ENGINE, ENSEMBLE):
                rates[arm][count].append(tokens_per_s(stub, model, arm, count, tokens))
    waits_ms = idle_waits_ms(stub, model, [c.prompt for c in held_out_conversations()[:300]])
    arms = {
        arm: {
            "tokens_per_s": {str(count): statistics.median(rates[arm][count]) for count in streams},
            "tokens_per_s_spread": {str(n): [min(rates[arm][n]), max(rates[arm][n])] for n in streams},
            "one_token_request_ms": {
                "p50": float(np.percentile(waits_ms[arm], 50)),
                "p95": float(np.percentile(waits_ms[arm], 95)),
            },
        }
        for arm in (ENGINE, ENSEMBLE)
    }
    direct, whole = arms[ENGINE], arms[ENSEMBLE]
    ratios = {
        f"tokens_per_s at {n} streams": whole["tokens_per_s"][n] / direct["tokens_per_s"][n]
        for n in direct["tokens_per_s"]
    }
    added_ms = whole["one_token_request_ms"]["p50"] - direct["one_token_request_ms"]["p50"]
    setup = {"rounds": rounds, "tokens": tokens, "requests_per_arm": len(waits_ms[ENGINE])}
    return {"arms": arms, "ratios": ratios, "predictor_adds_ms_p50": added_ms, "setup": setup}


def tokens_per_s(stub: Any, model: str, arm: str, streams: int, tokens: int) -> float:
    """Tokens per second of ``streams`` parallel streams of ``tokens`` tokens each."""
    counted: list[int] = []

    def read(number: int) -> None:
        call = stub.ModelStreamInfer(iter([_request(model, arm, f"benchmark {number}", tokens)]))
        counted.append(sum(_checked(response) for response in call))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sum(counted) != streams * tokens:
        raise SystemExit(f"expected {streams * tokens} tokens, got {sum(counted)}")
    return sum(counted) / (time.perf_counter() - started_s)


def idle_waits_ms(stub: Any, model: str, prompts: list[str]) -> dict[str, list[float]]:
    """Milliseconds that requests of one token take, one at a time, real prompts, both arms in turns."""
    waits: dict[str, list[float]] = {ENGINE: [], ENSEMBLE: []}
    for prompt in prompts:
        for arm, measured in waits.items():
            started_s = time.perf_counter()
            for response in stub.ModelStreamInfer(iter([_request(model, arm, prompt, 1)])):
                _checked(response)
            measured.append((time.perf_counter() - started_s) * 1000)
    return waits


def _checked(response: Any) -> int:
    if response.error_message:
        raise SystemExit(response.error_message)
    return len(response.infer_response.outputs)


def _request(model: str, arm: str, prompt: str, tokens: int) -> Any:
    sampling = json.dumps({"max_tokens": tokens, "ignore_eos": True})
    request = service_pb2.ModelInferRequest(model_name=f"{model}_engine" if arm == ENGINE else model)
    _add(request, "text_input", "BYTES", bytes_contents=[prompt.encode("utf-8", "replace")])
    _add(request, "stream", "BOOL", bool_contents=[True])
    _add(request, "sampling_parameters", "BYTES", bytes_contents=[sampling.encode()])
    if arm == ENGINE:  # what the predictor would have said, so that the engine does not ask
        _add(request, "predicted_tokens", "FP32", fp32_contents=[float(tokens)])
        _add(request, "priority", "UINT64", uint64_contents=[1])
        _add(request, "arrival_ms", "UINT64", uint64_contents=[time.time_ns() // 1_000_000])
    return request


def _add(request: Any, name: str, datatype: str, **contents: list[Any]) -> None:
    tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
    tensor.contents.MergeFrom(service_pb2.InferTensorContents(**contents))


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'':26}" + "".join(f"{count:>8} streams" for count in report["arms"][ENGINE]["tokens_per_s"])]
    for arm, figures in report["arms"].items():
        rates = "".join(f"{rate:>10,.0f} tok/s" for rate in figures["tokens_per_s"].values())
        lines.append(
            f"{arm:26}{rates}   one token, idle: p50 {figures['one_token_request_ms']['p50']:.2f} ms"
        )
    ratios = "".join(f"{ratio:>16.2f}" for ratio in report["ratios"].values())
    lines.append(f"{'ratio':26}{ratios}   the predictor adds {report['predictor_adds_ms_p50']:.2f} ms")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
