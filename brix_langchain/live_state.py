"""Objects whose counts are live: a copy shares them, and none goes into a pickle."""

from __future__ import annotations

from typing import Any, NoReturn, Self, cast

from brix_core.errors import BrixConfigurationError


class SharedByCopies:
    """For classes with locks and counts. What they count is one, however many copies there are.

    Example:
        >>> import copy
        >>> from brix_langchain import BrixRateLimiter
        >>> limiter = BrixRateLimiter(60, burst_capacity=1)
        >>> limiter.acquire(blocking=False), copy.deepcopy(limiter).acquire(blocking=False)
        (True, False)
    """

    _INSTEAD_OF_PICKLING: str
    """What to do instead of pickling one."""

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BrixConfigurationError(
            f"a {type(self).__name__} cannot be pickled: what it counts and keeps is live state. "
            f"{self._INSTEAD_OF_PICKLING}"
        )


class OneForAllCopies:
    """For guarded models, which are pydantic objects: as `SharedByCopies`, and not in LangChain's own format either."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Its budget and limits are live state."""
        return False

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A shallow copy: what the guards count is one, however many copies there are."""
        return cast(Self, cast(Any, self).model_copy())

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BrixConfigurationError(
            "a guarded model cannot be pickled: its budget and limits are live state. Pickle the model it "
            "wraps and guard it again on the other side, with a shared store"
        )


__all__ = ["OneForAllCopies", "SharedByCopies"]
