"""The eight hooks of an LLM, called alike, and what came of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.llms import LLM

from brix_core.demo import DemoServer

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


async def say(llm: LLM, hook: str, messages: Sequence[ChatMessage], **kwargs: Any) -> str:
    """The text of the answer to a chat."""
    given = getattr(llm, hook)(list(messages), **kwargs)
    given = await given if hook.startswith("a") else given
    if "stream" not in hook:
        return str(given.message.content)
    found = [chunk async for chunk in given] if hook.startswith("a") else list(given)
    return str(found[-1].message.content)


def decided(llm: Any, guard_name: str) -> list[str]:
    """What that guard decided about the latest call."""
    return [made["decision"] for made in llm.get_traces()[0]["decisions"] if made["guard"] == guard_name]


def texts(server: DemoServer, number: int = -1) -> str:
    """All that was said in a request."""
    body = server.requests[number].body
    return str(body.get("prompt") or json.dumps(body["messages"]))


def steps(count: int) -> list[ChatMessage]:
    """An agent's conversation of so many equal steps."""
    messages = [ChatMessage("What is known about Oslo?")]
    for number in range(count):
        call = ToolCallBlock(tool_call_id=f"c{number}", tool_name="lookup", tool_kwargs='{"key": "Oslo"}')
        result = ChatMessage("nothing", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": f"c{number}"})
        messages += [ChatMessage(role=MessageRole.ASSISTANT, blocks=[call]), result]
    return messages
