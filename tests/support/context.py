"""Pipelines with a context guard, and an endpoint that writes summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brix_core.call import CallRequest
from brix_core.clock import Clock
from brix_core.endpoint import Endpoint
from brix_core.options import parse
from brix_core.pipeline import Pipeline
from brix_core.store import MemoryStore
from tests.support.fake import FakeEndpoint
from tests.support.modes import Mode
from tests.support.virtual import VirtualClock, run_virtual


@dataclass
class ContextEndpoint(FakeEndpoint):
    """Keeps what it was sent; asked for a summary, it gives `summary` (or what that makes of the request)."""

    summary: str | BaseException | Callable[[CallRequest], str] = "They talked."
    requests: list[CallRequest] = field(default_factory=list)

    def schemas(self, params: Mapping[str, Any]) -> Sequence[Any]:
        return params.get("tools") or ()

    @staticmethod
    def is_summary(request: CallRequest) -> bool:
        return str(request.conversation.messages[0]["content"]).startswith("Below is the earlier part")

    @property
    def summaries(self) -> list[str]:
        """The prompts of the summaries it was asked for."""
        return [request.conversation.messages[0]["content"] for request in self.requests if self.is_summary(request)]

    @property
    def last(self) -> list[Any]:
        """The messages it was sent last."""
        return self.requests[-1].conversation.messages

    def _arrive(self, request: CallRequest) -> int:
        self.requests.append(request)
        return super()._arrive(request)

    def _chunks(self, request: CallRequest) -> Sequence[str]:
        if not self.is_summary(request):
            return ["ans", "wer"]
        if isinstance(self.summary, BaseException):
            raise self.summary
        return [self.summary if isinstance(self.summary, str) else self.summary(request)]


def context_pipeline(
    clock: Clock, fallbacks: Sequence[Endpoint] = (), summary: Endpoint | None = None, **options: Any
) -> Pipeline:
    """A pipeline with a store of its own, and who writes summaries."""
    return Pipeline(parse({"store": MemoryStore(), **options, "clock": clock}), fallbacks, summary)


def converse(mode: Mode, pipe: Pipeline, request: CallRequest) -> Any:
    """The text of a call, or what it raised."""

    async def main() -> str:
        if mode.streamed:
            return "".join([chunk async for chunk in pipe.astream(request)])
        return (await pipe.acall(request)).text

    try:
        if mode.driver == "async":
            assert isinstance(pipe.clock, VirtualClock)
            return run_virtual(main, pipe.clock)
        return "".join(pipe.stream(request)) if mode.streamed else pipe.call(request).text
    except Exception as error:
        return error


__all__ = ["ContextEndpoint", "context_pipeline", "converse"]
