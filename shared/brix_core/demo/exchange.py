"""One request and its response: carries out a plan over ASGI while watching the client.

The work is raced against the client's departure and the server's stop, so that a stalled or endless
stream ends, and is booked, as soon as somebody leaves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import anyio
from starlette.types import Receive, Scope, Send

from brix_core.demo.counting import text_tokens
from brix_core.demo.ledger import Entry, Ledger, Outcome
from brix_core.demo.plan import Answer, Piece, Plan, Prompt, Refusal, Usage

TRANSPORT = "brix.transport"
"""Key in the ASGI scope's state: the connection's `asyncio.Transport`."""


class StreamFormat(Protocol):
    """Frames of one streamed answer, in the order of the methods."""

    def begin(self, usage: Usage) -> bytes:
        """What comes first; `usage` knows the prompt only."""

    def open(self, choice: int) -> bytes:
        """What precedes the pieces of a choice."""

    def delta(self, choice: int, piece: Piece) -> bytes:
        """One piece of a choice."""

    def finish(self, choice: int, answer: Answer) -> bytes:
        """What follows the pieces of a choice."""

    def end(self, usage: Usage | None) -> bytes:
        """What comes last; None when no usage is to be reported."""


class WireFormat(Protocol):
    """An API: reads requests, renders responses; `content_type` is that of its streams."""

    request_id_header: str
    content_type: str

    def read(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt in a request's body; raises `InvalidRequest`."""

    def answer(self, prompt: Prompt, answers: Sequence[Answer], usage: Usage | None, index: int) -> dict[str, Any]:
        """The body of a complete answer."""

    def stream(self, prompt: Prompt, index: int) -> StreamFormat:
        """The frames of a streamed answer."""

    def refusal(self, refusal: Refusal, index: int) -> dict[str, Any]:
        """The body of an error response."""


class Delivery:
    """What has been sent of an answer, to be counted as the client sees it."""

    def __init__(self) -> None:
        self._texts: dict[tuple[int, int | None], list[str]] = {}
        self._names: list[str] = []

    def add(self, choice: int, piece: Piece) -> None:
        """Enter a piece."""
        self._texts.setdefault((choice, piece.call), []).append(piece.text)
        if piece.name:
            self._names.append(piece.name)

    def tokens(self) -> int:
        """Tokens of everything sent: texts, names and arguments of tool calls."""
        texts = ("".join(parts) for parts in self._texts.values())
        return sum(map(text_tokens, texts)) + sum(map(text_tokens, self._names))


class Exchange:
    """An ASGI application for a single request that has been read.

    Args:
        wire: The API spoken.
        prompt: What was asked.
        plan: What to do.
        entry: The request's entry in the ledger.
        ledger: Where the outcome is booked.
        stopping: Waits until the server is to stop.
    """

    def __init__(
        self,
        *,
        wire: WireFormat,
        prompt: Prompt,
        plan: Plan | Refusal,
        entry: Entry,
        ledger: Ledger,
        stopping: Callable[[], Awaitable[object]],
    ) -> None:
        self._wire = wire
        self._prompt = prompt
        self._plan = plan
        self._entry = entry
        self._ledger = ledger
        self._stopping = stopping
        self._delivery = Delivery()
        self._status: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond, or notice that there is nobody to respond to."""
        transport: asyncio.Transport = scope["state"][TRANSPORT]
        async with anyio.create_task_group() as race:

            async def client_leaves() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                self._settle("aborted")
                race.cancel_scope.cancel()

            async def server_stops() -> None:
                await self._stopping()
                self._settle("cut")
                # The loss of the connection then ends the race as if the client had left.
                transport.abort()

            race.start_soon(client_leaves)
            race.start_soon(server_stops)
            try:
                await self._perform(send, transport)
            except Exception:
                # A defect of this server; uvicorn logs it and answers, the book must not wait for ever.
                self._settle("failed")
                raise
            race.cancel_scope.cancel()

    async def _perform(self, send: Send, transport: asyncio.Transport) -> None:
        plan, prompt = self._plan, self._prompt
        if plan.latency:
            await anyio.sleep(plan.latency)
        if isinstance(plan, Refusal):
            await self._refuse(send, plan)
        elif prompt.stream:
            await self._stream(send, transport, prompt, plan)
        else:
            await self._answer(send, transport, prompt, plan)

    async def _refuse(self, send: Send, refusal: Refusal) -> None:
        self._status = refusal.status
        self._settle("failed")
        retry_after = {"retry-after": refusal.retry_after} if refusal.retry_after is not None else {}
        await self._send_json(send, self._wire.refusal(refusal, self._entry.index), retry_after)

    async def _answer(self, send: Send, transport: asyncio.Transport, prompt: Prompt, plan: Plan) -> None:
        if plan.ending != "complete":
            await self._break_off(plan, transport)
        pieces = [
            (choice, piece) for choice, answer in enumerate(plan.answers) for piece in answer.pieces(plan.chunk_size)
        ]
        if generating := plan.first_token + plan.chunk_delay * max(0, len(pieces) - 1):
            await anyio.sleep(generating)
        for choice, piece in pieces:
            self._delivery.add(choice, piece)
        usage = self._usage(prompt, plan)
        self._status = 200
        body = self._wire.answer(prompt, plan.answers, _reported(usage, plan), self._entry.index)
        self._settle("answered", usage)
        await self._send_json(send, body, {})

    async def _stream(self, send: Send, transport: asyncio.Transport, prompt: Prompt, plan: Plan) -> None:
        self._status = 200
        frames = self._wire.stream(prompt, self._entry.index)
        await self._send_head(send, self._wire.content_type, {"cache-control": "no-cache"})
        if plan.first_token:
            await anyio.sleep(plan.first_token)
        waiting = frames.begin(replace(self._usage(prompt, plan), completion_tokens=0, reasoning_tokens=0))
        sent = 0
        for choice, answer in enumerate(plan.answers):
            waiting += frames.open(choice)
            for piece in answer.pieces(plan.chunk_size):
                if plan.ending != "complete" and sent >= plan.after:
                    break
                # Also without a delay: only a task that yields lets the client's departure be noticed.
                await anyio.sleep(plan.chunk_delay if sent else 0)
                self._delivery.add(choice, piece)
                await _send_body(send, waiting + frames.delta(choice, piece))
                waiting = b""
                sent += 1
            if plan.ending != "complete":
                if waiting:
                    await _send_body(send, waiting)
                await self._break_off(plan, transport)
            waiting += frames.finish(choice, answer)
        usage = self._usage(prompt, plan)
        self._settle("answered", usage)
        await _send_body(send, waiting + frames.end(_reported(usage, plan)), more=False)

    async def _break_off(self, plan: Plan, transport: asyncio.Transport) -> None:
        """Cut the connection, or fall silent; the race ends this task either way."""
        if plan.ending == "cut":
            self._settle("cut")
            transport.close()  # and not abort(), which would drop chunks not yet on their way
        await anyio.sleep_forever()

    def _usage(self, prompt: Prompt, plan: Plan) -> Usage:
        """The tokens so far, with the figures the plan dictates in their place."""
        dictated = plan.usage or {}
        reasoning = dictated.get("reasoning_tokens", 0)
        return Usage(
            prompt_tokens=dictated.get("prompt_tokens", prompt.prompt_tokens),
            completion_tokens=dictated.get("completion_tokens", self._delivery.tokens() + reasoning),
            cached_tokens=dictated.get("cached_tokens", 0),
            reasoning_tokens=reasoning,
        )

    def _settle(self, outcome: Outcome, usage: Usage | None = None) -> None:
        if usage is None:
            billed = isinstance(self._plan, Plan)
            usage = Usage(
                prompt_tokens=self._prompt.prompt_tokens if billed else 0,
                completion_tokens=self._delivery.tokens(),
            )
        self._ledger.settle(
            self._entry,
            outcome,
            status=self._status,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    async def _send_json(self, send: Send, payload: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        await self._send_head(send, "application/json", {"content-length": str(len(body)), **headers})
        await _send_body(send, body, more=False)

    async def _send_head(self, send: Send, content_type: str, headers: Mapping[str, str]) -> None:
        request_id = {self._wire.request_id_header: f"req_{self._entry.index:08d}"}
        pairs = ({"content-type": content_type} | request_id | dict(headers)).items()
        encoded = [(name.encode(), value.encode()) for name, value in pairs]
        await send({"type": "http.response.start", "status": self._status, "headers": encoded})


async def _send_body(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _reported(usage: Usage, plan: Plan) -> Usage | None:
    """None when the plan says that nothing is reported."""
    return None if plan.usage is not None and not plan.usage else usage


__all__ = ["TRANSPORT", "Delivery", "Exchange", "StreamFormat", "WireFormat"]
