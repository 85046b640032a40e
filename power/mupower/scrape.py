"""The HTTP edge: one GET per metrics endpoint and cycle, never slower than its deadline."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from muserve.errors import InputError

_LARGEST_ANSWER_BYTES = 16 * 2**20
_CHUNK_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one endpoint said: its text, or the problem in a few words."""

    url: str
    text: str | None
    problem: str = ""


def check_url(url: str) -> str:
    """Return ``url`` when it can be scraped; InputError otherwise."""
    expectation = f"--metrics: expected a URL like http://127.0.0.1:8002/metrics, got {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{expectation} ({error})") from error
    printable = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not printable:
        raise InputError(expectation)
    return url


class Endpoints:
    """Fetches every endpoint at the same time.

    Each fetch runs in its own daemon thread, so that an endpoint that trickles bytes or never answers
    costs the caller ``timeout_s`` at most and cannot hold up the exit of the process.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self._urls = tuple(urls)
        self._timeout_s = timeout_s
        # Ask the endpoint itself: a proxy from the environment must not stand between us and Triton.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._threads: dict[str, threading.Thread] = {}

    def fetch(self) -> tuple[Answer, ...]:
        """One answer per endpoint, in the order given, after at most ``timeout_s`` (roughly)."""
        deadline_s = time.monotonic() + self._timeout_s
        answers: dict[str, Answer] = {}
        for url in self._urls:
            earlier = self._threads.get(url)
            if earlier is None or not earlier.is_alive():
                thread = threading.Thread(
                    target=self._fetch_into, args=(url, deadline_s, answers), daemon=True
                )
                self._threads[url] = thread
                thread.start()
        for url in self._urls:
            self._threads[url].join(max(0.0, deadline_s - time.monotonic()))
        late = f"no complete answer within {self._timeout_s:g} s"
        return tuple(answers.get(url, Answer(url=url, text=None, problem=late)) for url in self._urls)

    def _fetch_into(self, url: str, deadline_s: float, answers: dict[str, Answer]) -> None:
        try:
            text = self._get(url, deadline_s)
        except urllib.error.URLError as error:
            answers[url] = Answer(url=url, text=None, problem=_in_words(error))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers[url] = Answer(url=url, text=None, problem=str(error) or type(error).__name__)
        else:
            answers[url] = Answer(url=url, text=text)

    def _get(self, url: str, deadline_s: float) -> str:
        body = bytearray()
        with self._opener.open(url, timeout=self._timeout_s) as response:
            while chunk := response.read1(_CHUNK_BYTES):
                body += chunk
                if len(body) > _LARGEST_ANSWER_BYTES:
                    raise ValueError(f"answer is larger than {_LARGEST_ANSWER_BYTES} bytes")
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"no complete answer within {self._timeout_s:g} s")
        return body.decode("utf-8", errors="replace")


def _in_words(error: urllib.error.URLError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP status {error.code}"
    reason = error.reason
    return (reason.strerror or str(reason)) if isinstance(reason, OSError) else str(reason)
