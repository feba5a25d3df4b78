"""guard(): put guards around a LangChain object."""

from __future__ import annotations

import logging
from typing import Any

from langchain_core.language_models import BaseChatModel
from typing_extensions import Unpack

from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions, Parsed, parse
from brix_core.pipeline import Pipeline
from brix_langchain.chat_model import GuardedChatModel
from brix_langchain.endpoint import ChatModelEndpoint
from brix_langchain.own_retries import without_own_retries

log = logging.getLogger(__name__)


def guard(model: BaseChatModel, **options: Unpack[GuardOptions]) -> GuardedChatModel:
    """Put guards around a chat model.

    Args:
        model: Any LangChain chat model. It is left as it is; the guarded one works on a copy whose own
            retries are off, since a retry inside the model would pass by the budget and the rate limit.
        **options: See `brix_core.GuardOptions`. ``fallbacks`` takes chat models.

    Returns:
        A chat model, to be used wherever `model` was.

    Raises:
        BrixConfigurationError: `model` is no chat model or guarded already, or an option cannot be used.

    Example:
        >>> from langchain_core.language_models.fake_chat_models import FakeListChatModel
        >>> model = guard(FakeListChatModel(responses=["Paris"]), per_call_timeout=5, max_retries=2)
        >>> model.invoke("Capital of France?").content
        'Paris'
        >>> model.get_traces()[0]["outcome"]
        'ok'
    """
    parsed = parse(options)
    endpoint = _endpoint(model, parsed, "guard()")
    fallbacks = [_endpoint(other, parsed, "fallbacks", fallback=True) for other in parsed.fallbacks]
    timeout = parsed.configs.get("timeout")
    return GuardedChatModel(
        endpoint,
        fallbacks,
        Pipeline(parsed, fallbacks, _summary(endpoint, parsed)),
        keeps_partial=timeout is not None and timeout.on_timeout == "return_partial",
    )


def _endpoint(model: Any, options: Parsed, place: str, *, fallback: bool = False) -> ChatModelEndpoint:
    if isinstance(model, GuardedChatModel):
        raise BrixConfigurationError(f"{place} got a model that is guarded already; guard it once, with all options")
    if not isinstance(model, BaseChatModel):
        raise BrixConfigurationError(
            f"{place} takes a LangChain chat model such as ChatOpenAI(...), got {type(model).__name__}: {model!r:.200}"
        )
    if "retry" not in options.configs and "max_retries" in model.model_fields_set and _retries(model):
        log.warning(
            "%s retries %s times by itself, which no guard would see: its retries are switched off. "
            "Pass max_retries=%s to guard() to have them back",
            type(model).__name__, _retries(model), _retries(model),
        )  # fmt: skip
    copy = without_own_retries(model)
    metered = "budget" in options.configs or "rate_limit" in options.configs
    if metered and copy is not model and getattr(copy, "stream_usage", True) is None:
        # ChatOpenAI asks for no usage on a custom base_url unless told to, and a budget needs it.
        copy.stream_usage = True  # type: ignore[attr-defined]
    return ChatModelEndpoint(copy, fallback=fallback)


def _summary(endpoint: ChatModelEndpoint, options: Parsed) -> ChatModelEndpoint | None:
    """Who writes summaries: another chat model, or this one's class by another model's name."""
    context = options.configs.get("context")
    given = None if context is None else context.context_summary_model
    if isinstance(given, str):
        return ChatModelEndpoint(endpoint.inner, fallback=True, bound={"model": given})
    return None if given is None else _endpoint(given, options, "context_summary_model", fallback=True)


def _retries(model: BaseChatModel) -> int:
    value = getattr(model, "max_retries", None)
    return value if isinstance(value, int) else 0


__all__ = ["guard"]
