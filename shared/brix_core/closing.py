"""What is closed at the end of its ``with`` block."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self


class Closing:
    """For ``with`` and ``async with``: closes at the end of the block, however it ends.

    Example:
        >>> class Door(Closing):
        ...     def close(self):
        ...         print("closed")
        ...     async def aclose(self):
        ...         self.close()
        >>> with Door():
        ...     print("open")
        open
        closed
    """

    @abstractmethod
    def close(self) -> None:
        """Close it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close it, from a coroutine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


__all__ = ["Closing"]
