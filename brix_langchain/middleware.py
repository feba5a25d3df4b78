"""BrixMiddleware: the guards inside an agent made by `langchain.agents.create_agent`.

Needs the extra ``langchain`` (``pip install "brix-guards[langchain]"``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, NotRequired, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableBinding
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime
from langgraph.types import Command
from langgraph.typing import ContextT
from typing_extensions import override

from brix_core import checks
from brix_core.errors import BrixConfigurationError, BrixLoopError, BrixSchemaError
from brix_core.looping.steps import Taken
from brix_core.options import parse
from brix_langchain.agent_limits import Limits, RunLimits, told
from brix_langchain.agent_messages import STOPPED, all_answered, last_word, not_run, pending_calls
from brix_langchain.agent_model import AgentModel, letting_through
from brix_langchain.agent_request import GuardedRequest, answer_tools
from brix_langchain.agent_steps import Run, begun, continued, rejected, taken
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.guarding import _endpoint
from brix_langchain.live_state import SharedByCopies
from brix_langchain.pipelines import ModelPipeline
from brix_langchain.signals import with_signals
from brix_langchain.telling import TellsOfItsGuards

MAX_MODELS: Final = 32
"""Models of one agent that are told apart; beyond them, the longest unused is wrapped anew."""

_OF_SCHEMAS: Final = ("inject_schema_in_prompt", "max_healing_seconds", "response_schema", "stream_mode")
"""Options about answers that `guard` fits to a schema."""


class BrixAgentState(AgentState[Any]):
    """Steps and counts of a run, in the agent's state: checkpointed, and in no input or output."""

    brix_run: NotRequired[Annotated[Run, PrivateStateAttr]]
    brix_model_calls: NotRequired[Annotated[int, PrivateStateAttr]]
    brix_tool_calls: NotRequired[Annotated[dict[str, int], PrivateStateAttr]]
    brix_refused: NotRequired[Annotated[dict[str, str], PrivateStateAttr]]


class BrixMiddleware(TellsOfItsGuards, SharedByCopies, AgentMiddleware[AgentState[Any], ContextT]):
    """Guards every model call of an agent, stops it when its tools go round in circles, and limits its calls.

    The session of a budget, a rate, a trace is that of `brix_langchain.guard`: ``configurable.session_id``, else
    ``with brix_core.session(...)``, else the agent's ``thread_id``. Counts are those of one run, and outlast an
    interrupt. A step that recurs is found by `brix_core.guards.LoopGuard`: the same calls with the same results
    `exact_loop_threshold` times in the run. They are remembered in the agent's state, so it makes no difference what a
    summary, or context editing, takes out of the prompt.

    Put it *last* in ``middleware=[...]``, nearest to the model, where it sees each request as it is sent. Whatever
    model another middleware chooses, before it or behind, is guarded, and each of its attempts. Only a middleware
    behind it that makes a `ModelRequest` of its own, or asks a model by itself and answers with that, passes by the
    guards: that is noticed, by an error, when its answer comes. Guard errors end the run: LangChain's retry and
    fallback middlewares let them through, as they do an interrupt. Models that other middlewares call by themselves,
    for a summary or to choose tools, are not the agent's: give them guarded ones.

    A new message in a thread whose run was broken off finds its pending tool calls answered: "was not run". Structured
    output that does not fit (``ToolStrategy``) is asked for again at most `max_schema_retries` times, then
    `BrixSchemaError`; such answers are no steps of a loop. ``ProviderStrategy`` asks once.

    A copy, deep or not, shares all counts.

    Args:
        on_loop: ``"nudge"`` tells the model what recurs and asks for another way, and raises `BrixLoopError` after
            `diversity_attempts` times in vain (``"inject_diversity"`` is the same); ``"end"`` ends the run with a
            message that says so; ``"raise"`` raises at once.
        max_tool_calls: Tool calls of one run: of all tools together, or of each by its name. A name that is none of
            the agent's tools is logged as a warning, once: the tool may come later.
        max_model_calls: Model calls of one run.
        on_limit: What becomes of a call that is one too many. ``"block"``: a tool call is answered with an error and
            the run goes on; a model call ends it. ``"end"`` ends the run either way, ``"raise"`` raises
            `BrixRunLimitError`.
        **options: Those of `brix_core.GuardOptions`, but those of answers with a ``response_schema``, in whose place
            create_agent has ``response_format``. ``tool_loop_detection`` is on unless False is given.

    Raises:
        BrixConfigurationError: An option cannot be used. Later: the agent's model is guarded already, or the middleware
            is pickled.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> guards = BrixMiddleware(on_loop="end", max_tool_calls={"search": 5}, max_retries=2)
        >>> agent = create_agent(FakeListChatModel(responses=["Paris"]), middleware=[guards])
        >>> agent.invoke({"messages": [("user", "Capital of France?")]})["messages"][-1].content
        'Paris'
        >>> guards.get_traces()[0]["outcome"]
        'ok'
    """

    state_schema = BrixAgentState
    _INSTEAD_OF_PICKLING = "Make one on the other side; with a store that both sides reach, they share the sessions"

    def __init__(
        self,
        *,
        on_loop: Literal["nudge", "inject_diversity", "end", "raise"] = "nudge",
        max_tool_calls: Limits | None = None,
        max_model_calls: int | None = None,
        on_limit: Literal["block", "end", "raise"] = "block",
        **options: Any,
    ) -> None:
        super().__init__()
        checks.one_of("on_loop", on_loop, ("nudge", "inject_diversity", "end", "raise"))
        self._ends_loops = on_loop == "end"
        self._limits = RunLimits(max_model_calls, max_tool_calls, on_limit)
        options = {name: value for name, value in with_signals(options).items() if value is not None}
        if "response_format" in options:
            raise BrixConfigurationError(
                "response_format is an option of create_agent(response_format=...), and none of BrixMiddleware; "
                "max_schema_retries here bounds how often an answer that does not fit is asked for again"
            )
        if misplaced := [name for name in _OF_SCHEMAS if name in options]:
            raise BrixConfigurationError(
                f"{', '.join(misplaced)} cannot be used in an agent, whose answer is described by "
                "create_agent(response_format=...); leave it out"
            )
        loops = options.setdefault("tool_loop_detection", True)
        if loops or options.get("exact_loop_detection") or options.get("semantic_loop_detection"):
            options["on_loop"] = "raise" if on_loop in ("end", "raise") else "inject_diversity"
        elif on_loop != "nudge":
            raise BrixConfigurationError(f"on_loop={on_loop!r} has no effect with tool_loop_detection=False")
        self._parsed = parse(options)
        context = self._parsed.configs.get("context")
        writer = None if context is None else context.context_summary_model
        if isinstance(writer, str):
            raise BrixConfigurationError(
                "context_summary_model must be a chat model here, since an agent may have several"
            )
        fallbacks = [_endpoint(other, self._parsed, "fallbacks", fallback=True) for other in self._parsed.fallbacks]
        summary = writer and _endpoint(writer, self._parsed, "context_summary_model", fallback=True)
        self._fallbacks = fallbacks
        self._pipeline = ModelPipeline(self._parsed, fallbacks, summary)
        self._guards_models = bool(loops) or bool(options.keys() - {"tool_loop_detection", "max_schema_retries"})
        self._max_schema_retries: int = self._parsed.configs["schema"].max_schema_retries
        loop = self._parsed.configs.get("loop")
        self._window = (0 if loop is None else loop.reach) + self._max_schema_retries + 1
        self._models: OrderedDict[int, tuple[BaseChatModel, AgentModel]] = OrderedDict()
        self._lock = threading.Lock()

    # A run begins

    @override
    def before_agent(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Count anew; answer the tool calls that an earlier run of the thread left pending."""
        answered = all_answered(state["messages"])
        run = begun(answered, self._window)
        update: dict[str, Any] = {"brix_run": run, "brix_model_calls": 0, "brix_tool_calls": {}}
        if len(answered) > len(state["messages"]):
            update["messages"] = [RemoveMessage(id=REMOVE_ALL_MESSAGES), *answered]
        return update

    @override
    async def abefore_agent(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """As `before_agent`."""
        return self.before_agent(state, runtime)

    # Model calls

    @override
    def wrap_model_call(
        self, request: ModelRequest[ContextT], handler: Callable[[ModelRequest[ContextT]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """One model call, through the guards."""
        with letting_through():
            run = self._so_far(request.state)
            guarded, answers = self._guarded_request(request, run)
            stopped = self._limits.end_of_model_calls(cast(Mapping[str, Any], request.state))
            if stopped is not None:
                return ModelResponse(result=[stopped])
            try:
                response = handler(guarded)
            except BrixLoopError as error:
                return self._ended_by(error)
            return self._judged(request, run, response, answers)

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """One model call, through the guards."""
        with letting_through():
            run = self._so_far(request.state)
            guarded, answers = self._guarded_request(request, run)
            stopped = self._limits.end_of_model_calls(cast(Mapping[str, Any], request.state))
            if stopped is not None:
                return ModelResponse(result=[stopped])
            try:
                response = await handler(guarded)
            except BrixLoopError as error:
                return self._ended_by(error)
            return self._judged(request, run, response, answers)

    @hook_config(can_jump_to=["model", "end"])
    @override
    def after_model(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Take note of what was done; refuse tool calls that are too many; leave, when a guard has ended the run."""
        messages, kept = state["messages"], cast(Mapping[str, Any], state)
        pending = pending_calls(messages)
        made, refused = self._limits.counted(kept, pending)
        update: dict[str, Any] = {
            "brix_run": self._so_far(state),
            "brix_model_calls": kept.get("brix_model_calls", 0) + 1,
            "brix_tool_calls": dict(made),
            "brix_refused": {call_id: told(error) for call_id, error in refused.items()},
        }
        if messages and STOPPED in messages[-1].response_metadata:
            update["jump_to"] = "end"
        elif refused and len(refused) == len(pending):  # no need to ask a human about them
            update["messages"] = [not_run(call, told(refused[call["id"] or ""])) for call in pending]
            update["jump_to"] = "model"
        return update

    @hook_config(can_jump_to=["model", "end"])
    @override
    async def aafter_model(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """As `after_model`."""
        return self.after_model(state, runtime)

    # Tool calls. What a guard refuses inside a tool is no failure of the tool

    @override
    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Refuse what is too much. Guard errors out of a tool pass by retries and error handling."""
        why = request.state.get("brix_refused", {}).get(request.tool_call["id"])
        if why is not None:
            return not_run(request.tool_call, why)
        with letting_through():
            return handler(request)

    @override
    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Refuse what is too much. Guard errors out of a tool pass by retries and error handling."""
        why = request.state.get("brix_refused", {}).get(request.tool_call["id"])
        if why is not None:
            return not_run(request.tool_call, why)
        with letting_through():
            return await handler(request)

    def _so_far(self, state: AgentState[Any]) -> Run:
        """What the agent has done in this run."""
        messages, run = state["messages"], cast(Mapping[str, Any], state).get("brix_run")
        return begun(messages, self._window) if run is None else continued(run, messages, self._window)

    def _guarded_request(
        self, request: ModelRequest[ContextT], run: Run
    ) -> tuple[ModelRequest[ContextT], list[AIMessage] | None]:
        """The request, for one call: with the model behind the guards; and where the answers of such models will be."""
        self._limits.check_names(request.tools)
        if not self._guards_models:
            return request, None
        steps = taken(run, answer_tools(request) if run["steps"] else ())
        answers: list[AIMessage] = []

        def guarding(model: Any) -> BaseChatModel:
            with letting_through():
                return self._guarded(model, steps, answers)

        return GuardedRequest.of(request, guarding), answers

    def _guarded(self, model: Any, steps: Taken, answers: list[AIMessage]) -> BaseChatModel:
        """A model behind the guards."""
        inner = model
        while isinstance(inner, RunnableBinding):
            inner = inner.bound
        if isinstance(inner, AgentModel) and inner._answers is answers:  # another middleware has bound something to it
            return cast(BaseChatModel, model)
        return self._behind_guards(model).for_one_call(steps, answers)

    def _behind_guards(self, model: BaseChatModel) -> AgentModel:
        if isinstance(model, AgentModel) and model._pipeline is self._pipeline:  # of an earlier call
            return model
        if isinstance(model, GuardedChatModel):
            raise BrixConfigurationError(
                f"the agent's model ({model.model}) is guarded already, and would be charged twice. Give all options "
                "to BrixMiddleware and the bare model to create_agent; or keep the guarded model, and only the limits "
                "of BrixMiddleware: BrixMiddleware(max_tool_calls=..., tool_loop_detection=False)"
            )
        with self._lock:
            known = self._models.get(id(model))
            if known is None:
                endpoint = _endpoint(model, self._parsed, "create_agent(model=...)")
                timeout = self._parsed.configs.get("timeout")
                keeps_partial = timeout is not None and timeout.on_timeout == "return_partial"
                guarded = AgentModel(endpoint, self._fallbacks, self._pipeline, keeps_partial=keeps_partial)
                known = self._models[id(model)] = model, guarded
                if len(self._models) > MAX_MODELS:
                    self._models.popitem(last=False)
            self._models.move_to_end(id(model))
        return known[1]

    def _judged(
        self, request: ModelRequest[ContextT], run: Run, response: ModelResponse[Any], answers: list[AIMessage] | None
    ) -> ModelResponse[Any]:
        """The response, with the end of the run where it asks for too many tool calls; see `after_model`, too."""
        if answers is not None and not answers:
            raise BrixConfigurationError(
                "a middleware behind BrixMiddleware answered without the guarded model, so that a call may have passed "
                "by the guards. Put BrixMiddleware last in middleware=[...], or have that middleware change the model "
                "by request.override(model=...)"
            )
        if request.response_format is not None and response.structured_response is None:
            self._bound_heals(run, response)
        ending = self._limits.end_of_tool_calls(cast(Mapping[str, Any], request.state), response.result)
        return replace(response, result=[*response.result, *ending]) if ending else response

    def _ended_by(self, error: BrixLoopError) -> ModelResponse[Any]:
        if not self._ends_loops:
            raise error
        return ModelResponse(result=[last_word(error.guard, error.message)])

    def _bound_heals(self, run: Run, response: ModelResponse[Any]) -> None:
        """Bound how often LangChain asks again for structured output that does not fit.

        Raises:
            BrixSchemaError: It has done so often enough.
        """
        objections = {message.name for message in response.result if isinstance(message, ToolMessage)}
        if not objections:
            return
        attempts = rejected(continued(run, response.result, self._window)["steps"], objections)
        if len(attempts) > self._max_schema_retries:
            name = attempts[-1][0]
            raise BrixSchemaError(
                f"no valid {name} in {len(attempts)} answer(s): max_schema_retries={self._max_schema_retries} is used "
                f"up; raise it, or simplify the schema. The last one: {attempts[-1][1].problems[0][1]}",
                attempts=[attempt for _, attempt in attempts],
                schema_name=name,
            )


__all__ = ["MAX_MODELS", "BrixAgentState", "BrixMiddleware"]
