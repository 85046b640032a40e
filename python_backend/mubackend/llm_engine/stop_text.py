"""Stop strings in an answer that comes piece by piece."""

from __future__ import annotations

from mubackend.sampling import Sampling


class StopText:
    """Lets through what can no longer become a stop string, and ends at the first complete one.

    As in vLLM (``vllm/v1/engine/detokenizer.py``): the string that is complete first wins, it is cut off
    unless ``include_stop``, and one that is complete within the first ``min_tokens`` tokens does not count.
    vLLM holds back as many characters as the longest stop string has, this only the start of one.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._stops = sampling.stop
        self._include = sampling.include_stop
        self._exempt_tokens = sampling.min_tokens
        self._held = ""
        self._exempt = 0  # characters of _held that may not complete a stop string
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain once the next token has added ``piece``."""
        if not self._stops:
            return piece
        text = self._held + piece
        self._exempt_tokens -= 1
        if self._exempt_tokens >= 0:
            self._exempt = len(text)
        elif (end := self._first_stop(text)) is not None:
            self.stopped, self._held = True, ""
            return text[:end]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - kept
        self._held = text[certain:]
        self._exempt = max(0, self._exempt - certain)
        return text[:certain]

    def rest(self) -> str:
        """What is still held back, when no more tokens come."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        """Where to cut ``text``; None when it has no complete stop string."""
        found = [
            (at + len(stop), at)
            for stop in self._stops
            if (at := text.find(stop, max(0, self._exempt - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        end, at = min(found, key=lambda place: place[0])
        return end if self._include else at


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a start of ``stop``, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
