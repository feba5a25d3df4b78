"""Switching off the retries a model makes by itself: they would pass by the budget and the rate limit."""

from __future__ import annotations

from functools import cached_property
from inspect import getattr_static

from langchain_core.language_models import BaseChatModel


def without_own_retries(model: BaseChatModel) -> BaseChatModel:
    """A copy of the model that does not retry by itself; the model itself when it never does.

    The copy shares the model's connections. SDK clients made by Stainless (openai, anthropic, groq, ...) are
    rebuilt with ``with_options(max_retries=0)``; clients that a model makes on first use are made anew.
    """
    if "max_retries" not in type(model).model_fields:
        return model
    copy = model.model_copy(update={"max_retries": 0})
    for name in list(copy.__dict__):
        if isinstance(getattr_static(type(copy), name, None), cached_property):
            del copy.__dict__[name]
    for name, client in list(copy.__dict__.items()):
        if hasattr(client, "with_options"):  # an SDK client
            copy.__dict__[name] = client.with_options(max_retries=0)
        elif hasattr(getattr(client, "_client", None), "with_options"):  # a resource of one
            copy.__dict__[name] = type(client)(client._client.with_options(max_retries=0))
    return copy


def has_sdk_client(model: BaseChatModel) -> bool:
    """Whether the model calls a client made by Stainless, which takes ``timeout`` with each call."""
    members = [*model.__dict__.values(), *(getattr(member, "_client", None) for member in model.__dict__.values())]
    made_later = getattr_static(type(model), "_client", None)
    return isinstance(made_later, cached_property) or any(hasattr(member, "with_options") for member in members)


__all__ = ["has_sdk_client", "without_own_retries"]
