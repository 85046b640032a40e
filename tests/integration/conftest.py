"""Real servers for the tests of this directory."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from muplan.deploy.running import RunningTriton
from muplan.deploy.serve import ServeOptions, serving
from small_llm import running_small_llms

ROOT = Path(__file__).parents[2]
HAVE_TRITON = importlib.util.find_spec("pytriton") is not None

# Answers with its input and where it runs; dies or fails on command.
TOY_MODEL = """
import os, ssl, sys
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0].decode()
        if text == "die":
            os._exit(1)
        where = f"{sys.prefix}|{os.environ.get('MUSERVE_VGPU_DIR')}|{ssl.OPENSSL_VERSION}|ä".encode()
        tensors = [pb_utils.Tensor("text", np.array([text.encode()], dtype=np.object_)),
                   pb_utils.Tensor("where", np.array([where], dtype=np.object_))]
        return pb_utils.InferenceResponse(tensors)
"""
TOY_CONFIG = """
name: "%s"
backend: "python"
max_batch_size: 0
input [{ name: "text" data_type: TYPE_STRING dims: [1] }]
output [{ name: "text" data_type: TYPE_STRING dims: [1] }, { name: "where" data_type: TYPE_STRING dims: [1] }]
instance_group [{ count: 1 kind: KIND_%s }]
"""


def write_toy_model(repository: Path, name: str, source: str = TOY_MODEL) -> Path:
    """A model that needs a GPU by ``config.pbtxt`` and none by ``configs/cpu.pbtxt``."""
    model = repository / name
    (model / "configs").mkdir(parents=True)
    (model / "1").mkdir()
    (model / "config.pbtxt").write_text(TOY_CONFIG % (name, "GPU"))
    (model / "configs" / "cpu.pbtxt").write_text(TOY_CONFIG % (name, "CPU"))
    (model / "1" / "model.py").write_text(source)
    return model


@pytest.fixture
def toy_model() -> Callable[..., Path]:
    """``toy_model(repository, name, source=...)`` writes a small Python-backend model."""
    return write_toy_model


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartServer:
    """The generated quickstart on a real Triton: ``grpc_url`` is host:port, the others are URLs."""

    http_url: str
    grpc_url: str
    metrics_url: str
    plan_dir: Path
    pid: int
    log: Path


@pytest.fixture(scope="session")
def quickstart_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickstartServer]:
    """examples/quickstart.yaml, generated and served once for all tests that ask for it."""
    if not HAVE_TRITON:
        pytest.skip("needs a real Triton: pip install 'muserve[triton]'")
    directory = tmp_path_factory.mktemp("quickstart")
    plan_dir, log = directory / "plan", directory / "triton.log"
    spec = ROOT / "examples" / "quickstart.yaml"
    program = [sys.executable, "-c", "from muplan.cli import main; main()"]
    made = subprocess.run(
        [*program, "generate", str(spec), "-o", str(plan_dir)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    with serving(plan_dir, ServeOptions(drain_s=2), log=log) as triton:
        yield QuickstartServer(
            http_url=triton.http_url,
            grpc_url=triton.grpc_url,
            metrics_url=triton.metrics_url,
            plan_dir=plan_dir,
            pid=triton.pid,
            log=log,
        )


@pytest.fixture(scope="module")
def llm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """The models of ``small_llm``, fresh for every file: tests count what its metrics say."""
    with running_small_llms(tmp_path_factory.mktemp("plan")) as running:
        yield running
