"""What an adapter is: one model, called in one way whoever serves it.

An adapter makes requests and nothing else: it never retries, waits or validates. That is what the guards do, around
its `BaseLLMAdapter.endpoint`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Protocol, cast

from brix_core.call import CallRequest, CallResponse
from brix_core.checks import positive
from brix_core.closing import Closing
from brix_core.drivers.workers import submit
from brix_core.endpoint import Endpoint
from brix_core.endpoints.sdk import CODEC
from brix_core.enforcement.outputs import GenerationResponse
from brix_core.errors import BrixConfigurationError
from brix_core.options import parse
from brix_core.pipeline import Pipeline
from brix_core.tokens import tokenizer_for
from brix_core.usage import Usage

log = logging.getLogger(__name__)

HEALTH_TIMEOUT: Final = 5.0
"""Longest time a health check takes, seconds, unless told otherwise."""

Prompt = str | Iterable[Any]
"""A text, which is one user message, or messages in OpenAI's chat format (for adapters of frameworks, theirs)."""


class Connections(Protocol):
    """What can be closed, from threads and from event loops."""

    def close(self) -> None:
        """Close it; what belongs to event loops, soon."""
        ...

    async def aclose(self) -> None:
        """Close it; what belongs to this event loop, at once."""
        ...


class BaseLLMAdapter(Closing, ABC):
    """One model of one provider.

    Use it from threads, tasks and event loops as you like, the blocking and the asynchronous methods side by side.
    Connections that an adapter has made itself are closed with their event loop, or by `close` and `aclose`, or at the
    end of a ``with`` block.

    Args:
        model: The model's name.

    Attributes:
        provider: The provider's name, as rate limits and failover know it.
        model: The model's name.
    """

    provider: str
    model: str

    def __init__(self, model: str) -> None:
        if not isinstance(model, str) or not model.strip():
            raise BrixConfigurationError(f"model must be a non-empty str, got {model!r}")
        self.model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.identity!r})"

    @cached_property
    def endpoint(self) -> Endpoint:
        """The model as guards call it; always the same object."""
        return self._endpoint()

    async def generate(self, prompt: Prompt, schema: Any = None, **kwargs: Any) -> GenerationResponse:
        """Make one request.

        Args:
            prompt: What to ask; see `Prompt`.
            schema: What the answer must fit: a Pydantic model, a dataclass, a TypedDict or a JSON Schema. Sent in the
                provider's own way where it has one, else written into the system prompt. The answer is not checked.
            **kwargs: The provider's parameters: ``temperature``, ``max_tokens``, ``top_p``, ...

        Raises:
            BrixConfigurationError: A parameter does not exist, or the schema cannot be used.
            Exception: What the provider's SDK or httpx raised; see `brix_core.endpoints.http_errors`.
        """
        request = self.request(prompt, schema, kwargs)
        begun = time.perf_counter()
        return self.generation(await self.endpoint.acall(request), request, time.perf_counter() - begun)

    def generate_sync(self, prompt: Prompt, schema: Any = None, **kwargs: Any) -> GenerationResponse:
        """As `generate`, blocking."""
        request = self.request(prompt, schema, kwargs)
        begun = time.perf_counter()
        return self.generation(self.endpoint.call(request), request, time.perf_counter() - begun)

    async def stream(self, prompt: Prompt, schema: Any = None, **kwargs: Any) -> AsyncIterator[str]:
        """As `generate`, the text piece by piece. Leaving early closes the connection.

        The request leaves when the first piece is asked for.
        """
        request = self.request(prompt, schema, kwargs, stream=True)
        async with aclosing(cast(Any, self.endpoint.astream(request))) as chunks:
            async for chunk in chunks:
                if text := self.text_of(chunk):
                    yield text

    def stream_sync(self, prompt: Prompt, schema: Any = None, **kwargs: Any) -> Iterator[str]:
        """As `stream`, blocking."""
        request = self.request(prompt, schema, kwargs, stream=True)
        with closing(cast(Any, self.endpoint.stream(request))) as chunks:
            for chunk in chunks:
                if text := self.text_of(chunk):
                    yield text

    async def health_check(self, timeout: float = HEALTH_TIMEOUT) -> bool:
        """Whether the provider answers, and accepts the key. Costs no tokens.

        Args:
            timeout: Longest time it may take, seconds.

        Returns:
            False for any failure: no connection, a refused key, an error of the provider, no answer in time. Nothing
            but a cancellation is raised.
        """
        positive("timeout", timeout)
        try:
            async with asyncio.timeout(timeout):
                await self._aprobe(timeout)
        except Exception as error:
            return self._unwell(error)
        return True

    def health_check_sync(self, timeout: float = HEALTH_TIMEOUT) -> bool:
        """As `health_check`, blocking."""
        positive("timeout", timeout)
        job = submit(lambda: self._probe(timeout))
        if not job.wait(timeout):
            return self._unwell(TimeoutError(f"no answer in {timeout:g} s"))
        return self._unwell(job.error) if job.error is not None else True

    def request(self, prompt: Prompt, schema: Any, params: Mapping[str, Any], *, stream: bool = False) -> CallRequest:
        """The request that `generate` makes, before any guard has seen it."""
        check: Callable[[Mapping[str, Any]], None] | None = getattr(self.endpoint, "check", None)
        if check is not None:
            check(params)
        request = self._requests.request(self.endpoint, self.messages(prompt), params, stream=stream)
        if schema is None:
            return request
        from brix_core.structured.response_schema import ResponseSchema  # not everybody asks for one

        compiled = ResponseSchema.of(schema)
        if not self.endpoint.structured(compiled, params):
            request = request.evolve(conversation=request.conversation.with_system(compiled.instructions))
        return request.evolve(schema=compiled)

    def messages(self, prompt: Prompt) -> list[Any]:
        """The prompt as the endpoint's own messages.

        Raises:
            BrixConfigurationError: It is no text and no list of messages, or empty.
        """
        if isinstance(prompt, str) and not prompt.strip():
            raise BrixConfigurationError(f"prompt is an empty text, got {prompt!r:.80}; give what to ask")
        if isinstance(prompt, str):
            return [self.endpoint.codec.message("user", prompt)]
        if isinstance(prompt, Mapping | bytes | bytearray) or not isinstance(prompt, Iterable):
            raise BrixConfigurationError(
                f"prompt must be a str or a list of messages, got {type(prompt).__name__}: {prompt!r:.80}"
            )
        listed = list(prompt)
        if not listed:
            raise BrixConfigurationError("prompt is an empty list; give a str, or at least one message")
        if self.endpoint.codec is CODEC:
            for number, message in enumerate(listed):
                if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                    raise BrixConfigurationError(
                        f"prompt[{number}] must be a dict with a role, as in OpenAI's chat format, got {message!r:.80}"
                    )
        return listed

    def generation(self, response: CallResponse, request: CallRequest, seconds: float) -> GenerationResponse:
        """What is known about an answer.

        Args:
            response: The answer.
            request: What it answers.
            seconds: How long it took.
        """
        # Where the provider says nothing it is our own count; never 0, which limits would take for free.
        usage = response.usage or _counted(response, request)
        return GenerationResponse(
            output=response.text,
            provider=self.provider,
            model=response.model or self.model,
            tokens_used=usage.total_tokens,
            latency_ms=seconds * 1_000,
            timestamp=datetime.fromtimestamp(request.call.started_at, UTC),
            finish_reason=response.finish_reason,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            tokens_estimated=usage.estimated,
            raw=response.raw,
        )

    def text_of(self, chunk: Any) -> str:
        """The visible text of one of the endpoint's chunks."""
        return str(chunk.text)

    def close(self) -> None:
        """Close the connections that the adapter has made; those of other event loops soon."""
        if self._connections is not None:
            self._connections.close()

    async def aclose(self) -> None:
        """As `close`; those of this event loop are closed when it returns."""
        if self._connections is not None:
            await self._connections.aclose()

    @abstractmethod
    def _endpoint(self) -> Endpoint:
        """Make the endpoint."""

    @abstractmethod
    async def _aprobe(self, timeout: float) -> None:
        """A cheap request that costs no tokens; raises when it fails."""

    @abstractmethod
    def _probe(self, timeout: float) -> None:
        """As `_aprobe`, blocking."""

    @property
    def _connections(self) -> Connections | None:
        """The connections that the adapter has made itself."""
        return None

    @cached_property
    def _requests(self) -> Pipeline:
        """Makes requests; nothing is driven through its guards."""
        return Pipeline(parse({}))

    def _unwell(self, error: BaseException) -> bool:
        if not isinstance(error, Exception):
            raise error
        log.debug("health check of %s failed: %s", self.endpoint.identity, type(error).__name__)
        return False


def _counted(response: CallResponse, request: CallRequest) -> Usage:
    tokenizer = tokenizer_for(request.model)
    said = [response.text, *(part for call in response.tool_calls for part in (call.name, call.arguments))]
    output = sum(map(tokenizer.count, said))
    return Usage(input_tokens=request.prompt_tokens(), output_tokens=output, estimated=True)


__all__ = ["HEALTH_TIMEOUT", "BaseLLMAdapter", "Connections", "Prompt"]
