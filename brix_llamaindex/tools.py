"""`guard_tool`: tools that stop an agent which goes round in circles.

A guarded tool is still what it was: its class, metadata and schema. It looks at every call and its result. The third
identical call with the same result gets an error result that says so, in words the model can act on. If it goes on,
`BrixLoopError` ends the agent's run. Likewise a call beyond ``max_calls``: it is not made, the model is told, and then
`BrixRunLimitError` ends the run.

LlamaIndex's agents turn whatever a tool raises into an error result. While they do, they ask the tool for its name;
a tool that is to end the run raises its error there once more, where nobody catches it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

import orjson
from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool, ToolMetadata, ToolOutput
from llama_index.core.tools.types import adapt_to_async_tool

from brix_core.errors import BrixConfigurationError, BrixError
from brix_llamaindex.copies import SharedCopies
from brix_llamaindex.events import announce_tool, numbers_of
from brix_llamaindex.tool_runs import ToolConfig, ToolRuns, run_key

# As in `brix_llamaindex.llm`: a plain class, whose methods open no second span.
if TYPE_CHECKING:
    _Tool = AsyncBaseTool
else:
    _Tool = object


class ToolOptions(TypedDict, total=False):
    """Options of guarded tools; see `brix_llamaindex.tool_runs.ToolConfig`."""

    max_calls: int | None
    exact_loop_threshold: int
    on_loop: Literal["inject_diversity", "raise"]
    diversity_attempts: int
    loop_window: int


def guard_tool(tool: BaseTool | Callable[..., Any], **options: Unpack[ToolOptions]) -> GuardedTool:
    """Guard a tool against being called in circles.

    Calls are counted for each run of an agent; those outside of a run, for their session.

    Args:
        tool: A tool, or a function to make one of. It is left as it is.
        **options: ``max_calls`` in a run; ``exact_loop_threshold`` (3), how often the same call with the same result
            makes a loop; ``on_loop="raise"`` to raise at once; ``diversity_attempts`` (1), how often the model is
            told before; ``loop_window`` (10), how many calls are looked back on.

    Returns:
        A tool of the same class.

    Raises:
        BrixConfigurationError: This is no tool, is guarded already, or an option cannot be used as given.

    Example:
        >>> def search(query: str) -> str:
        ...     "Search the archive."
        ...     return "nothing found"
        >>> tool = guard_tool(search)
        >>> [tool.call(query="Oslo").is_error for _ in range(3)]
        [False, False, True]
        >>> tool.call(query="Oslo")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixLoopError: search({"query":"Oslo"}) came up 4 times without anything new ...
    """
    guarded: GuardedTool = guard_tools([tool], **options)[0]
    return guarded


def guard_tools(tools: Iterable[BaseTool | Callable[..., Any]], **options: Unpack[ToolOptions]) -> list[Any]:
    """Guard the tools of an agent: what one of them finds is progress for all. See `guard_tool`.

    Returns:
        The guarded tools, for ``FunctionAgent(tools=...)``.

    Example:
        >>> def search(query: str) -> str:
        ...     "Search the archive."
        ...     return "nothing found"
        >>> first, second = guard_tools([search, FunctionTool.from_defaults(search, name="deep_search")], max_calls=1)
        >>> second.metadata.name, first.call(query="Oslo").content, first.call(query="Bergen").is_error
        ('deep_search', 'nothing found', True)
    """
    try:
        runs = ToolRuns(ToolConfig(**options))
    except TypeError:
        unknown = ", ".join(sorted(options.keys() - ToolOptions.__annotations__.keys()))
        known = ", ".join(ToolOptions.__annotations__)
        raise BrixConfigurationError(f"unknown option {unknown}; known are {known}") from None
    if isinstance(tools, BaseTool) or not isinstance(tools, Iterable):
        raise BrixConfigurationError(
            f"guard_tools takes a list of tools or functions, got a {type(tools).__name__}; give [tool], or call "
            "guard_tool(tool)"
        )
    return [_guarded(tool, runs) for tool in tools]


class GuardedTool(SharedCopies, _Tool):
    """What `guard_tool` returns: also an instance of the class of the tool it was given.

    Example:
        >>> tool = guard_tool(FunctionTool.from_defaults(lambda city: "sunny", name="weather"))
        >>> isinstance(tool, FunctionTool), tool.metadata.name, str(tool.call(city="Oslo"))
        (True, 'weather', 'sunny')
    """

    if TYPE_CHECKING:  # it has all that the tool has

        def __getattr__(self, name: str) -> Any: ...

    _brix_unpickled = "Pickle the tool, and call guard_tool() where it is loaded"
    _brix_tool: AsyncBaseTool
    _brix_runs: ToolRuns

    @property
    def metadata(self) -> ToolMetadata:
        """That of the tool.

        Raises:
            BrixGuardBlockedError: Whoever asks is about to turn the error that ends the run into a result.
        """
        error = sys.exception()
        if isinstance(error, BrixError) and self._brix_runs.is_ending(error):
            raise error
        return self._brix_tool.metadata

    def __call__(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool."""
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool.

        Raises:
            BrixLoopError: It is called in circles, and the model has been told.
            BrixRunLimitError: It is called more than ``max_calls`` times, and the model has been told.
        """
        refusal = self._announced("run_limit", lambda: self._brix_runs.admit(self._name))
        if refusal is not None:
            return self._error(refusal, kwargs)
        try:
            output = self._brix_tool.call(*args, **kwargs)
        except Exception as error:
            return self._failed(error, args, kwargs)
        return self._judged(output, args, kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool on the event loop.

        Raises:
            BrixLoopError: It is called in circles, and the model has been told.
            BrixRunLimitError: It is called more than ``max_calls`` times, and the model has been told.
        """
        refusal = self._announced("run_limit", lambda: self._brix_runs.admit(self._name))
        if refusal is not None:
            return self._error(refusal, kwargs)
        try:
            output = await self._brix_tool.acall(*args, **kwargs)
        except Exception as error:
            return self._failed(error, args, kwargs)
        return self._judged(output, args, kwargs)

    @property
    def _name(self) -> str:
        return self._brix_tool.metadata.get_name()

    def _judged(self, output: ToolOutput, args: Sequence[Any], kwargs: dict[str, Any]) -> ToolOutput:
        told = self._judge(args, kwargs, _result(output))
        return output if told is None else self._error(told, output.raw_input, output.raw_output)

    def _judge(self, args: Sequence[Any], kwargs: dict[str, Any], result: str) -> str | None:
        arguments = self._arguments(args, kwargs)
        return self._announced("loop", lambda: self._brix_runs.judge(self._name, arguments, result))

    def _announced(self, guard: str, verdict: Callable[[], str | None]) -> str | None:
        """A verdict, with its event where it is against the call."""
        try:
            told = verdict()
        except BrixError as error:
            announce_tool(guard, "raised", *run_key(), tool=self._name, **numbers_of(error))
            raise
        if told is not None:
            config = self._brix_runs.config
            limit = config.max_calls if guard == "run_limit" else config.exact_loop_threshold
            announce_tool(guard, "told", *run_key(), tool=self._name, limit=limit)
        return told

    def _failed(self, error: Exception, args: Sequence[Any], kwargs: dict[str, Any]) -> ToolOutput:
        """A call that failed is raised on, unless it closes a loop."""
        if isinstance(error, BrixError) or _is_control_flow(error):
            raise error
        text = f"Error: {type(error).__name__}: {error}"
        told = self._judge(args, kwargs, text)
        if told is None:
            raise error
        return self._error(told, self._shown(kwargs), text)

    def _error(self, text: str, raw_input: dict[str, Any], raw_output: Any = None) -> ToolOutput:
        return ToolOutput(
            tool_name=self._name,
            content=text,
            raw_input=self._shown(raw_input),
            raw_output=text if raw_output is None else raw_output,
            is_error=True,
        )

    def _shown(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments without the workflow's context, which nobody can compare or serialise."""
        hidden = getattr(self._brix_tool, "ctx_param_name", None)
        return {name: value for name, value in kwargs.items() if name != hidden}

    def _arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Arguments by their names, as JSON: agents give some tools their only argument by position."""
        names = list(self._brix_tool.metadata.get_parameters_dict().get("properties", {})) if args else []
        named = dict(zip(names, args, strict=False)) | ({"": args[len(names) :]} if len(args) > len(names) else {})
        return orjson.dumps(
            {**named, **self._shown(kwargs)}, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str
        ).decode()


def _guarded(tool: Any, runs: ToolRuns) -> GuardedTool:
    if isinstance(tool, GuardedTool):
        raise BrixConfigurationError(f"{tool.metadata.name} is guarded already; guard it once, with all options")
    if not isinstance(tool, BaseTool):
        if isinstance(tool, type) or not callable(tool):
            raise BrixConfigurationError(f"guard_tool takes a LlamaIndex tool or a function, got {tool!r:.200}")
        tool = FunctionTool.from_defaults(tool)
    inner = adapt_to_async_tool(tool)
    made = object.__new__(_guarded_class(type(inner)))
    made.__dict__.update(inner.__dict__, _brix_tool=inner, _brix_runs=runs)
    return made


@lru_cache(maxsize=256)
def _guarded_class(cls: type[AsyncBaseTool]) -> type[GuardedTool]:
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    made = types.new_class(f"Guarded{cls.__name__}", (GuardedTool, cls), exec_body=lambda own: own.update(namespace))
    return cast(type[GuardedTool], made)


def _result(output: ToolOutput) -> str:
    """What a call gave, as it is compared; images and the like by their fields."""
    if output.blocks and all(block.block_type == "text" for block in output.blocks):
        return output.content
    return "\n".join(block.model_dump_json() for block in output.blocks) or str(output.raw_output)


def _is_control_flow(error: Exception) -> bool:
    """Whether it is how a workflow says that a step waits."""
    return type(error).__module__.partition(".")[0] == "workflows"


__all__ = ["GuardedTool", "ToolOptions", "guard_tool", "guard_tools"]
