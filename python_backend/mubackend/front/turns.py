"""Turns at the engine: tickets that wait in Triton's queue, and the slots that take them up."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress

from mubackend.slots.holding import TOKEN_BYTES, Ticket

Turn = asyncio.Future[asyncio.StreamWriter]


class Turns:
    """Gives out tickets; ``open`` and ``close`` it in the event loop that uses it."""

    def __init__(self) -> None:
        self._front = uuid.uuid4().hex
        self._waiting: dict[str, Turn] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen for slots."""
        address = Ticket(self._front, "").address
        self._server = await asyncio.start_unix_server(self._begin, path=address)

    async def close(self) -> None:
        """Listen no more; turns that have begun are their owners' to end."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def ticket(self) -> tuple[Ticket, Turn]:
        """A new ticket, and a future of its turn: closing the writer ends the turn. Cancel it to give up."""
        ticket = Ticket(self._front, uuid.uuid4().hex)
        turn: Turn = asyncio.get_running_loop().create_future()
        self._waiting[ticket.token] = turn
        turn.add_done_callback(lambda _: self._waiting.pop(ticket.token, None))
        return ticket, turn

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A slot has taken up a ticket; whose owner has given up, it is sent away."""
        turn = None
        try:
            turn = self._waiting.get((await reader.readexactly(TOKEN_BYTES)).decode("ascii", "replace"))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # no slot of ours
        finally:
            if turn is None or turn.done():
                await end_turn(writer)
            else:
                turn.set_result(writer)


async def end_turn(writer: asyncio.StreamWriter) -> None:
    """Let the slot go, as far as it is still there."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
