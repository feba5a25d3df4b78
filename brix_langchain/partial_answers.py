"""Answers that a time limit cut short: they say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult, Generation

from brix_core.call import CallRequest, CallResponse


def is_partial(generations: Sequence[Generation]) -> bool:
    """Whether one of the answers says that a time limit cut it short."""
    messages = (getattr(generation, "message", None) for generation in generations)
    return any(
        message is not None and message.response_metadata.get("finish_reason") == "timeout" for message in messages
    )


def marked_result(response: CallResponse) -> ChatResult:
    """LangChain's own result, saying so when a time limit cut it short."""
    result = cast(ChatResult, response.raw)
    if response.partial:
        for generation in result.generations:
            generation.message.response_metadata["finish_reason"] = "timeout"
    return result


def timed_out(request: CallRequest) -> bool:
    """Whether a time limit ended the stream."""
    attempts = request.call.attempts
    return bool(attempts) and attempts[-1].outcome == "timed_out"


def timeout_chunk() -> ChatGenerationChunk:
    """The last chunk of a stream that a time limit ended."""
    return ChatGenerationChunk(
        message=AIMessageChunk(content="", chunk_position="last"),
        generation_info={"finish_reason": "timeout"},
    )


__all__ = ["is_partial", "marked_result", "timed_out", "timeout_chunk"]
