"""What systemd wants to hear (``sd_notify(3)``): one datagram a message, nothing where nobody listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class ServiceNotifier:
    """Tells the service manager of ``environment`` how the daemon is. Never raises, never blocks.

    ``watchdog_s`` is how long systemd waits for a sign of life before it kills the daemon; None when it
    does not watch.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of Linux's abstract names.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = environment.get("WATCHDOG_USEC", "")
        meant_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(usec) / 1e6 if usec.isdecimal() and meant_for_us else None

    def ready(self, status: str) -> None:
        """The daemon steers now; ends a reload as well."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """A control cycle has begun."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Settings are being read anew; ``ready`` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon is about to unlock and to leave."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
