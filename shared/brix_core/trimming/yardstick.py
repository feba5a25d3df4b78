"""Counting for several models at once: what must fit each of them is measured by the one that counts most.

Example:
    >>> Yardstick(["gpt-4o"]).text("hello world"), Yardstick(["gpt-4o", "claude-opus-4-8"]).text("hello world")
    (2, 4)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from brix_core.conversation import Conversation
from brix_core.tokens import count_message, tokenizer_for


class Yardstick:
    """The largest count of several models.

    Args:
        models: Names of the models.

    Example:
        >>> Yardstick(["gpt-4o"]).message({"role": "user", "content": "hello world"})
        6
    """

    __slots__ = ("_models", "_tokenizers")

    def __init__(self, models: Iterable[str]) -> None:
        self._models = tuple(dict.fromkeys(models))
        self._tokenizers = tuple(dict.fromkeys(map(tokenizer_for, self._models)))

    def also(self, model: str) -> Yardstick:
        """A yardstick for one model more."""
        return self if model in self._models else Yardstick((*self._models, model))

    def text(self, text: str) -> int:
        """Tokens of a text."""
        return max(tokenizer.count(text) for tokenizer in self._tokenizers)

    def message(self, message: dict[str, Any]) -> int:
        """Tokens of a message in OpenAI's chat format."""
        return max(count_message(message, tokenizer_for(model), model=model) for model in self._models)

    def messages(self, conversation: Conversation) -> Sequence[int]:
        """Tokens of each message."""
        figures = [conversation.message_tokens(model) for model in self._models]
        return figures[0] if len(figures) == 1 else list(map(max, *figures))


__all__ = ["Yardstick"]
