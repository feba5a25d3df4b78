"""Copies of an LLM that are ours, and further faces of one: objects of another class that share its state.

A guarded LLM is two objects with one state: what the application holds (a subclass whose hooks are guarded)
and what the endpoint calls (the original class, whose methods call each other unguarded). Because they share
their dict of fields and their dict of private attributes, whatever is set on one is seen by the other.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from llama_index.core.llms import LLM

log = logging.getLogger(__name__)


def private_copy(llm: LLM, *, advise: bool = False) -> LLM:
    """A shallow copy without retries of its own; the original is left as it is.

    Retries inside the LLM would be neither counted nor paid for nor paced: `OpenAILike` makes 12 requests on
    a failing server by default, 3 attempts of LlamaIndex's with 4 requests of the SDK each.

    Args:
        llm: The application's LLM.
        advise: Log a warning when the application had chosen its number of retries.
    """
    own = llm.model_copy()
    for name, value in own.__dict__.items():
        if type(value) in (dict, list):
            own.__dict__[name] = copy.copy(value)
    if own.__pydantic_private__ is None:
        object.__setattr__(own, "__pydantic_private__", {})
    private: dict[str, Any] = own.__pydantic_private__ or {}
    for name, value in private.items():
        private[name] = without_retries(value)
    field = type(llm).model_fields.get("max_retries")
    retries = own.__dict__.get("max_retries")
    if field is not None and retries:
        own.__dict__["max_retries"] = 0
        if advise and retries != field.default:
            log.warning(
                "%s(max_retries=%s) is switched off under guard(): its retries would be neither counted nor "
                "paid for. Give guard(..., max_retries=%s) instead",
                type(llm).__name__, retries, retries,
            )  # fmt: skip
    return own


def without_retries(value: Any) -> Any:
    """An SDK's client of our own that does not retry, on the same connections; anything else unchanged."""
    if callable(getattr(value, "with_options", None)) and hasattr(value, "max_retries"):
        return value.with_options(max_retries=0)
    return value


def face(llm: LLM, cls: type[Any], **changes: Any) -> Any:
    """An object of another class with the state of `llm`.

    Args:
        llm: Whose state.
        cls: The class of the new object.
        **changes: Fields that differ; the two then no longer share their fields, only what is private.
    """
    made = object.__new__(cls)
    object.__setattr__(made, "__dict__", {**llm.__dict__, **changes} if changes else llm.__dict__)
    object.__setattr__(made, "__pydantic_fields_set__", llm.__pydantic_fields_set__)
    object.__setattr__(made, "__pydantic_extra__", llm.__pydantic_extra__)
    object.__setattr__(made, "__pydantic_private__", llm.__pydantic_private__)
    return made


__all__ = ["face", "private_copy", "without_retries"]
