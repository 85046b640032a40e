"""A slot holds one turn: from telling the front that it has begun until the front lets go.

The front listens on a Unix socket in Linux's abstract namespace, which has no file and ends with its owner.
So a turn ends when the front says so, and also when the front dies; the front notices a slot that dies.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from mubackend.failure import invalid

TOKEN_BYTES = 32
_NAME, _SEPARATOR = "muserve-front-", "/"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where the front listens, and which of its requests this is; ``token`` has ``TOKEN_BYTES`` letters."""

    front: str
    token: str

    @property
    def address(self) -> str:
        """The front's socket, for ``socket.connect``."""
        return f"\0{_NAME}{self.front}"

    def __str__(self) -> str:
        """As it travels through Triton."""
        return f"{self.front}{_SEPARATOR}{self.token}"


def parse_ticket(text: str) -> Ticket:
    """A ticket from its text; RequestError (INVALID_ARGUMENT) when it is none."""
    front, separator, token = text.partition(_SEPARATOR)
    if not (front.isalnum() and separator and token.isalnum() and len(token) == TOKEN_BYTES):
        raise invalid("ticket: expected one that a front has given out")
    return Ticket(front, token)


def hold(ticket: Ticket) -> None:
    """Tell the front that the turn has begun, and wait until it ends. OSError when there is no front."""
    with socket.socket(socket.AF_UNIX) as front:
        front.connect(ticket.address)
        front.sendall(ticket.token.encode())
        while front.recv(64):
            pass
