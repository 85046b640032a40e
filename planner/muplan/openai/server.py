"""The HTTP server of the OpenAI interface, in front of a running Triton.

``/v1/chat/completions``, ``/v1/completions``, ``/v1/models``; answers whole or as server-sent events. A
client that hangs up cancels its request in Triton.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from http import HTTPStatus
from typing import Any

from aiohttp import web

from muplan.load.client import ServingRequestError, TritonLoadClient
from muplan.openai.answer import Envelope, Usage, model_body
from muplan.openai.failure import ApiError
from muplan.openai.request import Ask, chat_ask, completion_ask, model_of
from muplan.openai.served import ServedModel
from muserve.errors import InputError

logger = logging.getLogger(__name__)

_LARGEST_BODY_BYTES = 8 * 1024 * 1024
_DRAIN_S = 5.0
_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class OpenAiServer:
    """Answers for ``models`` through ``client``; ``now_s`` is seconds since 1970."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        client: TritonLoadClient,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._client = client
        self._now_s = now_s
        self._started = int(now_s())

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[_errors_as_json], client_max_size=_LARGEST_BODY_BYTES)
        application.router.add_get("/v1/models", self._list)
        application.router.add_get("/v1/models/{model}", self._show)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_post("/v1/completions", self._complete)
        return application

    async def _list(self, _: web.Request) -> web.Response:
        data = [model_body(name, self._started) for name in self._models]
        return _json({"object": "list", "data": data})

    async def _show(self, request: web.Request) -> web.Response:
        return _json(model_body(self._model(request.match_info["model"]).name, self._started))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        document, name = model_of(await request.read())
        model = self._model(name)
        return await self._answer(request, model, chat_ask(document, model.form), chat=True)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        document, name = model_of(await request.read())
        return await self._answer(request, self._model(name), completion_ask(document), chat=False)

    def _model(self, name: str) -> ServedModel:
        if name not in self._models:
            raise ApiError.no_model(name)
        return self._models[name]

    async def _answer(
        self, request: web.Request, model: ServedModel, ask: Ask, *, chat: bool
    ) -> web.StreamResponse:
        prefix = "chatcmpl-" if chat else "cmpl-"
        envelope = Envelope(
            id=prefix + uuid.uuid4().hex, created=int(self._now_s()), model=model.name, chat=chat
        )
        texts = self._texts(model, ask)
        async with aclosing(texts):
            if ask.stream:
                return await self._stream(request, model, ask, envelope, texts)
            pieces = [text async for text in texts]
        usage = Usage(prompt_tokens=model.count_tokens(ask.prompt), completion_tokens=len(pieces))
        return _json(envelope.whole(ask.opening + "".join(pieces), _ending(ask, len(pieces)), usage))

    async def _texts(self, model: ServedModel, ask: Ask) -> AsyncGenerator[str]:
        """The tokens of the answer; ApiError when Triton fails."""
        tokens = self._client.stream(model.entrance, ask.prompt, ask.sampling)
        try:
            async with aclosing(tokens):
                async for text in tokens:
                    yield text
        except ServingRequestError as error:
            raise ApiError.from_triton(str(error), error.status) from error

    async def _stream(
        self,
        request: web.Request,
        model: ServedModel,
        ask: Ask,
        envelope: Envelope,
        texts: AsyncIterator[str],
    ) -> web.StreamResponse:
        """Server-sent events. An error before the first token is still a plain one, with its status."""
        first = await anext(texts, None)
        response = web.StreamResponse(headers=_EVENTS)
        await response.prepare(request)
        opening = envelope.opening()
        if opening is not None:
            await _send(response, opening)
        if ask.opening:
            await _send(response, envelope.piece(ask.opening))
        count = 0
        try:
            text = first
            while text is not None:
                count += 1
                if text:
                    await _send(response, envelope.piece(text))
                text = await anext(texts, None)
        except ApiError as error:
            await _send(response, error.body)
        else:
            await _send(response, envelope.end(_ending(ask, count)))
            if ask.include_usage:
                usage = Usage(prompt_tokens=model.count_tokens(ask.prompt), completion_tokens=count)
                await _send(response, envelope.usage(usage))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _ending(ask: Ask, tokens: int) -> str:
    return "length" if tokens >= ask.max_tokens else "stop"


async def _send(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + _bytes(body) + b"\n\n")


def _bytes(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _json(body: dict[str, Any], status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(body=_bytes(body), status=status, content_type="application/json", charset="utf-8")


@web.middleware
async def _errors_as_json(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except ApiError as error:
        return _json(error.body, error.status)
    except web.HTTPException as error:
        told = ApiError(
            HTTPStatus(error.status), f"{request.path}: {error.reason}", kind="invalid_request_error"
        )
        return _json(told.body, told.status)
    return response


@contextmanager
def openai_endpoint(
    models: Mapping[str, ServedModel], grpc_url: str, address: str, port: int
) -> Iterator[int]:
    """Serve ``models`` of the Triton at ``grpc_url`` for as long as the context lasts, in a thread.

    Yields the port, a free one for 0. Requests in flight get some seconds at the end. Raises InputError when
    the port cannot be had.
    """
    started: Future[int] = Future()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()
    thread = threading.Thread(
        target=_run, args=(loop, _serve(models, grpc_url, address, port, started, ended)), name="openai"
    )
    thread.start()
    try:
        yield started.result()
    except OSError as error:
        raise InputError(f"--openai-port: cannot listen on {address}:{port}: {error.strerror}") from error
    finally:
        with suppress(RuntimeError):  # closed already, where the port could not be had
            loop.call_soon_threadsafe(ended.set)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, main: Any) -> None:
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


async def _serve(
    models: Mapping[str, ServedModel],
    grpc_url: str,
    address: str,
    port: int,
    started: Future[int],
    ended: asyncio.Event,
) -> None:
    client = TritonLoadClient(grpc_url)
    server = OpenAiServer(models, client)
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=_DRAIN_S
    )
    try:
        await runner.setup()
        await web.TCPSite(runner, address, port).start()
        started.set_result(runner.addresses[0][1])
        await ended.wait()
    except OSError as error:
        started.set_exception(error)
    finally:
        await runner.cleanup()
        await client.close()
