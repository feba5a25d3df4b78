"""How many calls an agent may make in a run, and what becomes of one too many."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ToolCall

from brix_core import checks
from brix_core.errors import BrixConfigurationError, BrixRunLimitError
from brix_langchain.agent_messages import last_word, not_run, pending_calls

log = logging.getLogger(__name__)

Limits = int | Mapping[str, int]
"""How many calls of tools a run may make: of all together, or of each by its name."""

State = Mapping[str, Any]
"""An agent's state; what was counted is in ``brix_model_calls`` and ``brix_tool_calls``."""


class RunLimits:
    """The limits of a run. See `brix_langchain.BrixMiddleware` for the arguments.

    Raises:
        BrixConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        max_model_calls: int | None,
        max_tool_calls: Limits | None,
        on_limit: Literal["block", "end", "raise"],
    ) -> None:
        checks.one_of("on_limit", on_limit, ("block", "end", "raise"))
        self._on_limit = on_limit
        self._model_calls = None if max_model_calls is None else checks.whole("max_model_calls", max_model_calls, 1)
        self._tool_calls, self._each = _of_tools(max_tool_calls)
        self._checked = not self._each

    def check_names(self, tools: Iterable[Any]) -> None:
        """Warn, the first time, of limits for tools that an agent does not have.

        No error: the agent may get a tool later, or another middleware has left it out of this request.

        Args:
            tools: Those of a model request: tools, or what providers take for one.
        """
        if self._checked:
            return
        self._checked = True
        names = [name for tool in tools if (name := _name_of(tool))]
        for unknown in [name for name in self._each if name not in names]:
            close = get_close_matches(unknown, names, 1)
            log.warning(
                "max_tool_calls limits %r, which is none of the agent's tools (%s)%s",
                unknown,
                ", ".join(names) or "it has none",
                f"; did you mean {close[0]!r}?" if close else "",
            )

    def end_of_model_calls(self, state: State) -> AIMessage | None:
        """The last word of a run that has made all its model calls.

        Raises:
            BrixRunLimitError: It has, and that is an error.
        """
        limit = self._model_calls
        if limit is None or state.get("brix_model_calls", 0) < limit:
            return None
        error = BrixRunLimitError(
            f"this run has made all the model calls it may (max_model_calls={limit}); raise the limit, or ask again",
            limit=limit,
        )
        if self._on_limit == "raise":
            raise error
        return last_word(error.guard, error.message)

    def end_of_tool_calls(self, state: State, answer: Sequence[BaseMessage]) -> list[BaseMessage]:
        """What follows an answer that asks for too many tool calls, when that ends the run; else nothing.

        Raises:
            BrixRunLimitError: It does, and that is an error.
        """
        pending = pending_calls(answer)
        _, refused = self.counted(state, pending)
        if not refused or self._on_limit == "block":
            return []
        first = next(iter(refused.values()))
        if self._on_limit == "raise":
            raise first
        whys = (refused.get(call["id"] or "") for call in pending)
        answers = [
            not_run(call, "the run has ended" if why is None else why.message)
            for call, why in zip(pending, whys, strict=True)
        ]
        return [*answers, last_word(first.guard, first.message)]

    def counted(self, state: State, pending: Sequence[ToolCall]) -> tuple[Counter[str], dict[str, BrixRunLimitError]]:
        """Tool calls of the run, these included, and which of these are too many, by their ids."""
        made: Counter[str] = Counter(state.get("brix_tool_calls", {}))
        refused: dict[str, BrixRunLimitError] = {}
        for call in pending:
            error = self._refusal(call["name"], made)
            if error is None:
                made[call["name"]] += 1
            else:
                refused[call["id"] or ""] = error
        return made, refused

    def _refusal(self, name: str, made: Counter[str]) -> BrixRunLimitError | None:
        """Why one more call of a tool is too many; None when it is not."""
        each = self._each.get(name)
        if each is not None and made[name] >= each:
            what = f"this run has made all the calls of {name} it may (max_tool_calls[{name!r}]={each})"
            return BrixRunLimitError(what, limit=each)
        if self._tool_calls is not None and made.total() >= self._tool_calls:
            what = f"this run has made all the tool calls it may (max_tool_calls={self._tool_calls})"
            return BrixRunLimitError(what, limit=self._tool_calls)
        return None


def told(error: BrixRunLimitError) -> str:
    """What a model is told of a call that was refused."""
    return f"{error.message}. Answer with what you have."


def _name_of(tool: Any) -> str:
    if isinstance(tool, Mapping):  # in a provider's own format
        function = tool.get("function")
        named = function.get("name") if isinstance(function, Mapping) else tool.get("name")
    else:
        named = getattr(tool, "name", None)
    return named if isinstance(named, str) else ""


def _of_tools(given: Limits | None) -> tuple[int | None, dict[str, int]]:
    if given is None:
        return None, {}
    if not isinstance(given, Mapping):
        if not isinstance(given, int):
            raise BrixConfigurationError(
                f"max_tool_calls must be an int >= 0 or a dict of them by tool, got {given!r:.200}"
            )
        return checks.whole("max_tool_calls", given, 0), {}
    for name in given:
        if not isinstance(name, str):
            raise BrixConfigurationError(
                f"max_tool_calls must name tools by their names, got {name!r:.200}; use tool.name"
            )
    return None, {name: checks.whole(f"max_tool_calls[{name!r}]", each, 0) for name, each in given.items()}


__all__ = ["Limits", "RunLimits", "State", "told"]
