"""GuardedRunnable: any runnable behind the guards of a whole run, still a runnable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import reduce
from itertools import chain, islice
from operator import add
from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables import ConfigurableFieldSpec, Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import Input, Output
from pydantic import ConfigDict, Field
from typing_extensions import override

from brix_core.errors import BrixConfigurationError
from brix_core.session import Session
from brix_langchain.callbacks import BrixCallbackHandler
from brix_langchain.refusals import RefusalsAreFinal
from brix_langchain.run_guards import RunGuards, session_now
from brix_langchain.runnable_endpoint import AsyncReplay, Replay
from brix_langchain.sessions import session_of


class GuardedRunnable(RefusalsAreFinal, RunnableSerializable[Input, Output]):
    """A runnable whose every run passes the guards. Made by `brix_langchain.guard`.

    It is used like the runnable it wraps: invoke, stream, transform, batch and their async twins, events, in chains
    and graphs. Time limits, retries, rate, circuit breaker, failover and traces are those of a whole *run*. The budget
    is kept *inside*, by callbacks: each call of a model that LangChain tells of is reserved and settled. A run in which
    LangChain tells of none is not metered, which is logged. A guarded model inside, whose money is in the same store,
    keeps the lower of its own cap and the run's. A stream that is closed early stops the models inside.

    Attributes:
        inner: The wrapped runnable.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: Runnable[Input, Output] = Field(exclude=True)

    if TYPE_CHECKING:
        _guards: RunGuards

    def __init__(self, inner: Runnable[Input, Output], guards: RunGuards) -> None:
        fields: dict[str, Any] = {"inner": inner}
        super().__init__(**fields)
        self.__dict__["_guards"] = guards  # hidden from pydantic, which copies it with the rest

    # What the guards know

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of runs, newest first. Those of the model calls inside are `inside.get_traces()`.

        Args:
            session_id: Only those of this session.
        """
        return self._guards.get_traces(session_id)

    @property
    def context(self) -> Session:
        """The session that a run made here and now would belong to."""
        return self._guards.session()

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the active guards, outermost first, those inside last."""
        return self._guards.names

    @property
    def inside(self) -> BrixCallbackHandler | None:
        """What guards the model calls inside, where an option asks for that."""
        return self._guards.inside

    # One run

    @override
    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        return self._call_with_config(cast(Any, self._run), input, config, **kwargs)

    @override
    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        return await self._acall_with_config(cast(Any, self._arun), input, config, **kwargs)

    def _run(self, input: Input, config: RunnableConfig, **kwargs: Any) -> Output:
        return cast(Output, self._guards.pipeline.call(self._guards.begin(input, config, kwargs)).raw)

    async def _arun(self, input: Input, config: RunnableConfig, **kwargs: Any) -> Output:
        response = await self._guards.pipeline.acall(self._guards.begin(input, config, kwargs))
        return cast(Output, response.raw)

    # A stream of it. The session is that of the moment it is asked for

    @override
    def stream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Output]:
        return self.transform(iter([input]), config, **kwargs)

    @override
    def astream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Output]:
        return self.atransform(_one(input), config, **kwargs)

    @override
    def transform(
        self, input: Iterator[Input], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Output]:
        return self._transform_stream_with_config(input, cast(Any, self._streamed), _named(config), **kwargs)

    @override
    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Output]:
        chunks = self._atransform_stream_with_config(input, cast(Any, self._astreamed), _named(config), **kwargs)
        async with aclosing(cast(Any, chunks)):
            async for chunk in chunks:
                yield chunk

    def _streamed(self, input: Iterator[Input], config: RunnableConfig, **kwargs: Any) -> Iterator[Output]:
        """Look two chunks ahead: an input that is one chunk is known as a whole, for hashes and loops."""
        guards = self._guards
        seen = list(input if guards.reads_input else islice(input, 2))
        if seen and (len(seen) == 1 or guards.reads_input):
            request = guards.begin(reduce(add, cast(Any, seen)), config, kwargs, stream=True)
        else:
            request = guards.begin(None, config, kwargs, stream=True, chunks=Replay(chain(seen, input)))
        yield from guards.pipeline.stream(request)

    async def _astreamed(
        self, input: AsyncIterator[Input], config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[Output]:
        guards = self._guards
        seen: list[Any] = []
        async for chunk in input:
            seen.append(chunk)
            if len(seen) == 2 and not guards.reads_input:
                break
        if seen and (len(seen) == 1 or guards.reads_input):
            request = guards.begin(reduce(add, seen), config, kwargs, stream=True)
        else:
            request = guards.begin(None, config, kwargs, stream=True, chunks=AsyncReplay(seen, input))
        async with aclosing(cast(Any, guards.pipeline.astream(request))) as chunks:
            async for chunk in chunks:
                yield chunk

    # What LangChain asks a runnable about itself

    @override
    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        return super().get_name(suffix, name=name or self.name or f"Guarded<{self.inner.get_name()}>")

    @property
    @override
    def InputType(self) -> type[Input]:
        return self.inner.InputType

    @property
    @override
    def OutputType(self) -> type[Output]:
        return self.inner.OutputType

    @override
    def get_input_schema(self, config: RunnableConfig | None = None) -> Any:
        return self.inner.get_input_schema(config)

    @override
    def get_output_schema(self, config: RunnableConfig | None = None) -> Any:
        return self.inner.get_output_schema(config)

    @property
    @override
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        return self.inner.config_specs

    @override
    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        return self.inner.get_graph(config)

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return False

    def __repr__(self) -> str:
        return f"GuardedRunnable({self.inner!r}, guards={list(self.guards)})"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> GuardedRunnable[Input, Output]:
        """A shallow copy: what the guards count is one, however many copies there are."""
        return self.model_copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BrixConfigurationError(
            "a guarded runnable cannot be pickled: its limits are live state. Pickle the runnable it wraps and guard "
            "it again on the other side, with a shared store"
        )


async def _one(input: Any) -> AsyncIterator[Any]:
    yield input


def _named(config: RunnableConfig | None) -> RunnableConfig | None:
    """The configuration, naming the session of this moment: a stream may be read elsewhere."""
    name = session_now(config)
    if name is None or session_of(config) == name:
        return config
    given: Any = config or {}
    return cast(RunnableConfig, {**given, "configurable": {**(given.get("configurable") or {}), "session_id": name}})


__all__ = ["GuardedRunnable"]
