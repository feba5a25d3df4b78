"""Closing the connection of a stream that nobody reads on.

The integrations iterate over the SDK's stream inside a generator and never close it. The SDK's stream is
part of a reference cycle, so that after an abandoned or cut stream the provider would go on generating, and
billing, until the garbage collector comes by. Our own clients of OpenAI's and Anthropic's SDKs (they are
copies, see `brix_llamaindex.faces`) therefore note the streams they open, and whoever reads one closes it.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar, Token
from typing import Any, Final

from llama_index.core.llms import LLM

from brix_llamaindex.caps import OPENAI, class_names

_opened: ContextVar[list[Any] | None] = ContextVar("brix_llamaindex_opened", default=None)

_CLIENTS: Final = ("_client", "_aclient")
_HOME: Final = "_brix_home"
"""Where the event loop of the asynchronous client is noted; None for a client that is not the LLM's own."""


class Opened:
    """The SDK streams opened in its ``with`` block; leave the block before yielding anything.

    Args:
        llm: Whose clients to watch.
        asynchronous: Whether it will be called on an event loop.
    """

    __slots__ = ("_streams", "_token")

    def __init__(self, llm: LLM, *, asynchronous: bool) -> None:
        self._streams: list[Any] = []
        self._token: Token[list[Any] | None] | None = None
        if asynchronous:
            leave_ended_loop(llm)
        client = _client(llm, _CLIENTS[asynchronous])
        if client is not None and "request" not in vars(client):
            client.request = (_noting_async if asynchronous else _noting)(client.request)

    def __enter__(self) -> None:
        self._token = _opened.set(self._streams)

    def __exit__(self, *failure: object) -> None:
        if self._token is not None:
            _opened.reset(self._token)

    def close(self) -> None:
        """Close the streams; harmless for those that have ended."""
        for stream in self._streams:
            stream.close()

    async def aclose(self) -> None:
        """Close the streams; harmless for those that have ended."""
        for stream in self._streams:
            await stream.close()


def leave_ended_loop(llm: LLM) -> None:
    """Let the LLM make a new asynchronous client on a new event loop: pooled connections belong to the old one.

    A client, or an HTTP client, of the user's own is the user's to keep on the right loop.
    """
    private: dict[str, Any] = llm.__pydantic_private__ or {}
    if "_aclient" not in private or private.get("_async_http_client") is not None:
        return
    if _HOME not in private:
        private[_HOME] = None if private["_aclient"] is not None else weakref.ref(asyncio.get_running_loop())
    home = private[_HOME]
    if home is not None and home() is not asyncio.get_running_loop():
        _let_go(private["_aclient"])
        private["_aclient"] = None
        private[_HOME] = weakref.ref(asyncio.get_running_loop())


def _let_go(client: Any) -> None:
    """Keep a client from closing its connections, when it is collected, on an event loop that is not theirs.

    OpenAI's and Anthropic's HTTP clients start a task for that on whichever loop runs then; where the loop of the
    connections has ended, it fails, and asyncio logs it. The sockets are closed when they are collected.
    """
    http = getattr(client, "_client", None)
    if type(http).__name__ == "AsyncHttpxClientWrapper":
        http.__class__ = type(http).__base__  # the class without that ``__del__``


def _client(llm: LLM, name: str) -> Any:
    """Its SDK client, made now if it would be made by the call; None when there is none to watch."""
    private: dict[str, Any] = llm.__pydantic_private__ or {}
    if name in private and private[name] is None and getattr(llm, "reuse_client", False) and OPENAI in class_names(llm):
        getattr(llm, f"_get{name}")()
    client = private.get(name)
    return client if callable(getattr(client, "with_options", None)) and hasattr(client, "request") else None


def _noting(request: Any) -> Any:
    def noting(*args: Any, **kwargs: Any) -> Any:
        return _note(request(*args, **kwargs), kwargs)

    return noting


def _noting_async(request: Any) -> Any:
    async def noting(*args: Any, **kwargs: Any) -> Any:
        return _note(await request(*args, **kwargs), kwargs)

    return noting


def _note(result: Any, kwargs: dict[str, Any]) -> Any:
    streams = _opened.get()
    if streams is not None and kwargs.get("stream") and hasattr(result, "close"):
        streams.append(result)
    return result


__all__ = ["Opened", "leave_ended_loop"]
