"""``muplan serve`` against the real server of the nvidia-pytriton wheel, with a toy repository."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from muplan.deploy.ports import Ports, free_ports
from muplan.deploy.running import running_triton
from muplan.deploy.stubs import living_stubs
from muserve.cli import INTERRUPTED
from muserve.plan import plan_bytes
from sample_plans import sample_gpu, sample_model, sample_plan

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]

READY_S = 60.0
GONE_S = 30.0
DRAIN_S = 10  # what `muplan serve` gives requests in flight


@pytest.fixture
def plan_dir(tmp_path: Path, toy_model: Callable[..., Path]) -> Path:
    toy_model(tmp_path / "plan" / "node0" / "model_repository", "toy")
    plan = sample_plan([sample_gpu(0)], [sample_model("toy", partitions=())])
    (tmp_path / "plan" / "plan.json").write_bytes(plan_bytes(plan))
    return tmp_path / "plan"


class Serve:
    """One ``muplan serve`` process with its output in files."""

    def __init__(self, plan_dir: Path, temporary: Path, ports: Ports | None = None) -> None:
        self.ports = ports or free_ports()
        self.url = f"http://127.0.0.1:{self.ports.http}"
        self._out, self._log = temporary / "stdout", temporary / "stderr"
        command = [sys.executable, "-c", "from muplan.cli import main; main()", "serve", str(plan_dir)]
        for name in ("http", "grpc", "metrics"):
            command += [f"--{name}-port", str(getattr(self.ports, name))]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        environment.pop("MUSERVE_VGPU_DIR", None)
        with self._out.open("w") as out, self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, env=environment)
        self._temporary = temporary
        self.triton: psutil.Process | None = None
        self._processes: list[psutil.Process] = []
        self._names: list[str] = []

    def wait_until_ready(self) -> None:
        wait_for(lambda: "HTTP " in self.out() or self.process.poll() is not None, READY_S)
        assert self.process.poll() is None, self.log()
        self.triton = next(
            child for child in psutil.Process(self.process.pid).children() if "tritonserver" in child.name()
        )
        self._processes = [self.triton, *self.triton.children(recursive=True)]
        self._names = [directory.name for directory in self._temporary.glob("muserve-triton-*")]
        assert len(self._processes) >= 2, "tritonserver and at least one stub"
        assert self.shared_memory()

    def out(self) -> str:
        return self._out.read_text()

    def log(self) -> str:
        return self._log.read_text()

    def infer(self, text: str = "hello") -> dict[str, str]:
        """The toy model's answer by output name; urllib.error.HTTPError when Triton refuses."""
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
        request = urllib.request.Request(
            f"{self.url}/v2/models/toy/infer",
            data=json.dumps({"inputs": [tensor]}).encode(),
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            outputs = json.load(response)["outputs"]
        return {output["name"]: output["data"][0] for output in outputs}

    def shared_memory(self) -> list[Path]:
        """Files of this server in /dev/shm."""
        return [file for name in self._names for file in Path("/dev/shm").glob(f"{name}*")]

    def processes_left(self) -> list[psutil.Process]:
        """Of the server and its first stubs, those that still run (not those init has yet to reap)."""
        alive = psutil.wait_procs(self._processes, timeout=0)[1]
        return [process for process in alive if not is_zombie(process)]

    def left(self) -> list[object]:
        """Processes, shared memory and temporary files that are left."""
        files = [self._temporary / name for name in self._names if (self._temporary / name).exists()]
        return [*self.processes_left(), *self.shared_memory(), *files]

    def stub_pid(self) -> int:
        assert self.triton is not None
        (pid,) = living_stubs(self.triton.pid)
        return pid


@pytest.fixture
def start(plan_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    """Start ``muplan serve``; it is stopped at the end of the test."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    started: list[Serve] = []

    def start_one(ports: Ports | None = None) -> Serve:
        started.append(Serve(plan_dir, temporary, ports))
        return started[-1]

    yield start_one
    for serve in started:
        if serve.process.poll() is None:
            serve.process.terminate()
            serve.process.wait(timeout=GONE_S)


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


@pytest.fixture
def ready(start: Callable[..., Serve]) -> Serve:
    serve = start()
    serve.wait_until_ready()
    return serve


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_stops_on_a_signal_and_leaves_nothing(ready: Serve, number: signal.Signals) -> None:
    assert ready.infer()["text"] == "hello"
    ready.process.send_signal(number)
    assert ready.process.wait(GONE_S) == 0
    assert ready.left() == []


def test_it_says_where_it_listens_and_what_to_call(ready: Serve, plan_dir: Path) -> None:
    lines = ready.out().splitlines()
    assert lines[:3] == [
        f"HTTP     {ready.url}",
        f"gRPC     127.0.0.1:{ready.ports.grpc}",
        f"metrics  http://127.0.0.1:{ready.ports.metrics}/metrics",
    ]
    example = next(line for line in lines if "curl" in line)
    answer = subprocess.run(example, shell=True, capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["outputs"][0]["data"] == ["text"]
    with urllib.request.urlopen(f"http://127.0.0.1:{ready.ports.metrics}/metrics", timeout=10) as metrics:
        assert b"nv_inference_request_success" in metrics.read()
    assert "Triton from the nvidia-pytriton wheel: " in ready.log()
    assert "triton | " in ready.log()
    assert (plan_dir / "vgpu" / "VGPU-node0-0.vgpu").is_file()


def test_models_run_in_this_interpreter_beside_the_virtual_gpus(ready: Serve, plan_dir: Path) -> None:
    prefix, vgpu_dir, openssl, umlaut = ready.infer()["where"].split("|")
    assert prefix == sys.prefix
    assert vgpu_dir == str(plan_dir / "vgpu")
    assert openssl.startswith("OpenSSL")
    assert umlaut == "ä"


def test_a_taken_port_names_the_process(start: Callable[..., Serve]) -> None:
    free = free_ports()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = start(Ports(http=free.http, grpc=free.grpc, metrics=port))
        assert serve.process.wait(READY_S) == 2
    assert f"Error: --metrics-port: port {port} is taken by" in serve.log()
    assert f"(pid {os.getpid()})" in serve.log()


def test_a_model_that_fails_to_load_ends_it_with_tritons_reason(
    start: Callable[..., Serve], plan_dir: Path, toy_model: Callable[..., Path], tmp_path: Path
) -> None:
    repository = plan_dir / "node0" / "model_repository"
    toy_model(repository, "broken", source='raise ValueError("no weights here")\n')
    (toy_model(repository, "unreadable") / "config.pbtxt").write_text("name: 3 nonsense")
    (repository / "unreadable" / "configs" / "cpu.pbtxt").unlink()
    serve = start()
    assert serve.process.wait(READY_S) == 1
    sentence = serve.log().splitlines()[-1]
    assert sentence.startswith("Error: 2 of 3 models failed to load: ")
    assert "broken: Internal: ValueError: no weights here" in sentence
    assert "unreadable: Poll failed for model directory 'unreadable': failed to read text proto" in sentence
    assert serve.out() == ""
    assert not list((tmp_path / "tmp").glob("muserve-triton-*"))


def test_a_killed_model_process_is_replaced_and_no_client_gets_a_wrong_answer(ready: Serve) -> None:
    ready.infer()
    stop = threading.Event()
    answers: list[tuple[str, str]] = []
    refusals: list[tuple[int, str]] = []

    def ask(client: int) -> None:
        for number in range(1_000_000):
            if stop.is_set():
                return
            text = f"{client}-{number}"
            try:
                answers.append((text, ready.infer(text)["text"]))
            except urllib.error.HTTPError as error:
                refusals.append((error.code, error.read().decode()))
            time.sleep(0.01)

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(3)]
    for client in clients:
        client.start()
    try:
        time.sleep(0.5)
        os.kill(ready.stub_pid(), signal.SIGKILL)
        wait_for(lambda: "model toy answers again" in ready.log(), 15)
        already = len(answers)
        wait_for(lambda: len(answers) > already + 20, 15)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert all(asked == answered for asked, answered in answers)
    assert refusals
    assert all(code == 500 and "is not healthy" in reason for code, reason in refusals)
    assert "1 of 1 processes of model toy died; loading it again" in ready.log()


def test_a_model_that_ends_its_own_process_comes_back_every_time(ready: Serve) -> None:
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="500"):
            ready.infer("die")
        wait_for(lambda: answers(ready), 20)
    assert "because it keeps dying" in ready.log()
    ready.process.terminate()
    assert ready.process.wait(GONE_S) == 0
    assert ready.left() == []


def answers(serve: Serve) -> bool:
    try:
        return serve.infer()["text"] == "hello"
    except urllib.error.HTTPError:
        return False


def test_when_it_is_killed_triton_ends_and_the_next_start_cleans_up(
    ready: Serve, start: Callable[..., Serve]
) -> None:
    ready.process.kill()
    ready.process.wait()
    wait_for(lambda: not ready.processes_left(), GONE_S)
    again = start(ready.ports)
    again.wait_until_ready()
    assert ready.left() == []
    assert "removing what a server left behind whose owner died" in again.log()


def test_a_frozen_triton_of_a_killed_owner_is_removed_by_the_next_start(
    ready: Serve, start: Callable[..., Serve]
) -> None:
    assert ready.triton is not None
    ready.triton.suspend()
    ready.process.kill()
    ready.process.wait()
    again = start(ready.ports)
    again.wait_until_ready()
    assert ready.left() == []
    assert again.infer()["text"] == "hello"


def test_when_triton_dies_it_says_so_and_fails(ready: Serve) -> None:
    assert ready.triton is not None
    ready.triton.kill()
    assert ready.process.wait(GONE_S) == 1
    assert "Error: Triton was ended by signal 9" in ready.log()
    assert ready.left() == []


def test_a_second_signal_does_not_wait_for_clients(ready: Serve) -> None:
    with idle_client(ready.ports):
        ready.process.terminate()
        wait_for(lambda: "stopping Triton" in ready.log(), 5)
        ready.process.terminate()
        assert ready.process.wait(DRAIN_S - 1) == INTERRUPTED
    assert ready.left() == []


def test_an_interruption_before_the_stop_begins_does_not_wait_for_clients(plan_dir: Path) -> None:
    ports = free_ports()
    interrupted_s: list[float] = []

    def interrupted() -> None:
        with running_triton(plan_dir / "node0" / "model_repository", ports=ports, drain_s=6 * DRAIN_S):
            clients.enter_context(idle_client(ports))
            interrupted_s.append(time.monotonic())
            raise KeyboardInterrupt

    with ExitStack() as clients:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert time.monotonic() - interrupted_s[0] < DRAIN_S


@contextmanager
def idle_client(ports: Ports) -> Iterator[None]:
    """A keep-alive connection without a request, for which Triton waits when it drains."""
    with socket.create_connection(("127.0.0.1", ports.http)) as idle:
        idle.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        yield


def test_an_unknown_node_and_a_missing_repository_are_one_sentence(plan_dir: Path) -> None:
    serve = [sys.executable, "-c", "from muplan.cli import main; main()", "serve"]
    ended = subprocess.run(
        [*serve, str(plan_dir), "--node", "node7"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "Error: --node: expected one of node0, got node7\n"
    (plan_dir / "node0").rename(plan_dir / "elsewhere")
    ended = subprocess.run([*serve, str(plan_dir)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "which `muplan generate` writes" in ended.stderr
