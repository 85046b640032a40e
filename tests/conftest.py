"""What every test relies on."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let Ctrl-C tests work in a run that a shell started in the background.

    Such a run ignores SIGINT, and so would every process it starts: an ignored signal stays ignored across
    exec, a handled one becomes the default again.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
