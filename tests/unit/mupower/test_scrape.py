"""The HTTP edge against real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from mupower.scrape import Endpoints, check_url
from muserve.errors import InputError


@contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answer every connection on a free port by ``answer``; yields the URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def loop() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(4096)
                        answer(connection)

        thread = threading.Thread(target=loop)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/metrics"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def says(status: str, body: bytes) -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + body)


def test_text_comes_back() -> None:
    with served(says("200 OK", b"a 1\n")) as url:
        (answer,) = Endpoints([url], 2.0).fetch()
    assert (answer.url, answer.text, answer.problem) == (url, "a 1\n", "")


def test_an_error_status_is_a_problem() -> None:
    with served(says("503 Busy", b"")) as url:
        (answer,) = Endpoints([url], 2.0).fetch()
    assert (answer.text, answer.problem) == (None, "HTTP status 503")


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/metrics"
    (answer,) = Endpoints([url], 2.0).fetch()
    assert (answer.text, answer.problem) == (None, "Connection refused")


def test_an_answer_cut_short_is_a_problem() -> None:
    with served(lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")) as url:
        (answer,) = Endpoints([url], 2.0).fetch()
    assert answer.text is None or answer.text == "half"


def test_not_http_at_all() -> None:
    with served(lambda c: c.sendall(b"SSH-2.0-OpenSSH\r\n")) as url:
        (answer,) = Endpoints([url], 2.0).fetch()
    assert answer.text is None
    assert answer.problem


def test_a_trickle_costs_no_more_than_the_deadline_and_is_not_asked_twice() -> None:
    connections = 0
    stop = threading.Event()

    def trickle(connection: socket.socket) -> None:
        nonlocal connections
        connections += 1
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not stop.wait(0.05):
            connection.sendall(b"#")

    with served(trickle) as url, served(says("200 OK", b"a 1\n")) as healthy:
        endpoints = Endpoints([url, healthy], 0.3)
        began_s = time.monotonic()
        slow, fast = endpoints.fetch()
        assert time.monotonic() - began_s < 1.0
        stop.set()
    assert (slow.text, slow.problem) == (None, "no complete answer within 0.3 s")
    assert fast.text == "a 1\n"
    assert connections == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8002/metrics",
        "ftp://127.0.0.1/metrics",
        "http://",
        "http://:8002/metrics",
        "http://127.0.0.1:eight/metrics",
        "http://127.0.0.1:99999/metrics",
        "http://127.0.0.1:0/metrics",
        "http://[::1/metrics",
        "http://127.0.0.1:8002/my metrics",
        "http://127.0.0.1:8002/metrics\n",
    ],
)
def test_bad_urls_are_refused_in_one_sentence(url: str) -> None:
    with pytest.raises(InputError, match="--metrics: expected a URL like http") as caught:
        check_url(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:8002/metrics", "https://[::1]:8002/metrics"])
def test_good_urls_pass(url: str) -> None:
    assert check_url(url) == url
