"""A stream of an answer that must fit a schema: the value as it grows, and last the valid instance."""

from __future__ import annotations

from typing import Any, Final, Self

from brix_core.closing import Closing
from brix_core.completion import Completion, CompletionStream

_NOTHING: Final = object()


class ObjectStream(Closing):
    """An answer in the making: iterate with ``for`` or ``async for``, in a ``with`` block or without.

    Gives dicts or lists as they grow, whenever they have changed. They are a preview: not validated, the last string or
    number unfinished, and of the first value in the text. The last item is the valid instance. An answer that turns out
    not to fit raises `BrixSchemaError` instead; with ``stream_mode="validated"`` it is asked for again, and nothing is
    given before it fits. An answer that asks for tools ends the stream without an instance; the calls are in `result`.

    Args:
        source: The stream of the answer's text.

    Example:
        >>> from brix_core import BRIX
        >>> class Geographer:
        ...     def complete(self, prompt, **options):
        ...         return "".join(self.stream(prompt))
        ...     def stream(self, prompt, **options):
        ...         yield from ('{"city": "Os', 'lo", "in": ', '"Norway"}')
        >>> schema = {"type": "object", "properties": {"city": {}, "in": {}}, "required": ["city", "in"]}
        >>> list(BRIX.wrap(Geographer(), response_schema=schema).stream("Where?"))[0]
        {'city': 'Os'}
    """

    def __init__(self, source: CompletionStream) -> None:
        from brix_core.structured.partial_json import PartialJSON  # loads pydantic-core, and is not always needed

        self._source = source
        self._growing = PartialJSON()
        self._last: Any = _NOTHING
        self._ended = False

    @property
    def result(self) -> Completion:
        """The whole answer; the instance is its ``parsed``.

        Raises:
            BrixError: The stream has not ended yet, failed, or was closed before its end.
        """
        return self._source.result

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                text = next(self._source)
            except StopIteration:
                if not self._has_instance():
                    raise
                return self._source.result.parsed
            if self._has_changed(text):
                return self._last

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                text = await anext(self._source)
            except StopAsyncIteration:
                if not self._has_instance():
                    raise
                return self._source.result.parsed
            if self._has_changed(text):
                return self._last

    def _has_changed(self, text: str) -> bool:
        """Add a piece of text; whether there is a new value to show."""
        value = self._growing.feed(text)
        if value is None or value is self._last or value == self._last:
            return False
        self._last = value
        return True

    def _has_instance(self) -> bool:
        """Once, at the end of the text: whether a valid instance is still to be given."""
        ended, self._ended = self._ended, True
        return not ended and self._source.is_parsed

    def close(self) -> None:
        """Stop reading; see `CompletionStream.close`."""
        self._ended = True
        self._source.close()

    async def aclose(self) -> None:
        """Stop reading, as `close`, from a coroutine."""
        self._ended = True
        await self._source.aclose()


__all__ = ["ObjectStream"]
