"""The eight hooks of an LLM, called alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from llama_index.core.llms import LLM, ChatMessage

HOOKS = (
    "chat",
    "achat",
    "complete",
    "acomplete",
    "stream_chat",
    "astream_chat",
    "stream_complete",
    "astream_complete",
)
STREAMED = tuple(hook for hook in HOOKS if "stream" in hook)
PLAIN = tuple(hook for hook in HOOKS if "stream" not in hook)


async def ask(llm: LLM, hook: str, text: str = "Hello", **kwargs: Any) -> str:
    """The text of the answer, read to the end."""
    return "".join([part async for part in parts(llm, hook, text, **kwargs)])


async def parts(llm: LLM, hook: str, text: str = "Hello", **kwargs: Any) -> AsyncGenerator[str, None]:
    """What arrives, as it arrives."""
    asked: Any = [ChatMessage(text)] if "chat" in hook else text
    result = getattr(llm, hook)(asked, **kwargs)
    if hook.startswith("a"):
        result = await result
    if "stream" not in hook:
        yield _text(result)
    elif hook.startswith("a"):
        try:
            async for chunk in result:
                yield chunk.delta or ""
        finally:
            await result.aclose()
    else:
        assert isinstance(result, Iterator)
        for chunk in result:
            yield chunk.delta or ""


def _text(response: Any) -> str:
    text: str = response.text if hasattr(response, "text") else response.message.content
    return text


def attempts(llm: Any) -> int:
    """Requests that left, by the guard's account."""
    return sum(len(trace["attempts"]) for trace in llm.get_traces())


def outcomes(llm: Any) -> list[str]:
    """How the calls ended, the first one first."""
    return [trace["outcome"] for trace in reversed(llm.get_traces())]
