"""What a slot does with the engine's responses, and when its client goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

CHECK_S = 0.05


def pass_on(
    responses: Iterable[Any],
    send: Callable[[Any], None],
    is_cancelled: Callable[[], bool],
    now_s: Callable[[], float] = time.monotonic,
) -> Any:
    """Send each response of the engine that has outputs; returns the engine's error, or None.

    When the client goes, an engine behind a Triton that can cancel such a call is told to stop (the
    iterator then has ``cancel``, since 2025). Behind an older one the slot stays taken until the engine has
    finished: it is busy with the request for that long.
    """
    check_s = now_s() + CHECK_S
    gone = False
    for response in responses:
        if response.has_error():
            return None if gone else response.error()
        if not gone and now_s() >= check_s:
            check_s = now_s() + CHECK_S
            gone = is_cancelled()
            if gone and hasattr(responses, "cancel"):
                responses.cancel()
        if not gone and response.output_tensors():
            send(response)
    return None
