from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from muplan.cli import main
from muplan.commands.demo import ConsoleWatcher
from muplan.load.replay import LoadProgress
from muplan.spec import SpecFile, read_spec
from muserve.errors import ServingError

SPEC = """
cluster:
  nodes:
    - name: node0
      gpus: [{part: V100-16GB, count: 1, virtual: true}]
models:
  - name: llm
    source: catalog:opt-1.3b
    kind: generative
    slo_ms: 20000
    load: {rate_rps: 1}
  - name: cnn
    source: catalog:resnet-50
    kind: single-pass
    slo_ms: 200
    load: {rate_rps: 1}
predictor: {alpha: 12}
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> SpecFile:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return read_spec(path)


def test_the_arms_differ_in_queue_order_and_control_law_only(spec_file: SpecFile) -> None:
    from muplan.demo import ARMS, arm_spec

    baseline, ours = ARMS
    answers = Path("/somewhere/answers.jsonl")
    first, second = (arm_spec(spec_file, arm, answers) for arm in ARMS)
    assert (baseline.law, ours.law) == ("default", "miad")
    assert (first.spec.predictor.alpha, second.spec.predictor.alpha) == (0.0, 12.0)
    assert first.spec.models == second.spec.models
    assert first.spec.model_copy(update={"predictor": second.spec.predictor}) == second.spec
    assert first.sha256 != second.sha256


def test_recorded_answers_go_to_the_generative_models(spec_file: SpecFile) -> None:
    from muplan.demo import ARMS, arm_spec

    llm, cnn = arm_spec(spec_file, ARMS[0], Path("/somewhere/answers.jsonl")).spec.models
    assert llm.token_engine.answers == "/somewhere/answers.jsonl"
    assert cnn.engine is None
    assert spec_file.spec.models[0].token_engine.answers is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seconds", "1"], "--seconds"),
        (["--spec", "no-such.yaml"], "no-such.yaml"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_wrong_options_exit_with_2(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["demo", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_demo_without_triton_says_so_before_it_writes(tmp_path: Path, spec_file: SpecFile) -> None:
    missing = tmp_path / "no-triton"
    output = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["demo", "--spec", str(spec_file.path), "-o", str(output), "--tritonserver", str(missing)]
    )
    assert result.exit_code == 2
    assert str(missing) in result.output
    assert not output.exists()


def test_a_demo_without_its_packages_names_what_to_install(tmp_path: Path, spec_file: SpecFile) -> None:
    # A real interpreter whose import system cannot find matplotlib.
    program = (
        "import sys, importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "hide = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)\n"
        "m.PathFinder.find_spec = hide\n"
        "from muplan.cli import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "demo", "--spec", str(spec_file.path), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert "the demo needs matplotlib: pip install 'muserve[demo]'" in run.stderr


def test_help_loads_no_heavy_package() -> None:
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from muplan.cli import main\n"
        "assert CliRunner().invoke(main, ['demo', '--help']).exit_code == 0\n"
        "heavy = ('matplotlib', 'onnx', 'onnxruntime', 'tritonclient', 'jinja2')\n"
        "print([module for module in heavy if module in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_replay_ends_it_and_exits_with_130(number: signal.Signals) -> None:
    # The command's own signal handling around a replay that would last a minute, server or not.
    program = (
        "import sys\n"
        "from muplan.interruption import interruptible\n"
        "from muplan.load.replay import replay\n"
        "from muplan.load.schedule import PlannedRequest\n"
        "requests = (PlannedRequest(model='m', planned_s=50, prompt='p', tensor_seed=0),)\n"
        "with interruptible('stopped'):\n"
        "    try:\n"
        "        replay('127.0.0.1:9', requests, {}, window_s=60, give_up_s=60,\n"
        "               on_sample=lambda p: print('sample', flush=True))\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sample\n"
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=20) == 130
    assert "cleaned up" in rest


def test_progress_off_a_terminal_is_a_line_now_and_then(tmp_path: Path) -> None:
    file = tmp_path / "progress"
    with file.open("w") as stream, ConsoleWatcher(Console(file=stream, width=200)) as watcher:
        watcher.stage("arm: 200 requests")
        for tick in range(100):
            watcher.load(
                LoadProgress(time_s=tick / 4, sent=tick, completed=tick // 2, failed=1),
                30.0,
                {"n/gpu0": 1380, "n/gpu1": 607},
            )
    lines = file.read_text().splitlines()
    assert lines[0] == "> arm: 200 requests"
    assert len(lines) == 3
    assert "10 of 30 s: 20 answered, 19 waiting, 1 failed; clocks 1380/607 MHz" in lines[1]


def test_a_daemon_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    from muplan.deploy.daemon import running_daemon

    log = tmp_path / "daemon.log"
    with running_daemon(tmp_path / "no-plan", "http://127.0.0.1:9/metrics", "miad", log) as daemon:
        daemon.process.wait(timeout=30)
        with pytest.raises(ServingError, match=r"mupower daemon ended with code 2: .*no-plan"):
            daemon.require_alive()
