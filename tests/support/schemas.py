"""A provider whose answers are scripted, and schemas in every form, for the tests of structured output."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel
from typing_extensions import TypedDict

from brix_core.call import CallRequest, CallResponse, ToolCall
from brix_core.guards.schema import PARSED
from brix_core.pipeline import Pipeline
from brix_core.structured.response_schema import ResponseSchema
from tests.support.fake import FakeEndpoint, pipeline
from tests.support.modes import Mode
from tests.support.virtual import VirtualClock, run_virtual


class City(BaseModel):
    name: str
    people: int


@dataclass
class CityRecord:
    name: str
    people: int


class CityDict(TypedDict):
    name: str
    people: int


CITY_JSON: dict[str, Any] = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
}
VALID = '{"name": "Oslo", "people": 700000}'
OSLO = City(name="Oslo", people=700_000)
KINDS: dict[str, tuple[Any, Any]] = {
    "pydantic": (City, OSLO),
    "dataclass": (CityRecord, CityRecord("Oslo", 700_000)),
    "typeddict": (CityDict, {"name": "Oslo", "people": 700_000}),
    "json": (CITY_JSON, {"name": "Oslo", "people": 700_000}),
}
INVALID = (
    '{"name": "Oslo"}',
    '{"name": "Oslo", "people": "many"}',
    '{"name": "Oslo", "people": 7',
    "I cannot answer that in JSON.",
    "[]",
    "{}",
    "null",
)


def calls(name: str, arguments: str = VALID, **more: Any) -> CallResponse:
    """An answer that is a tool call."""
    tool = ToolCall(id="c1", name=name, arguments=arguments)
    return CallResponse(text="", tool_calls=(tool,), finish_reason="tool_calls", **more)


@dataclass
class Model(FakeEndpoint):
    """Answers by its script, whose last entry is repeated: texts, whole responses, or exceptions to raise."""

    replies: Sequence[Any] = (VALID,)
    offers: Sequence[Any] = ()
    asked: list[CallRequest] = field(default_factory=list)

    def schemas(self, params: Any) -> Sequence[Any]:
        return self.offers

    def prompts(self) -> list[list[tuple[str, str]]]:
        """The prompts it got: role and text of each message."""
        return [[(m["role"], m["content"]) for m in request.conversation.messages] for request in self.asked]

    def _arrive(self, request: CallRequest) -> int:
        with self._lock:
            self.asked.append(request)
        return super()._arrive(request)

    def _raise(self, number: int) -> None:
        reply = self._reply(number)
        if isinstance(reply, BaseException):
            raise reply

    def _reply(self, number: int) -> Any:
        reply = self.replies[min(number, len(self.replies) - 1)]
        return CallResponse(text=reply, finish_reason="stop") if isinstance(reply, str) else reply

    def _of(self, request: CallRequest) -> CallResponse:
        number = max(place for place, asked in enumerate(self.asked) if asked is request)  # a retry sends it again
        reply: CallResponse = self._reply(number)
        return reply._replace(usage=self.usage, model=self.model(request.params))

    def _chunks(self, request: CallRequest) -> Sequence[str]:
        text = self._of(request).text
        return [text[start : start + 5] for start in range(0, len(text), 5)]

    def _answer(self, number: int, request: CallRequest) -> CallResponse:
        self._raise(number)
        return self._of(request)

    def finish(self, chunks: Sequence[str], text: str, request: CallRequest) -> CallResponse:
        return self._of(request)._replace(text=text)


class Got(NamedTuple):
    """What a caller got: the instance (None where there is none) and the text, of a stream its chunks."""

    instance: Any
    text: str
    request: CallRequest


def ask(mode: Mode, pipe: Pipeline, model: Model, prompt: str = "Where?", **more: Any) -> Got:
    """One call."""
    request = new_request(mode, pipe, model, prompt, **more)
    if mode.driver == "async":
        clock = pipe.clock
        assert isinstance(clock, VirtualClock)
        return run_virtual(lambda: aask(pipe, request), clock)
    text = "".join(pipe.stream(request)) if request.stream else pipe.call(request).text
    return Got(request.call.metadata.get(PARSED), text, request)


async def aask(pipe: Pipeline, request: CallRequest) -> Got:
    """The same, on an event loop."""
    await asyncio.sleep(0)
    if request.stream:
        text = "".join([chunk async for chunk in pipe.astream(request)])
    else:
        text = (await pipe.acall(request)).text
    return Got(request.call.metadata.get(PARSED), text, request)


def new_request(
    mode: Mode,
    pipe: Pipeline,
    model: Model,
    prompt: str = "Where?",
    messages: Sequence[Any] = (),
    session: str = "s",
    schema: ResponseSchema | None = None,
    **params: Any,
) -> CallRequest:
    """A request in the way of the mode."""
    listed = list(messages) or [{"role": "user", "content": prompt}]
    return pipe.request(model, listed, params, stream=mode.streamed, session_id=session, schema=schema)


def setup(*replies: Any, mode: str = "validated", **options: Any) -> tuple[Any, Model]:
    """A pipeline and its model."""
    clock = VirtualClock()
    options.setdefault("response_schema", City)
    return pipeline(clock, stream_mode=mode, **options), Model(clock, replies=replies or (VALID,))


def trace_of(pipe: Any) -> dict[str, Any]:
    trace: dict[str, Any] = pipe.traces.get_traces()[0]
    return trace


def decisions(pipe: Any, decision: str) -> list[dict[str, Any]]:
    return [made for made in trace_of(pipe)["decisions"] if made["decision"] == decision]


__all__ = [
    "CITY_JSON",
    "INVALID",
    "KINDS",
    "OSLO",
    "VALID",
    "City",
    "CityDict",
    "CityRecord",
    "Got",
    "Model",
    "aask",
    "ask",
    "calls",
    "decisions",
    "new_request",
    "setup",
    "trace_of",
]
