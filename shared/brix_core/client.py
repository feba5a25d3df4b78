"""`BRIX.wrap`: a client of the openai or anthropic SDK, or your own, behind guards.

::

    client = BRIX.wrap(openai.AsyncOpenAI(), max_cost_usd=1.0, per_call_timeout=10.0, max_retries=3)
    answer = await client.complete([{"role": "user", "content": "Capital of France?"}], model="gpt-4o-mini")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack, cast, overload

from brix_core.call import CallRequest, CallResponse
from brix_core.checks import at_least
from brix_core.completion import Completion, CompletionStream
from brix_core.endpoints.recognise import ClientEndpoint, endpoint_for
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Guard
from brix_core.guards.schema import PARSED
from brix_core.messages import Messages, check_messages, listed
from brix_core.options import GuardOptions, OtherOptions, parse
from brix_core.pipeline import Pipeline
from brix_core.session import Session
from brix_core.structured.object_stream import ObjectStream

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    from brix_core.audit.replay_client import BrixReplayClient

    Answer = DefaultingTypeVar("Answer", default=Completion)
else:
    Answer = TypeVar("Answer")

_T = TypeVar("_T")

MAX_ROUTES: Final = 256
"""Models whose endpoints a client keeps ready."""


@dataclass(frozen=True, slots=True, repr=False)
class GuardChain:
    """The active guards of a client.

    Attributes:
        names: Their names, the outermost first.
        guards: The guards themselves, layer by layer, the outermost first.
    """

    names: tuple[str, ...]
    guards: tuple[Guard, ...]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<GuardChain {' > '.join((*self.names, 'model'))}>"


class BrixClient(Generic[Answer]):
    """A client behind guards. Made by `BRIX.wrap`.

    Its answers are `Completion`s, or instances of its ``response_schema``.

    It keeps no connection and no event loop of its own: use it from threads, tasks and loops as you like, the
    blocking and the asynchronous methods over any kind of client.

    Args:
        client: What to guard.
        model: The model asked for when a call names none.
        options: See `GuardOptions`.
    """

    def __init__(self, client: Any, model: str | None, options: GuardOptions) -> None:
        parsed = parse(options)
        self._endpoint = endpoint_for(client, _checked_model(model))
        self._fallbacks = tuple(
            _other(f"fallbacks[{number}]", given, self._endpoint) for number, given in enumerate(parsed.fallbacks)
        )
        summary = parsed.configs["context"].context_summary_model if "context" in parsed.configs else None
        writer = None if summary is None else _other("context_summary_model", summary, self._endpoint)[0]
        self._pipeline = Pipeline(parsed, [endpoint for endpoint, _ in self._fallbacks], writer)
        self._routes: dict[str, tuple[ClientEndpoint, Pipeline]] = {}

    def __repr__(self) -> str:
        return f"<BrixClient {self._endpoint.identity} {' > '.join(self._pipeline.names)}>"

    @property
    def context(self) -> Session:
        """The session the next call belongs to: that of ``with session(...)``, else the client's own."""
        return self._pipeline.session()

    @property
    def chain(self) -> GuardChain:
        """The active guards, in order."""
        return GuardChain(self._pipeline.names, self._pipeline.guards)

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of this client's calls, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._pipeline.traces.get_traces(session_id)

    async def complete(self, messages: Messages, model: str | None = None, **kwargs: Any) -> Answer:
        """Ask the model.

        Args:
            messages: Dicts in OpenAI's chat format (Anthropic's content blocks included), or a str as the
                only user message.
            model: The model; that of `BRIX.wrap` when left out.
            **kwargs: The SDK's own parameters (tools, response_format, stop, max_tokens, extra_headers, ...),
                passed on untouched. ``system="..."`` is put before the messages, for every kind of client.

        Returns:
            The answer. With a ``response_schema``, a valid instance of it; a `Completion` only where the model asks
            for tools that were given: its ``tool_calls`` are to be run first.

        Raises:
            BrixConfigurationError: Bad messages, a parameter that does not exist, or no model.
            BrixSchemaError: No answer was a valid instance of ``response_schema``.
            BrixGuardError: A guard refused the call or gave it up.
            Exception: What the SDK raised, where no guard had anything to say about it.
        """
        pipeline, begin = self._prepared(messages, model, kwargs, stream=False)
        request = begin()
        return cast(Answer, _result(await pipeline.acall(request), request))

    async def acomplete(self, messages: Messages, model: str | None = None, **kwargs: Any) -> Answer:
        """The same as `complete`."""
        return await self.complete(messages, model, **kwargs)

    def complete_sync(self, messages: Messages, model: str | None = None, **kwargs: Any) -> Answer:
        """As `complete`, blocking."""
        pipeline, begin = self._prepared(messages, model, kwargs, stream=False)
        request = begin()
        return cast(Answer, _result(pipeline.call(request), request))

    @overload
    def stream(
        self: BrixClient[Completion], messages: Messages, model: str | None = None, **kwargs: Any
    ) -> CompletionStream: ...

    @overload
    def stream(self, messages: Messages, model: str | None = None, **kwargs: Any) -> ObjectStream: ...

    def stream(self, messages: Messages, model: str | None = None, **kwargs: Any) -> CompletionStream | ObjectStream:
        """As `complete`, piece by piece: for ``for`` and for ``async for``.

        Gives text; with a ``response_schema``, the value as it grows, and last the valid instance.

        What is wrong with the arguments is raised here; the request leaves when the first piece is asked for,
        and belongs to the session of this moment.
        """
        pipeline, begin = self._prepared(messages, model, kwargs, stream=True)
        text = CompletionStream(pipeline, partial(begin, session_id=self.context.session_id))
        return text if pipeline.schema is None else ObjectStream(text)

    def _prepared(
        self, messages: Messages, model: str | None, kwargs: dict[str, Any], stream: bool
    ) -> tuple[Pipeline, Callable[..., CallRequest]]:
        """Check the arguments, before anything is begun or reserved."""
        prompt = listed(messages, kwargs)
        endpoint, pipeline = self._route(_checked_model(model))
        endpoint.check(kwargs)
        if stream:  # begun later: what is wrong is told now
            check_messages(prompt)
            return pipeline, partial(pipeline.request, endpoint, prompt, kwargs, stream=True)
        return pipeline, partial(pipeline.request, endpoint, prompt, kwargs, check=check_messages)

    def _route(self, model: str | None) -> tuple[ClientEndpoint, Pipeline]:
        """The endpoint of a model, and the guards with the fallbacks that follow it."""
        name = model or self._endpoint.default_model
        if not name:
            raise BrixConfigurationError(
                "no model is known: name one in the call, complete(messages, model=...), or for all calls, "
                "BRIX.wrap(client, model=...)"
            )
        found = self._routes.get(name)
        if found is None:
            pipeline = self._pipeline
            if self._fallbacks:
                pipeline = pipeline.with_fallbacks(
                    [endpoint.with_model(name) if follows else endpoint for endpoint, follows in self._fallbacks]
                )
            found = self._endpoint.with_model(name), pipeline
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[name] = found
        return found


class BRIX:
    """The entry point: `BRIX.wrap`.

    Example:
        >>> class Parrot:
        ...     def complete(self, prompt, **options):
        ...         return prompt
        >>> client = BRIX.wrap(Parrot(), max_retries=2, per_call_timeout=10.0)
        >>> client.complete_sync("Hello")
        'Hello'
        >>> client.chain
        <GuardChain observability > retry > timeout > model>
    """

    @overload
    @staticmethod
    def wrap(
        client: Any, *, model: str | None = None, response_schema: type[_T], **options: Unpack[OtherOptions]
    ) -> BrixClient[_T]: ...

    @overload
    @staticmethod
    def wrap(
        client: Any, *, model: str | None = None, response_schema: None = None, **options: Unpack[OtherOptions]
    ) -> BrixClient: ...

    @overload
    @staticmethod
    def wrap(
        client: Any, *, model: str | None = None, response_schema: Mapping[str, Any], **options: Unpack[OtherOptions]
    ) -> BrixClient[dict[str, Any]]: ...

    @staticmethod
    def wrap(
        client: Any, *, model: str | None = None, response_schema: Any = None, **options: Unpack[OtherOptions]
    ) -> BrixClient[Any]:
        """Put guards around a client.

        Args:
            client: ``openai.OpenAI``, ``AsyncOpenAI`` or an Azure variant, ``anthropic.Anthropic`` or
                ``AsyncAnthropic``, or an `LLMClient`. It stays as it is; its own retries are not used.
            model: The model asked for when a call names none.
            response_schema: A Pydantic model, a dataclass, a TypedDict or a JSON Schema: answers are valid instances.
            **options: See `GuardOptions`. ``fallbacks`` holds, in order, names of models (of the same
                client), ``(client, "model")`` pairs, or clients, which are asked for the model of the call.

        Raises:
            BrixConfigurationError: The client is of no known kind, or an option cannot be used.
        """
        if isinstance(client, BrixClient):
            raise BrixConfigurationError("this client is guarded already; wrap the client inside it once")
        return BrixClient(client, model, {**options, "response_schema": response_schema})

    @staticmethod
    def replay(
        session_id: str, log_path: str | PathLike[str], schema: Any = None, *, strict: bool = True
    ) -> BrixReplayClient:
        """A recorded session again: its answers, without a model, a network or a cost.

        Args:
            session_id: ``client.context.session_id`` of the recording.
            log_path: The folder it was logged in.
            schema: What its answers are instances of, when it was recorded with a ``response_schema``.
            strict: Whether a prompt that is given decides which answer comes, and one that was not recorded is an
                error; else answers come in the recorded order.

        Raises:
            BrixReplayError: There is no recording of this session.
        """
        from brix_core.audit.replay_client import BrixReplayClient

        return BrixReplayClient(session_id, log_path, schema, strict=strict)

    @staticmethod
    def purge_sessions(log_path: str | PathLike[str], older_than_days: float = 7.0) -> int:
        """Delete recordings of sessions that nothing was added to for so many days.

        Args:
            log_path: The folder of the log. The log itself stays.
            older_than_days: Days, >= 0.

        Returns:
            How many files were deleted.
        """
        from brix_core.audit.recordings import purge

        return purge(Path(log_path), at_least("older_than_days", older_than_days, 0.0))


def _result(response: CallResponse, request: CallRequest) -> Any:
    """What a caller gets: the valid instance where there is one, else the answer and what is known about it."""
    return response.parsed if PARSED in request.call.metadata else Completion.of(response, request.call)


def _other(place: str, given: Any, first: ClientEndpoint) -> tuple[ClientEndpoint, bool]:
    """Another endpoint than the first, and whether it follows the model of the call."""
    try:
        if isinstance(given, str):
            return first.with_model(_checked_model(given)), False
        if isinstance(given, tuple | list):
            client, model = given
            return endpoint_for(client, _checked_model(model)), False
        return endpoint_for(given), hasattr(given, "with_options")
    except (BrixConfigurationError, ValueError) as error:
        raise BrixConfigurationError(
            f'{place} must be a model\'s name, a client or a (client, "model") pair: {error}'
        ) from error


def _checked_model(model: Any) -> str | None:
    if model is None or (isinstance(model, str) and model.strip()):
        return model
    raise BrixConfigurationError(f"model must be a non-empty str, got {model!r}")


__all__ = ["BRIX", "MAX_ROUTES", "BrixClient", "GuardChain", "Messages"]
