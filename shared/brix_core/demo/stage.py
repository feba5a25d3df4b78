"""Where scenarios are played: one framework, one endpoint.

A scenario's `play` is handed a `Stage`. There it runs the same piece of an application twice, behind guards
and bare, and says in `Case` objects what came of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Unpack, cast

import brix_core
from brix_core.demo.faults import Behaviour, Echo
from brix_core.demo.scene import Result, Side
from brix_core.demo.server import DemoServer
from brix_core.demo.surface import Chat, Connection, Target
from brix_core.options import GuardOptions
from brix_core.store import MemoryStore

MODEL: Final = "gpt-4o"
"""The model the demo server plays: a name with a price everybody can look up."""

DEFAULT_CAP: Final = 1.0
"""USD; every guarded model has a cap, so that all its calls are metered."""

DEFAULT_OUTPUT: Final = 500
"""Output tokens a model may give, guarded or bare."""

_SETTLING: Final = 2.0
"""Seconds to wait for the entries of abandoned streams: an LCEL chain closes its model a moment after itself."""


Work = Callable[["Application"], Awaitable[object]]
"""A piece of an application."""


class Application:
    """Asks a model, and keeps what came of it; an error ends a call and not the demo.

    Args:
        chat: The model.
        give_up: Seconds after which to stop waiting for one call.
    """

    def __init__(self, chat: Chat, give_up: float) -> None:
        self.results: list[Result] = []
        self._chat = chat
        self._give_up = give_up

    async def ask(self, question: str, *, blocking: bool = False) -> None:
        """One call; `blocking` in a thread, as in an application that knows no asyncio."""
        if blocking:
            await self._call(lambda arrived: asyncio.to_thread(self._chat.ask, question))
        else:
            await self._call(lambda arrived: self._chat.aask(question))

    async def ask_all(self, questions: Sequence[str]) -> None:
        """Several calls at once."""
        await asyncio.gather(*map(self.ask, questions))

    async def stream(self, question: str, *, leave_after: int | None = None) -> None:
        """One streamed call; `leave_after` so many pieces the application loses interest."""

        async def read(arrived: list[str]) -> str:
            async with aclosing(cast(Any, self._chat.astream(question))) as pieces:
                async for piece in pieces:
                    arrived.append(piece)
                    if len(arrived) == leave_after:
                        break
            return "".join(arrived)

        await self._call(read)

    async def _call(self, call: Callable[[list[str]], Awaitable[str]]) -> None:
        began, arrived = time.monotonic(), list[str]()
        text, failure, gave_up = None, None, False
        try:
            async with asyncio.timeout(self._give_up) as patience:
                text = await call(arrived)
        except Exception as error:
            gave_up = patience.expired()
            failure = None if gave_up else error
        if text is None:
            text = "".join(arrived)
        self.results.append(Result(text, failure, time.monotonic() - began, gave_up))


@dataclass(slots=True)
class Model:
    """A model of the application's, the cap of its sessions (None without guards), trace entries already read."""

    chat: Chat
    cap: float | None
    seen: int = 0


@dataclass(slots=True)
class Stage:
    """One framework and one endpoint, for one scenario.

    Attributes:
        connection: The framework's models.
        target: The endpoint.
        server: The demo server; None when the endpoint is a real provider.
        session: The session its guarded runs belong to.
    """

    connection: Connection
    target: Target
    server: DemoServer | None
    session: str
    _store: MemoryStore = field(default_factory=MemoryStore)

    def guarded(self, *, max_tokens: int = DEFAULT_OUTPUT, **options: Unpack[GuardOptions]) -> Model:
        """A model behind guards; its cap is `DEFAULT_CAP` unless `options` name one, `fallbacks` are names."""
        cap = options.get("max_cost_usd") or DEFAULT_CAP
        options["max_cost_usd"] = cap
        options.setdefault("store", self._store)
        return Model(self.connection.guarded(options, max_tokens=max_tokens), cap)

    def bare(self, *, own_retries: bool = False, max_tokens: int = DEFAULT_OUTPUT) -> Model:
        """The same model without guards."""
        return Model(self.connection.bare(own_retries=own_retries, max_tokens=max_tokens), None)

    async def run(
        self,
        model: Model,
        work: Work,
        *,
        script: Sequence[Behaviour] = (),
        default: Behaviour | None = None,
        session: str = "",
        give_up: float = 20.0,
    ) -> Side:
        """Run a piece of an application on a model, and measure.

        Args:
            model: The model.
            work: The piece of an application.
            script: What the server does with the first requests.
            default: What it does with the others; echoes, when left out.
            session: A part of the stage's session that is a session of its own.
            give_up: Seconds after which to stop waiting for one call.
        """
        server = self.server
        if server is not None:
            await asyncio.to_thread(server.wait_until_idle)
            server.reset()
            server.script(*script)
            server.default = default or Echo()
        name = f"{self.session}: {session}" if session else self.session
        application = Application(model.chat, give_up)
        began = time.monotonic()
        with brix_core.session(name):
            await work(application)
        seconds = time.monotonic() - began
        fresh = await _new_traces(model, len(application.results))
        if server is not None:
            await asyncio.to_thread(server.wait_until_idle)
        return Side(
            results=tuple(application.results),
            seconds=seconds,
            stats=server.stats if server is not None else None,
            records=tuple(server.requests) if server is not None else (),
            traces=tuple(reversed(fresh)),
            guarded=model.cap is not None,
            session=name,
            cap=model.cap or float("inf"),
        )


async def _new_traces(model: Model, calls: int) -> list[dict[str, Any]]:
    """Trace entries since the last run, newest first; at least one for each call, if they are there in time."""
    deadline = time.monotonic() + _SETTLING
    while True:
        entries = model.chat.traces()
        if model.cap is None or len(entries) - model.seen >= calls or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.01)
    fresh = entries[: len(entries) - model.seen]
    model.seen = len(entries)
    return fresh


__all__ = ["DEFAULT_CAP", "DEFAULT_OUTPUT", "MODEL", "Application", "Model", "Stage", "Work"]
