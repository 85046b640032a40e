from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from muplan.deploy.ports import free_ports
from muplan.deploy.server import ServerCommand, TritonServer

# A server with a process that outlives it and keeps its log open, as an engine of several processes can.
SCRIPT = """#!/bin/sh
trap 'exit 0' TERM
sleep 600 &
echo "$!" > "$0.pid"
echo ready
wait
"""


@pytest.mark.parametrize("killed", [False, True])
def test_what_models_have_started_ends_with_the_server(tmp_path: Path, killed: bool) -> None:
    executable = tmp_path / "tritonserver"
    executable.write_text(SCRIPT)
    executable.chmod(0o755)
    lines: list[str] = []
    command = ServerCommand(
        executable=executable,
        repository=tmp_path,
        backends=tmp_path,
        ports=free_ports(),
        address="127.0.0.1",
        shared_memory_option="",
        config_name=None,
        drain_s=0,
        limits_rates=False,
    )
    server = TritonServer(command, os.environ, lines.append)
    deadline = time.monotonic() + 20
    while "ready" not in lines:
        assert time.monotonic() < deadline, lines
        time.sleep(0.02)
    rest = psutil.Process(int((tmp_path / "tritonserver.pid").read_text()))
    if killed:
        server.kill()
    else:
        assert server.stop() == 0
    psutil.wait_procs([rest], timeout=5)
    assert not rest.is_running() or rest.status() == psutil.STATUS_ZOMBIE
    assert not server._reader.is_alive(), "nobody writes to the log after the end"
