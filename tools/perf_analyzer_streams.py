"""The same streams measured by NVIDIA's perf_analyzer, where it can be had."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from endpoint_streams import Endpoint

_SCRIPT = Path(__file__).with_name("perf_analyzer.sh")
_PROGRAM = _SCRIPT.parent.parent / "build" / "perf_analyzer" / "perf_analyzer"


def is_here() -> bool:
    """Whether ``tools/perf_analyzer.sh`` has fetched it before."""
    return _PROGRAM.is_file()


def analyze(endpoint: Endpoint, streams: int, tokens: int) -> dict[str, float]:
    """Tokens per second, time to first token and gaps (ms, p50 and p99) as perf_analyzer sees them.

    SystemExit with the end of its output when it fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        inputs, export = Path(directory, "inputs.json"), Path(directory, "profile.json")
        inputs.write_text(json.dumps({"data": [_inputs(endpoint, tokens)]}))
        command = [
            str(_SCRIPT),
            "-m",
            endpoint.model,
            "-u",
            endpoint.url,
            "-i",
            "grpc",
            "--streaming",
            "--async",
        ]
        command += ["--concurrency-range", str(streams), "--input-data", str(inputs), "--max-trials", "3"]
        command += ["--measurement-interval", "4000", "--stability-percentage", "999"]
        command += ["--profile-export-file", str(export)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not export.is_file():
            raise SystemExit(f"perf_analyzer failed: {(done.stderr or done.stdout)[-400:]}")
        return _figures(json.loads(export.read_text())["experiments"][0]["requests"])


def _inputs(endpoint: Endpoint, tokens: int) -> dict[str, Any]:
    sampling = json.dumps({"max_tokens": tokens, "ignore_eos": True})
    values: dict[str, Any] = {"text_input": "benchmark", "stream": True, "sampling_parameters": sampling}
    if endpoint.advised:
        values |= {"predicted_tokens": float(tokens), "priority": 1, "arrival_ms": 1}
    return {name: {"content": [value], "shape": [1]} for name, value in values.items()}


def _figures(requests: list[dict[str, Any]]) -> dict[str, float]:
    # An answer whose final flag comes alone has one response more than tokens, at the end.
    first_ms = [(r["response_timestamps"][0] - r["timestamp"]) / 1e6 for r in requests]
    gaps_ms = np.concatenate([np.diff(r["response_timestamps"]) for r in requests]) / 1e6
    began, ended = requests[0]["timestamp"], max(r["response_timestamps"][-1] for r in requests)
    responses = sum(len(r["response_timestamps"]) for r in requests)
    figures = {"tokens_per_s": responses / ((ended - began) / 1e9)}
    for name, values in (("ttft_ms", first_ms), ("gap_ms", gaps_ms)):
        figures |= {f"{name}_p{q}": float(np.percentile(values, q)) for q in (50, 99)}
    return figures
