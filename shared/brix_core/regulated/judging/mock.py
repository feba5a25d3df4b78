"""A model for trying things out: it says what it is told to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from brix_core.errors import BrixConfigurationError

MAX_HISTORY: Final = 1_000
"""Prompts that are remembered."""


class MockLLMClient:
    """An `LLMClient` without a model behind it.

    Args:
        responses: The answer, answers that are given in turn, or a function of the prompt.
        default_response: The answer where `responses` is None.

    Raises:
        BrixConfigurationError: `responses` is something else, or an empty list.

    Example:
        >>> import asyncio
        >>> model = MockLLMClient(["Yes.", "No."])
        >>> [asyncio.run(model.complete("Is it?")) for _ in range(3)], model.call_count
        (['Yes.', 'No.', 'Yes.'], 3)
        >>> asyncio.run(MockLLMClient().complete("Hello"))
        'This is a mock response.'
    """

    model = "mock"

    def __init__(
        self,
        responses: str | Sequence[str] | Callable[[str], str] | None = None,
        *,
        default_response: str = "This is a mock response.",
    ) -> None:
        if responses is None or isinstance(responses, str):
            responses = [default_response if responses is None else responses]
        if not callable(responses) and not (
            isinstance(responses, Sequence) and responses and all(isinstance(one, str) for one in responses)
        ):
            raise BrixConfigurationError(
                f"responses must be a str, a non-empty list of str, or a function from a prompt to a str, "
                f"got {responses!r:.200}"
            )
        self._responses = responses
        self._lock = threading.Lock()
        self._history: deque[str] = deque(maxlen=MAX_HISTORY)
        self._count = 0

    @property
    def call_count(self) -> int:
        """How often it was asked."""
        return self._count

    @property
    def call_history(self) -> list[str]:
        """The latest prompts, oldest first."""
        with self._lock:
            return list(self._history)

    async def complete(
        self, prompt: str, *, system: str | None = None, temperature: float = 0.7, max_tokens: int = 1024
    ) -> str:
        """Answer a prompt."""
        with self._lock:
            number = self._count
            self._count += 1
            self._history.append(prompt)
        return self._responses(prompt) if callable(self._responses) else self._responses[number % len(self._responses)]


__all__ = ["MAX_HISTORY", "MockLLMClient"]
