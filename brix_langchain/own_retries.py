"""The retries a model makes by itself, which would pass by the budget and the rate limit: found, and switched off."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from inspect import getattr_static
from typing import Any, Final, TypeVar, cast

from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.runnables import Runnable
from pydantic import BaseModel

from brix_langchain.refusals import RefusalsAreFinal

log = logging.getLogger(__name__)

SDK_RETRIES: Final = 2
"""How often the SDKs of OpenAI and Anthropic retry, where they are not told."""

_ON_THOSE_SDKS: Final = frozenset(
    {
        ("langchain", "chat_models", "openai"),
        ("langchain", "chat_models", "azure_openai"),
        ("langchain", "chat_models", "anthropic"),
        ("langchain", "llms", "openai"),
    }
)
"""What the classes of langchain-openai and langchain-anthropic, and those made from them, call their place."""

_R = TypeVar("_R", bound=Runnable[Any, Any])


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


def chain_without_own_retries(chain: _R) -> _R:
    """A copy of the runnable in which no model retries by itself; the runnable itself when none does.

    Models are found in whatever runnables hold in their fields, alone, in lists or in mappings: steps, branches,
    bindings, fallbacks. What functions hold is out of reach, as are the nodes of a graph. What is guarded is left as
    it is.
    """
    return cast(_R, _copied(chain, {}))


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = copy = value  # something that holds itself stays
    if isinstance(value, RefusalsAreFinal):
        return value
    if isinstance(value, BaseLanguageModel):
        copy = without_own_retries(cast(BaseChatModel, value))
        if copy is not value and "max_retries" in value.model_fields_set and (retries := cast(Any, value).max_retries):
            log.warning(
                "%s retries %s times by itself, which no guard would see: its retries are switched off in this chain. "
                "Put guard(model, max_retries=%s) into the chain to have them back",
                type(value).__name__, retries, retries,
            )  # fmt: skip
    elif isinstance(value, Runnable) and isinstance(value, BaseModel):
        fields = {name: (held, _copied(held, known)) for name, held in value.__dict__.items()}
        changed = {name: new for name, (held, new) in fields.items() if new is not held}
        copy = value.model_copy(update=changed) if changed else value
    elif type(value) in (list, tuple):
        parts = [_copied(part, known) for part in value]
        copy = type(value)(parts) if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    elif type(value) is dict:
        entries = {key: _copied(part, known) for key, part in value.items()}
        copy = entries if any(entries[key] is not part for key, part in value.items()) else value
    known[id(value)] = copy
    return copy


def described_retries(serialized: Mapping[str, Any]) -> int:
    """How often a model retries by itself, as far as LangChain's description of it tells.

    Fields that have their default are left out of a description.

    Example:
        >>> described_retries({"id": ["langchain", "chat_models", "openai", "ChatOpenAI"], "kwargs": {}})
        2
        >>> described_retries({"id": ["my_package", "MyModel"], "kwargs": {"max_retries": 6}})
        6
        >>> described_retries({"id": ["my_package", "MyModel"], "kwargs": {}})
        0
    """
    settings = serialized.get("kwargs")
    if settings is None:  # a class that does not describe itself
        return 0
    given = settings.get("max_retries")
    if isinstance(given, int):
        return max(given, 0)
    return SDK_RETRIES if tuple(serialized.get("id") or ())[:-1] in _ON_THOSE_SDKS else 0


def has_sdk_client(model: BaseChatModel) -> bool:
    """Whether the model calls a client made by Stainless, which takes ``timeout`` with each call."""
    members = [*model.__dict__.values(), *(getattr(member, "_client", None) for member in model.__dict__.values())]
    made_later = getattr_static(type(model), "_client", None)
    return isinstance(made_later, cached_property) or any(hasattr(member, "with_options") for member in members)


__all__ = ["SDK_RETRIES", "chain_without_own_retries", "described_retries", "has_sdk_client", "without_own_retries"]
