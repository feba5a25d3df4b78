"""`BrixEventHandler`: traces of LLMs that nobody guards, from the events they dispatch."""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.instrumentation.events.span import SpanDropEvent  # type: ignore[attr-defined]
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.structured_llm import StructuredLLM

from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.drivers.stepwise import Stepwise
from brix_core.errors import BrixError, BrixInternalError, BrixUnknownPriceError
from brix_core.flow import Flow, compose, send
from brix_core.model_limits import max_output_tokens
from brix_core.options import Prices, parse
from brix_core.pipeline import Pipeline
from brix_core.store import MemoryStore
from brix_llamaindex.chunks import DeltaReader, empty_response, text_of
from brix_llamaindex.events import RUN_TAG
from brix_llamaindex.messages import CODEC, MessageCodec, Prompt, tool_calls_of
from brix_llamaindex.usage import finish_reason_of, usage_of

MAX_OPEN: Final = 1_000
"""Calls under way that are remembered; beyond them, the oldest is noted as abandoned."""


class UnseenError(Exception):
    """A failure of which only the words are known."""


class BrixEventHandler(BaseEventHandler):
    """Traces of all LLMs of the application, without guarding any of them.

    Add it to LlamaIndex's root dispatcher. Entries are those of guarded LLMs, `get_traces` likewise; what a call cost
    is in them when its model has a price. Calls of guarded LLMs are left to their own traces. It watches only: the
    dispatcher swallows what a handler raises, so nothing can be refused or stopped from here.

    Args:
        prices: As the option of `guard`.
        trace_buffer_size: Entries kept; the oldest go first.
        session_id: The session of calls made in none; a new UUID4 when left out.
        clock: The time, for tests.

    Example:
        >>> from llama_index.core.instrumentation import get_dispatcher
        >>> from llama_index.core.llms import MockLLM
        >>> handler = BrixEventHandler()
        >>> get_dispatcher().add_event_handler(handler)
        >>> _ = MockLLM().complete("Hello")
        >>> get_dispatcher().event_handlers.remove(handler)
        >>> [(trace["model"], trace["outcome"]) for trace in handler.get_traces()]
        [('MockLLM', 'ok')]
    """

    _pipeline: Pipeline = PrivateAttr()
    _metered: Any = PrivateAttr()
    _open: OrderedDict[str, _Open] = PrivateAttr()
    _lock: Any = PrivateAttr()

    def __init__(
        self,
        *,
        prices: Prices | None = None,
        trace_buffer_size: int = 1_000,
        session_id: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        options = {"prices": prices, "trace_buffer_size": trace_buffer_size, "session_id": session_id, "clock": clock}
        # A store of its own: what is watched is charged to nobody.
        self._pipeline = Pipeline(parse({**options, "max_cost_usd": math.inf, "store": MemoryStore()}))
        guards = [guard for guard in self._pipeline.guards if guard is not self._pipeline.traces]
        self._metered = compose(guards)
        self._open = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def class_name(cls) -> str:
        """Its name, as LlamaIndex serialises it."""
        return "BrixEventHandler"

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of all calls that have ended, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._pipeline.traces.get_traces(session_id)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Take note of an event."""
        key = event.span_id or ""
        if isinstance(event, LLMChatStartEvent | LLMCompletionStartEvent):
            if RUN_TAG not in event.tags:
                self._begin(key, event)
        elif isinstance(event, LLMChatInProgressEvent | LLMCompletionInProgressEvent):
            call = self._open.get(key)
            if call is not None:
                call.chunk(event.response)
        elif isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            call = self._take(key)
            if call is not None:
                call.finish(event.response)
        elif isinstance(event, ExceptionEvent | SpanDropEvent):
            call = self._take(key)
            if call is not None:
                call.fail(_error_of(event))

    def _begin(self, key: str, event: LLMChatStartEvent | LLMCompletionStartEvent) -> None:
        if event.model_dict.get("class_name") == StructuredLLM.class_name():
            return  # it asks another LLM, which tells of the call itself
        completes = isinstance(event, LLMCompletionStartEvent)
        asked = [Prompt(event.prompt)] if isinstance(event, LLMCompletionStartEvent) else event.messages
        latest = _latest.get() or ""
        around = self._open.get(latest)
        if around is not None and around.makes(event, asked) and around.is_running(latest):
            return
        model = _SeenModel(event.model_dict, event.additional_kwargs)
        request = self._pipeline.request(model, asked, event.additional_kwargs)
        step = Stepwise(self._pipeline.traces.flow(request, self._watched), self._pipeline.clock)
        step.begin()
        call = _Open(step, request, event.model_dict, asked, completes=completes)
        with self._lock:
            self._open[key] = call
            oldest = self._open.popitem(last=False)[1] if len(self._open) > MAX_OPEN else None
        if oldest is not None:
            oldest.step.close()
        _latest.set(key)

    def _watched(self, request: CallRequest) -> Flow:
        """The meter; nothing for a model without a price."""
        try:
            response: CallResponse = yield from self._metered(request)
            return response
        except BrixUnknownPriceError:
            return (yield from send(request))

    def _take(self, key: str) -> _Open | None:
        with self._lock:
            return self._open.pop(key, None)


_latest: ContextVar[str | None] = ContextVar("brix_llamaindex_latest_call", default=None)
"""The span of the latest call begun here."""


_DECORATORS: Final = llm_chat_callback.__globals__
"""Names of the module whose functions stand around every method of an LLM."""


class _Open:
    """A call under way."""

    def __init__(
        self, step: Stepwise, request: CallRequest, model_dict: dict[str, Any], asked: Sequence[Any], *, completes: bool
    ) -> None:
        self.step = step
        self._request = request
        self._model_dict = model_dict
        self._asked = asked
        self._reader = DeltaReader()
        self._completes = completes
        self._thread = threading.get_ident()

    def makes(self, event: LLMChatStartEvent | LLMCompletionStartEvent, asked: Sequence[Any]) -> bool:
        """Whether a call that begins while this one is under way is how the LLM makes this one.

        Some LLMs chat by completing a text, or answer asynchronous calls by blocking ones.
        """
        by_completing = isinstance(event, LLMCompletionStartEvent) and not self._completes
        return event.model_dict == self._model_dict and (by_completing or list(asked) == list(self._asked))

    def is_running(self, key: str) -> bool:
        """Whether what happens now happens within the LLM's method; a stream may be open without being read.

        Args:
            key: Its span, which LlamaIndex's decorators have at hand.
        """
        if threading.get_ident() != self._thread:
            return True  # a worker of the LLM's own: only these see the same context
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_globals is _DECORATORS and frame.f_locals.get("span_id") == key:
                return True
            frame = frame.f_back
        return False

    def chunk(self, response: Any) -> None:
        with suppress(BrixError):  # a limit that nobody keeps here
            self.step.chunk(self._reader.read(response))

    def finish(self, response: Any) -> None:
        last: Any = empty_response(completion=self._completes) if response is None else response
        self.step.finish(
            CallResponse(
                text=text_of(last),
                usage=usage_of(last),
                model=self._request.model,
                tool_calls=() if self._completes else tool_calls_of(last.message),
                finish_reason=finish_reason_of([last]),
            )
        )

    def fail(self, error: BaseException) -> None:
        with suppress(BaseException):  # the step raises it again; it is not ours to raise
            self.step.fail(error)


class _SeenModel:
    """A model that somebody else calls, as an endpoint the guards can ask about it."""

    codec: MessageCodec = CODEC
    streams = True
    provider: str | None = None

    def __init__(self, model_dict: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        name = params.get("model") or model_dict.get("model") or model_dict.get("model_name")
        self._class = str(model_dict.get("class_name") or "LLM")
        self._model = name if isinstance(name, str) and name not in ("", "unknown") else self._class
        self._cap = params.get("max_tokens") or model_dict.get("max_tokens")

    @property
    def identity(self) -> str:
        return self._class if self._model == self._class else f"{self._class}/{self._model}"

    def model(self, params: Mapping[str, Any]) -> str:
        return self._model

    def requested_cap(self, params: Mapping[str, Any]) -> int | None:
        return self._cap if type(self._cap) is int else None

    def longest_output(self, params: Mapping[str, Any]) -> int | None:
        return max_output_tokens(self._model)

    def choices(self, params: Mapping[str, Any]) -> int:
        return 1

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        tools = params.get("tools")
        return tools if isinstance(tools, list) else ()

    def structured(self, schema: object, params: Mapping[str, Any]) -> bool:
        return False

    def _not_here(self, *arguments: Any, **named: Any) -> Any:
        raise BrixInternalError("a model that is called elsewhere cannot be called from here")

    call = acall = stream = astream = read_chunk = finish = assemble = as_chunks = _not_here


def _error_of(event: ExceptionEvent | SpanDropEvent) -> BaseException:
    if isinstance(event, ExceptionEvent):
        return event.exception
    return sys.exception() or UnseenError(event.err_str)  # the dispatcher tells of it while it is handled


__all__ = ["MAX_OPEN", "BrixEventHandler", "UnseenError"]
