"""Ctrl-C in every phase of a long command: one sentence, exit code 130, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from muplan.interruption import interruptible, postponed, uninterrupted

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"
MUPLAN = (sys.executable, "-c", "from muplan.cli import main; main()")


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def interrupted(arguments: list[str], directory: Path, *, after: str, number: signal.Signals) -> list[str]:
    """Run muplan and signal it once it has said ``after`` on stderr; its stderr from there, by line."""
    with subprocess.Popen(
        [*MUPLAN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=directory
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if after in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, rest
    return rest.splitlines()


@pytest.mark.parametrize("phase", ["profiling", "placing", "drawing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_generate_leaves_the_directory_as_it_was(phase: str, number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "manifest.json").write_text('{"format": "muserve-plan-1", "files": {}}')
    (tmp_path / "plan" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    arguments = ["generate", str(QUICKSTART), "-o", "plan"]
    *_, last = interrupted(arguments, tmp_path, after=phase, number=number)
    assert last == "interrupted: plan is as it was"
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["plan"]


def test_a_rehearsed_measurement_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["profile", "resnet-50", "--gpu", "V100-16GB", "--measure", "--virtual", "-o", "p.json"]
    program = [*MUPLAN, *arguments]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        while not (tmp_path / "p.json.journal").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, rest
    last = rest.splitlines()[-1]
    assert last == "interrupted: the clock is unlocked; the same command goes on from p.json.journal"
    assert os.listdir(tmp_path) == ["p.json.journal"]


@pytest.mark.parametrize(
    ("command", "slow", "sentence"),
    [
        ("profile bert-base --gpu V100-16GB -o p.json", "muplan.profile.modelled.modelled_profile", "no"),
        ("simulate plan.json", "muplan.commands.simulate.simulate", "no"),
        ("catalog", "muplan.commands.catalog.table_console", ""),
    ],
)
def test_other_commands_say_what_there_is(command: str, slow: str, sentence: str, tmp_path: Path) -> None:
    """The named function stands for the phase: it says that it has begun and takes for ever."""
    module, _, function = slow.rpartition(".")
    program = (
        "import importlib, sys, time\n"
        "def slow(*_, **__):\n"
        "    print('begun', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        f"setattr(importlib.import_module({module!r}), {function!r}, slow)\n"
        "import muplan.commands.simulate as simulation\n"
        "simulation.read_plan = lambda _: type('Plan', (), {'models': ()})\n"
        "simulation.scenario_from_plan = lambda *_, **__: None\n"
        f"sys.argv = {['muplan', *command.split()]!r}\n"
        "from muplan.cli import main; main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "begun" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, rest
    assert rest.splitlines()[-1].startswith(f"interrupted: {sentence}" if sentence else "interrupted")
    assert os.listdir(tmp_path) == []


def test_a_last_step_is_not_interrupted() -> None:
    with interruptible("never said"), uninterrupted():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        time.sleep(0.05)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_import_is_interrupted_at_its_end() -> None:
    done = []

    def load() -> None:
        with postponed():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        load()
    assert done == [True]
    with postponed():
        pass


def test_a_last_step_may_be_in_another_thread() -> None:
    done = []

    def step() -> None:
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert done == [True]
