"""What systemd hears."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest

from mupower.notify import ServiceNotifier


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_arrive_one_a_datagram(tmp_path: Path, abstract: bool) -> None:
    name = f"@{uuid.uuid4().hex}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        notifier = ServiceNotifier({"NOTIFY_SOCKET": name})
        notifier.ready("law miad")
        notifier.alive()
        notifier.reloading()
        notifier.stopping()
        heard = [manager.recv(4096).decode() for _ in range(4)]
    assert heard[0] == "READY=1\nSTATUS=law miad"
    assert heard[1] == "WATCHDOG=1"
    assert heard[2].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[3] == "STOPPING=1"


@pytest.mark.parametrize(
    "environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "@gone"}]
)
def test_nobody_listening_is_no_error(environment: dict[str, str]) -> None:
    ServiceNotifier(environment).ready("x")


def test_the_watchdog_is_for_the_process_that_it_names() -> None:
    ours = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert ServiceNotifier(ours).watchdog_s == 30.0
    assert ServiceNotifier(ours | {"WATCHDOG_PID": "1"}).watchdog_s is None
    assert ServiceNotifier({}).watchdog_s is None
