"""LangChain runnables as risk signals of a spec: ``regulated_signals=[classifier]``.

A runnable takes the user's last message, a text, and gives a number in [0, 1], a bool, a label such as "safe" and
"unsafe" (`brix_core.regulated.rules.labels`), a message that says so, or an object with one such field, as
``with_structured_output`` gives. It is invoked once for each call, off the event loop, before anything is sent.

Requests that it makes of a model pass the guards of that model, and no others: they are no part of the call that is
judged. Give it a guarded model of its own, with a budget; not the one that it judges, which would be judged for being
asked, and ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from brix_core.turns import text_of


def with_signals(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `guard` with its runnables among ``regulated_signals`` as functions.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> options = with_signals({"regulated_signals": {"toxic": FakeListChatModel(responses=["unsafe"])}})
        >>> options["regulated_signals"]["toxic"]("You fool")
        1.0
    """
    given = options.get("regulated_signals")
    if isinstance(given, Mapping):
        return {**options, "regulated_signals": {name: _signal(one) for name, one in given.items()}}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return {**options, "regulated_signals": [_signal(one) for one in given]}
    return dict(options)


def _signal(given: Any) -> Any:
    if not isinstance(given, Runnable):
        return given  # a function, or what the options' own check refuses
    return _function(given)


def _function(runnable: Runnable[Any, Any]) -> Callable[[str], float | bool]:
    from brix_core.regulated.rules.labels import risk_in  # nothing of the regulated domain where nobody uses it

    def signal(text: str) -> float | bool:
        verdict = runnable.invoke(text)
        return risk_in(text_of(verdict.content) if isinstance(verdict, BaseMessage) else verdict)

    signal.__name__ = runnable.get_name()
    return signal


__all__ = ["with_signals"]
