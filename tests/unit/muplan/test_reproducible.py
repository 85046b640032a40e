"""Plans do not depend on the order of Python's sets and dicts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"
REAL = """
cluster: {nodes: [{name: a, gpus: [{part: V100-16GB, count: 3}, {part: A100-80GB, count: 2}]}]}
serving: {target: ngc}
models:
  - name: resnet
    source: "catalog:resnet-50"
    kind: single-pass
    partitions: 3
    slo_scale: 5
    load: {rate_rps: 50}
  - name: llm
    source: "catalog:llama-2-7b"
    kind: generative
    slo_scale: 5
    attainment: 0.9
    engine: {model: meta-llama/Llama-2-7b-hf}
    load: {rate_rps: 1}
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", ["quickstart", "real GPUs"])
def test_hash_seeds_change_no_byte(case: str, tmp_path: Path) -> None:
    spec = QUICKSTART
    if case != "quickstart":
        spec = tmp_path / "spec.yaml"
        spec.write_text(REAL)
    program = "from muplan.cli import main; main()"
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, "generate", str(spec), "-o", str(tmp_path / seed), "--no-report"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
