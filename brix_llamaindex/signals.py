"""LlamaIndex classifiers as risk signals of a spec: ``regulated_signals=[classifier]``.

A Pydantic program takes the user's last message for its prompt's only variable; its object's only field is the risk: a
number in [0, 1], a bool, or a label such as "safe" and "unsafe" (`brix_core.regulated.rules.labels`). A selector
chooses among descriptions (`SelectorSignal`). Any other callable is used as it is.

It is called once for each call, off the event loop, before anything is sent. Requests that it makes of an LLM pass the
guards of that LLM, and no others: they are no part of the call that is judged. Give it a guarded LLM of its own, with a
budget; not the one that it judges, which would be judged for being asked, and ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.base.base_selector import BaseSelector
from llama_index.core.types import BasePydanticProgram

from brix_core.errors import BrixConfigurationError

_Options = TypeVar("_Options", bound=Mapping[str, Any])


class SelectorSignal:
    """A selector that says whether a text is risky, by choosing among descriptions.

    Args:
        selector: An `LLMSingleSelector`, an `EmbeddingSingleSelector`, or another.
        risky: Descriptions of risky texts.
        harmless: Descriptions of others.
        weight: The risk where a risky one is chosen, in [0, 1].

    Raises:
        BrixConfigurationError: There are no descriptions, or `selector` is none.

    Example:
        >>> from llama_index.core import MockEmbedding
        >>> from llama_index.core.selectors import EmbeddingSingleSelector
        >>> selector = EmbeddingSingleSelector.from_defaults(embed_model=MockEmbedding(4))
        >>> SelectorSignal(selector, risky=["asks for a dose"], harmless=["anything else"])("Good morning")
        0.0
    """

    def __init__(
        self, selector: BaseSelector, *, risky: Sequence[str], harmless: Sequence[str], weight: float = 1.0
    ) -> None:
        if not isinstance(selector, BaseSelector):
            raise BrixConfigurationError(f"selector must be a LlamaIndex selector, got {selector!r:.200}")
        for name, given in (("risky", risky), ("harmless", harmless)):
            if isinstance(given, str) or not given:
                raise BrixConfigurationError(f"{name} must be a non-empty list of descriptions, got {given!r:.200}")
        self.__name__ = type(selector).__name__
        self._selector = selector
        self._choices = [*risky, *harmless]
        self._risky = len(risky)
        self._weight = weight

    def __call__(self, text: str) -> float:
        """The risk of a text."""
        chosen = self._selector.select(self._choices, text).selections
        return self._weight if any(one.index < self._risky for one in chosen) else 0.0


def with_signals(options: _Options) -> _Options:
    """Options of `guard` with its programs among ``regulated_signals`` as functions.

    Raises:
        BrixConfigurationError: A program whose prompt has not one variable, or a selector without descriptions.
    """
    given = options.get("regulated_signals")
    changed: Any = dict(options)
    if isinstance(given, Mapping):
        changed["regulated_signals"] = {name: _signal(one) for name, one in given.items()}
    elif isinstance(given, Sequence) and not isinstance(given, str):
        changed["regulated_signals"] = [_signal(one) for one in given]
    made: _Options = changed
    return made


def _signal(given: Any) -> Any:
    if isinstance(given, BaseSelector):
        raise BrixConfigurationError(
            f"a {type(given).__name__} chooses among descriptions; say which are risky: "
            "SelectorSignal(selector, risky=[...], harmless=[...])"
        )
    return _function(given) if isinstance(given, BasePydanticProgram) else given


def _function(program: Any) -> Callable[[str], float | bool]:
    from brix_core.regulated.rules.labels import risk_in  # nothing of the regulated domain where nobody uses it

    names: list[str] = list(getattr(getattr(program, "prompt", None), "template_vars", ()))
    if len(names) != 1:
        raise BrixConfigurationError(
            f"the prompt of {type(program).__name__} must have one variable, for the user's message; it has "
            f"{', '.join(names) or 'none'}. Put a function around it: lambda text: program(...)"
        )

    def signal(text: str) -> float | bool:
        return risk_in(program(**{names[0]: text}))

    signal.__name__ = getattr(program.output_cls, "__name__", type(program).__name__)
    return signal


__all__ = ["SelectorSignal", "with_signals"]
