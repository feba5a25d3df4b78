"""Copies of what is guarded: they share its guards, and live in this process only."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Self

from brix_core.errors import BrixConfigurationError
from brix_llamaindex.wiring import twin


class SharedCopies:
    """Shallow copies, also where deep ones are asked for: budgets, limits and traces are not to be had twice."""

    _brix_unpickled: ClassVar[str]
    """What to do where it cannot be pickled."""

    def __copy__(self) -> Self:
        """A copy behind the same guards."""
        made: Self = twin(self)
        return made

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy behind the same guards; what is in it is shared."""
        return self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Not to be pickled: a copy in another process would have a budget and traces of its own.

        Raises:
            BrixConfigurationError: Always.
        """
        raise BrixConfigurationError(
            f"a {type(self).__name__} cannot be pickled: its budget, limits and traces belong to this process. "
            f"{self._brix_unpickled}"
        )


__all__ = ["SharedCopies"]
