"""The demo server: starts, is told what to do, tells what it saw, stops.

Example:
    >>> from urllib.request import urlopen
    >>> with DemoServer() as server:
    ...     with urlopen(f"{server.base_url}/models") as response:
    ...         response.status
    200
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self, get_args

from brix_core.checks import whole
from brix_core.demo.anthropic_api import MESSAGES
from brix_core.demo.counting import text_tokens
from brix_core.demo.faults import Behaviour, Echo
from brix_core.demo.gemini_api import GenerateContent, gemini_models
from brix_core.demo.ledger import Ledger, RequestRecord, ServerStats
from brix_core.demo.ollama_api import CHAT, ollama_models
from brix_core.demo.openai_api import CHAT_COMPLETIONS, TEXT_COMPLETIONS, error_body, model_list
from brix_core.demo.plan import InvalidRequest, Plan, Prompt, Refusal
from brix_core.demo.replies import decide
from brix_core.errors import BrixConfigurationError

try:
    import anyio.to_thread
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError('the demo server needs more packages: pip install "brix-guards[demo]"') from error

from brix_core.demo.exchange import TRANSPORT, Exchange, WireFormat

_CREDENTIALS = frozenset({"authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie", "proxy-authorization"})
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0


class DemoServer:
    """The HTTP APIs of OpenAI, Anthropic, Gemini and Ollama on a free port of 127.0.0.1, in a daemon thread.

    Serves ``POST /v1/chat/completions``, ``/v1/completions``, ``/v1/messages``, ``/api/chat``,
    ``/v1beta/models/{model}:generateContent`` and ``:streamGenerateContent?alt=sse``, and ``GET /v1/models``,
    ``/v1beta/models`` and ``/api/tags``. Any key is accepted.

    Use it as a context manager, sync or async; all methods are thread-safe.

    Args:
        history: Finished requests to keep in `requests`.

    Example:
        >>> import json
        >>> from urllib.request import Request, urlopen
        >>> from brix_core.demo import Reply
        >>> body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
        >>> with DemoServer() as server:
        ...     server.script(Reply("Hello there"))
        ...     request = Request(f"{server.base_url}/chat/completions", json.dumps(body).encode())
        ...     with urlopen(request) as response:
        ...         json.load(response)["choices"][0]["message"]["content"]
        ...     server.stats.completion_tokens
        'Hello there'
        2
    """

    def __init__(self, *, history: int = 10_000) -> None:
        self._ledger = Ledger(whole("history", history, 1))
        self._lock = Lock()
        self._script: deque[Behaviour] = deque()
        self._default: Behaviour = Echo()
        self._running: _Running | None = None

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes as ``base_url``.

        Raises:
            RuntimeError: The server is not running.
        """
        return f"{self.anthropic_base_url}/v1"

    @property
    def anthropic_base_url(self) -> str:
        """What Anthropic's SDK takes as ``base_url``.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._running is None:
            raise RuntimeError("the demo server is not running; use it in a with statement or call start()")
        return f"http://127.0.0.1:{self._running.port}"

    @property
    def gemini_base_url(self) -> str:
        """Where Gemini's REST API begins.

        Raises:
            RuntimeError: The server is not running.
        """
        return f"{self.anthropic_base_url}/v1beta"

    @property
    def ollama_base_url(self) -> str:
        """Where Ollama's REST API begins.

        Raises:
            RuntimeError: The server is not running.
        """
        return self.anthropic_base_url

    def script(self, *behaviours: Behaviour) -> None:
        """Say what happens to the next requests, in the order of their arrival; adds to what was said before.

        A request that cannot be read (invalid JSON, no messages) is refused without using up a behaviour.

        Raises:
            BrixConfigurationError: Something is not a behaviour.
        """
        for behaviour in behaviours:
            _require_behaviour(behaviour)
        with self._lock:
            self._script.extend(behaviours)

    @property
    def default(self) -> Behaviour:
        """What happens to a request when the script is used up."""
        return self._default

    @default.setter
    def default(self, behaviour: Behaviour) -> None:
        _require_behaviour(behaviour)
        self._default = behaviour

    @property
    def stats(self) -> ServerStats:
        """Sums since the last reset, taken at one instant."""
        return self._ledger.stats

    @property
    def requests(self) -> list[RequestRecord]:
        """The finished requests since the last reset, in the order of arrival; a copy."""
        return self._ledger.records()

    def wait_until_idle(self, timeout: float = 5.0) -> bool:
        """Wait until no request is in flight; a client's departure is noticed a moment after it.

        Args:
            timeout: Most seconds to wait.

        Returns:
            False when requests are still in flight.
        """
        return self._ledger.wait_until_idle(timeout)

    def reset(self) -> None:
        """Forget script, default behaviour, sums and records.

        Requests still in flight run on, but will not be counted.
        """
        with self._lock:
            self._script.clear()
            self._default = Echo()
        self._ledger.reset()

    def start(self) -> None:
        """Start serving; returns when requests are accepted.

        Raises:
            RuntimeError: It is running already, or did not start.
        """
        if self._running is not None:
            raise RuntimeError("the demo server is running already")
        text_tokens("loads the ranks here, so that the first request is no slower than the others")
        self._running = _Running(self._application)

    def stop(self) -> None:
        """Stop serving: breaks off what is in flight, closes every connection. Harmless when stopped."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop)

    def _application(self, stopping: asyncio.Event) -> Starlette:
        def endpoint(wire: WireFormat, path: str) -> Route:
            async def call(request: Request) -> Exchange | Response:
                return await self._receive(wire, request, stopping)

            return Route(path, call, methods=["POST"])

        async def gemini(request: Request) -> Exchange | Response:
            wire = GenerateContent.at(request.path_params["call"], request.query_params)
            if wire is None:
                raise HTTPException(404)
            return await self._receive(wire, request, stopping)

        def listing(path: str, body: Callable[[], dict[str, Any]]) -> Route:
            async def models(request: Request) -> Response:
                return JSONResponse(body())

            return Route(path, models, methods=["GET"])

        return Starlette(
            routes=[
                endpoint(CHAT_COMPLETIONS, "/v1/chat/completions"),
                endpoint(TEXT_COMPLETIONS, "/v1/completions"),
                endpoint(MESSAGES, "/v1/messages"),
                Route("/v1beta/models/{call:path}", gemini, methods=["POST"]),
                endpoint(CHAT, "/api/chat"),
                listing("/v1/models", model_list),
                listing("/v1beta/models", gemini_models),
                listing("/api/tags", ollama_models),
            ],
            exception_handlers={HTTPException: _not_served},
        )

    async def _receive(self, wire: WireFormat, request: Request, stopping: asyncio.Event) -> Exchange | Response:
        try:
            raw = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)  # nobody will read it
        body, prompt, plan = self._plan(wire, raw)
        entry = self._ledger.open(
            path=request.url.path,
            model=prompt.model,
            stream=prompt.stream,
            body=body,
            headers={key: value for key, value in request.headers.items() if key not in _CREDENTIALS},
        )
        return Exchange(wire=wire, prompt=prompt, plan=plan, entry=entry, ledger=self._ledger, stopping=stopping.wait)

    def _plan(self, wire: WireFormat, raw: bytes) -> tuple[dict[str, Any], Prompt, Plan | Refusal]:
        body: dict[str, Any] = {}
        try:
            parsed = json.loads(raw)
            if not isinstance(parsed, dict):
                raise InvalidRequest("The body is not a JSON object.")
            body = parsed
            prompt = wire.read(body)
        # The other kinds come from fields of the wrong JSON type, which the formats do not check one by one.
        except (InvalidRequest, ValueError, TypeError, AttributeError) as error:
            message = str(error) or "The body could not be read."
            unread = Prompt(model=str(body.get("model") or ""), turns=(), prompt_tokens=0)
            return body, unread, Refusal(status=400, kind="invalid_request_error", message=message)
        with self._lock:
            behaviour = self._script.popleft() if self._script else self._default
        return body, prompt, decide(behaviour, prompt)


def _require_behaviour(value: object) -> None:
    if not isinstance(value, get_args(Behaviour)):
        raise BrixConfigurationError(f"expected a behaviour such as Reply('Hi'), got {value!r}")


async def _not_served(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"The demo server does not serve {request.method} {request.url.path}."
    refusal = Refusal(status=status, kind="invalid_request_error", message=message)
    return JSONResponse(error_body(refusal), status_code=status)


class _Running:
    """The thread with uvicorn and its event loop, from listening to joined."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._ready = Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        # The protocol is named because asyncio sets TCP_NODELAY only where it is: without, answers wait 40 ms.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._run, name="brix-demo-server", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT) or self._failure is not None:
            self._listener.close()
            raise RuntimeError("the demo server did not start") from self._failure

    def stop(self) -> None:
        """End every exchange, then uvicorn, then the thread."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._begin_stop)
        self._thread.join(_STOP_TIMEOUT)

    def _begin_stop(self) -> None:
        self._stopping.set()
        self._server.should_exit = True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        # Also what uvicorn raises as SystemExit; whoever waits in the constructor is to hear of it.
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        config = uvicorn.Config(
            self._application(self._stopping),
            http=_Connection,
            ws="none",
            lifespan="off",
            # No logging set-up: uvicorn's loggers are the application's own business.
            log_config=None,
            backlog=512,
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config, self._ready)
        await self._server.serve(sockets=[self._listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Event) -> None:
        super().__init__(config)
        self._listening = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()


class _Connection(H11Protocol):
    """Hands its transport to the exchanges, which have connections to break."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvicorn narrows the argument in the same way.
        super().connection_made(transport)
        self.access_log = False
        self.app_state = {**self.app_state, TRANSPORT: transport}


__all__ = ["DemoServer"]
