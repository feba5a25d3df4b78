"""EnforcementEngine: a prompt and a schema in, valid data out.

Its face is its own; its inside is the guards' (`brix_core.guards`), in their one order: cache, schema guard (heals),
failover, retries, circuit breaker, budget, rate limit. No request goes round them, be it the first, a retry, a heal, or
one to a fallback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from brix_core.cache import Cache
from brix_core.enforcement.batching import Progress, gathered, in_threads
from brix_core.enforcement.building import Resilience, adapters_of, checked_collector, pipeline_of
from brix_core.enforcement.failover import FailoverChain
from brix_core.enforcement.outputs import EnforcedOutput
from brix_core.enforcement.policies import CircuitBreakerConfig, RetryPolicy
from brix_core.enforcement.rate_limits import PerProviderRateLimiter, RateLimiter
from brix_core.enforcement.streaming import EnforcedStream
from brix_core.enforcement.training.examples import plain
from brix_core.enforcement.validators import BaseValidator, ValidatedSchema
from brix_core.enforcement.verdicts import Asked, unsent
from brix_core.errors import BrixConfigurationError, BrixInternalError
from brix_core.failures import is_control_flow
from brix_core.session import Session

if TYPE_CHECKING:
    from brix_core.enforcement.adapters.base import BaseLLMAdapter, Prompt
    from brix_core.structured.response_schema import ResponseSchema

log = logging.getLogger(__name__)

MAX_CONCURRENCY: Final = 10
"""Prompts of a batch that are under way at a time, unless told otherwise."""


class _Ready(NamedTuple):
    """A prompt, looked at: what a request is made of. `prompt` is what a collector gets."""

    prompt: Any
    schema: Any
    messages: list[Any]
    params: dict[str, Any]
    compiled: ResponseSchema


class EnforcementEngine:
    """Asks a model until its answer fits a schema.

    `enforce` and its kin give an `EnforcedOutput`, never None: with ``success=False`` it says what went wrong, be it
    the answers, the provider, or a guard that refused the call. Raised are only wrong use (`BrixConfigurationError`)
    and what is no failure: cancellations and interrupts.

    Use it from threads, tasks and event loops as you like, the blocking and the asynchronous methods side by side.

    Args:
        adapter: The model: an adapter, or a `FailoverChain` of them.
        validator: Says whether an answer fits: `PydanticValidator` or `JSONValidator`.
        max_retries: How often an answer that does not fit is asked for again, with what is wrong with it; errors know
            it as ``max_schema_retries``.
        collector: Gets each valid answer that was generated: ``collect(prompt=, schema=, output=)``. The prompt is a
            text; where messages were given, or a system text, it is all messages as plain JSON, in OpenAI's format.
        cache: Keeps valid answers; see `brix_core.guards.cache`.
        retry_policy: How failed requests are tried again; ``RetryPolicy()`` when left out.
        use_circuit_breaker: Leave a provider alone that keeps failing. A chain does so in any case.
        circuit_breaker_config: When, and for how long.
        rate_limiter: A rate for all adapters, or one for each provider.
        **options: Further options of the guards (`brix_core.GuardOptions`), such as ``max_cost_usd``,
            ``max_context_tokens``, ``total_timeout``, ``session_id`` or ``store``.

    Raises:
        BrixConfigurationError: Something cannot be used, or is said twice.

    Example:
        >>> from brix_core.enforcement import EnforcementEngine, JSONValidator, OpenAIAdapter, RateLimiter
        >>> engine = EnforcementEngine(
        ...     OpenAIAdapter(api_key="your-key", model="gpt-4o-mini"),
        ...     JSONValidator(),
        ...     rate_limiter=RateLimiter(requests_per_minute=60),
        ...     max_cost_usd=1.0,
        ... )
        >>> engine
        <EnforcementEngine openai:api.openai.com/gpt-4o-mini observability > retry > budget > rate_limit>
    """

    def __init__(
        self,
        adapter: BaseLLMAdapter | FailoverChain,
        validator: BaseValidator,
        max_retries: int = 3,
        collector: Any = None,
        cache: Cache | None = None,
        retry_policy: RetryPolicy | None = None,
        use_circuit_breaker: bool = False,
        circuit_breaker_config: CircuitBreakerConfig | None = None,
        rate_limiter: RateLimiter | PerProviderRateLimiter | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(validator, BaseValidator):
            raise BrixConfigurationError(
                f"validator must be a PydanticValidator() or a JSONValidator(), got {validator!r:.200}"
            )
        resilience = Resilience(cache, retry_policy, use_circuit_breaker, circuit_breaker_config, rate_limiter)
        self.adapter = adapter
        self.validator = validator
        self._adapters = adapters_of(adapter)
        self._collect = checked_collector(collector)
        self._told: set[str] = set()
        self._pipeline = pipeline_of(adapter, max_retries, resilience, options)

    def __repr__(self) -> str:
        chain = " > ".join(self._pipeline.names)
        return f"<EnforcementEngine {self._adapters[0].endpoint.identity} {chain}>"

    @property
    def context(self) -> Session:
        """The session the next call belongs to: that of ``with session(...)``, else the engine's own."""
        return self._pipeline.session()

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of this engine's calls, newest first.

        Args:
            session_id: Only those of this session.
        """
        return self._pipeline.traces.get_traces(session_id)

    async def enforce(self, prompt: Prompt, schema: Any, **kwargs: Any) -> EnforcedOutput:
        """Ask until the answer fits.

        Args:
            prompt: A text, or messages as the adapter takes them.
            schema: What the answer must fit, as the validator takes it.
            **kwargs: The model's own parameters (temperature, max_tokens, ...), passed on untouched. ``system="..."``
                is put before the prompt, for every adapter.

        Returns:
            Valid data, or why there is none.

        Raises:
            BrixConfigurationError: A bad prompt or schema, or a parameter that does not exist.
        """
        return await self._run(self._begun(self._checked(prompt, schema, kwargs)))

    def enforce_sync(self, prompt: Prompt, schema: Any, **kwargs: Any) -> EnforcedOutput:
        """As `enforce`, blocking."""
        return self._run_sync(self._begun(self._checked(prompt, schema, kwargs)))

    def enforce_stream(self, prompt: Prompt, schema: Any, **kwargs: Any) -> EnforcedStream:
        """As `enforce`, with the value as it grows: for ``async for`` and for ``for``.

        Gives dicts or lists as they grow, which are a preview and not validated, and last the `EnforcedOutput`. What
        has been shown cannot be asked for again, so an answer that does not fit is a failure; an engine with
        ``stream_mode="validated"`` shows nothing before it fits, and heals. The request leaves when the first item is
        asked for, and belongs to the session of this moment.

        Args:
            prompt: See `enforce`.
            schema: See `enforce`.
            **kwargs: See `enforce`.

        Raises:
            BrixConfigurationError: A bad prompt or schema, or a parameter that does not exist.
        """
        ready = self._checked(prompt, schema, kwargs)
        session_id = self.context.session_id

        def begin() -> Asked:
            return self._begun(ready, stream=True, session_id=session_id)

        hand_over = None if self._collect is None else self._hand_over
        return EnforcedStream(self._pipeline, begin, self._adapters[0].text_of, _failure, hand_over)

    async def enforce_batch(
        self,
        prompts: Sequence[Prompt],
        schema: Any,
        max_concurrency: int = MAX_CONCURRENCY,
        progress: bool | Progress = False,
        **kwargs: Any,
    ) -> list[EnforcedOutput]:
        """`enforce` for many prompts, some at a time. One failure is one failed output, and not the end of the rest.

        So is a prompt that is none; the others are sent.

        Args:
            prompts: A list of prompts.
            schema: What each answer must fit.
            max_concurrency: Most of them under way at a time.
            progress: True shows a progress bar on stderr; a function is called with how many are done, and of how
                many. What it raises is logged once.
            **kwargs: See `enforce`.

        Returns:
            Outputs in the order of the prompts.

        Raises:
            BrixConfigurationError: No list of prompts, or a bad schema or parameter; nothing is sent.
        """
        jobs = [partial(self._job, ready) for ready in self._prepared(prompts, schema, kwargs)]
        return await gathered(jobs, max_concurrency, progress)

    def enforce_batch_sync(
        self,
        prompts: Sequence[Prompt],
        schema: Any,
        max_concurrency: int = MAX_CONCURRENCY,
        progress: bool | Progress = False,
        **kwargs: Any,
    ) -> list[EnforcedOutput]:
        """As `enforce_batch`, blocking; in threads."""
        jobs = [partial(self._blocking_job, ready) for ready in self._prepared(prompts, schema, kwargs)]
        return in_threads(jobs, max_concurrency, progress)

    async def _job(self, ready: _Ready | BrixConfigurationError) -> EnforcedOutput:
        """One of a batch: what is wrong with it is its own failure."""
        if isinstance(ready, BrixConfigurationError):
            return unsent(ready, self._adapters[0], self.context.session_id)
        return await self._run(self._begun(ready), final=False)

    def _blocking_job(self, ready: _Ready | BrixConfigurationError) -> EnforcedOutput:
        if isinstance(ready, BrixConfigurationError):
            return unsent(ready, self._adapters[0], self.context.session_id)
        return self._run_sync(self._begun(ready), final=False)

    async def _run(self, asked: Asked, *, final: bool = True) -> EnforcedOutput:
        try:
            output = asked.answered(await self._pipeline.acall(asked.request))
        except Exception as error:
            return asked.failed(_failure(error, final=final))
        if self._collect is not None:
            # In the loop's own pool, which is waited for at the end: what is collected is not lost.
            await asyncio.to_thread(self._hand_over, asked, output)
        return output

    def _run_sync(self, asked: Asked, *, final: bool = True) -> EnforcedOutput:
        try:
            output = asked.answered(self._pipeline.call(asked.request))
        except Exception as error:
            return asked.failed(_failure(error, final=final))
        if self._collect is not None:
            self._hand_over(asked, output)
        return output

    def as_runnable(self, schema: Any, **how: Any) -> Any:
        """This engine as a step of a LangChain chain; see `brix_langchain.as_runnable`.

        Args:
            schema: What the answers must fit.
            **how: See there.

        Raises:
            BrixConfigurationError: `brix_langchain` is not installed.
        """
        for entry in entry_points(group="brix.enforcement", name="as_runnable"):
            return entry.load()(self, schema, **how)
        raise BrixConfigurationError('as_runnable needs LangChain: pip install "brix-guards[langchain]"')

    def _prepared(self, prompts: Any, schema: Any, kwargs: dict[str, Any]) -> list[_Ready | BrixConfigurationError]:
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
            one = isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable)
            instead = "one prompt goes to enforce" if one else "give a list: list(prompts)"
            raise BrixConfigurationError(f"prompts must be a list of prompts, got {prompts!r:.200}; {instead}")
        self._looked_at(schema, kwargs)  # bad for one is bad for all, even if there is none
        found: list[_Ready | BrixConfigurationError] = []
        for prompt in prompts:
            try:
                found.append(self._checked(prompt, schema, kwargs))
            except BrixConfigurationError as error:
                found.append(error)
        return found

    def _checked(self, prompt: Any, schema: Any, kwargs: dict[str, Any]) -> _Ready:
        """What is asked, looked at before anything is begun."""
        compiled, params, system = self._looked_at(schema, kwargs)
        adapter = self._adapters[0]
        messages, codec = adapter.messages(prompt), adapter.endpoint.codec
        if system is not None:
            messages.insert(0, codec.message("system", system))
        if self._collect is not None and not (isinstance(prompt, str) and len(messages) == 1):
            prompt = plain([codec.to_dict(message) for message in messages])
        return _Ready(prompt, schema, messages, params, compiled)

    def _looked_at(self, schema: Any, kwargs: dict[str, Any]) -> tuple[ResponseSchema, dict[str, Any], str | None]:
        """What is asked of every prompt: the schema, the model's parameters and the system text."""
        compiled, params = self.validator.compile(schema), dict(kwargs)
        if "stream" in params:
            raise BrixConfigurationError("stream= is not taken here; use engine.enforce_stream(prompt, schema)")
        system = params.pop("system") if isinstance(params.get("system"), str) else None
        check = getattr(self._adapters[0].endpoint, "check", None)
        if check is not None:
            check(params)
        return compiled, params, system

    def _begun(self, ready: _Ready, *, stream: bool = False, session_id: str | None = None) -> Asked:
        pipeline = self._pipeline
        request = pipeline.request(
            self._adapters[0].endpoint,
            ready.messages,
            ready.params,
            stream=stream,
            session_id=session_id,
            schema=ValidatedSchema(ready.compiled, self.validator, ready.schema),
        )
        return Asked(ready.prompt, ready.schema, request, self._adapters, pipeline.clock)

    def _hand_over(self, asked: Asked, output: EnforcedOutput) -> None:
        """Give a valid answer to the collector, unless it got it when it was generated."""
        if self._collect is None or not output.success or output.cached:
            return
        try:
            self._collect(prompt=asked.prompt, schema=asked.schema, output=output)
        except BrixConfigurationError as error:  # the same for each answer: said once
            if str(error) not in self._told:
                self._told.add(str(error))
                log.error("answers could not be collected, and are in no dataset: %s", error)
        except Exception:  # the answer is paid for, and must not be lost
            log.warning("an answer could not be collected", exc_info=True)


def _failure(error: Exception, *, final: bool = True) -> Exception:
    """The error, if it is a failure.

    Args:
        error: What was raised.
        final: Whether wrong use is raised.

    Raises:
        Exception: `error` itself, when it is none.
    """
    wrong = isinstance(error, BrixInternalError) or (final and isinstance(error, BrixConfigurationError))
    if wrong or is_control_flow(error):
        raise error
    return error


__all__ = ["MAX_CONCURRENCY", "EnforcementEngine"]
