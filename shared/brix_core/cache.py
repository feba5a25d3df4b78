"""A cache: what was answered before, for as long as it holds.

Example:
    >>> cache = InMemoryCache(max_size=100, default_ttl=3600)
    >>> cache.get("capital of France", default="unknown")
    'unknown'
    >>> cache.set("capital of France", "Paris")
    >>> cache.get("capital of France")
    'Paris'
    >>> cache.get_stats()
    {'hits': 1, 'misses': 1, 'hit_rate': '50.00%'}
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final, Protocol

from brix_core import checks
from brix_core.clock import Clock, SystemClock

MISSING: Final = object()
"""No value at all, for ``get(key, MISSING)``: None and False are values."""


class Cache(Protocol):
    """Values by key, bounded in number and in time. Its methods may be called from any thread.

    Values are handed out as they came in. What is kept in memory is the very object; a durable cache can keep only
    what it can write down, and says what that is.
    """

    @property
    def blocking(self) -> bool:
        """Whether methods do I/O, so that an event loop must not run them itself."""
        ...

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` when there is none or its time is over. Counts as a hit or a miss."""
        ...

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value for `ttl` seconds, the cache's own default when left out."""
        ...

    def delete(self, key: str) -> bool:
        """Forget a value. Returns whether there was one."""
        ...

    def clear(self) -> None:
        """Forget all values and the counts of hits and misses."""
        ...

    def get_stats(self) -> dict[str, Any]:
        """``hits``, ``misses``, and their ``hit_rate`` as a percentage in text."""
        ...


class InMemoryCache:
    """Keeps values in this process's memory; of too many, the longest unused goes.

    Args:
        max_size: Most values kept.
        default_ttl: Seconds a value holds, unless `set` says otherwise; ``inf`` is for ever.
        clock: The time.

    Raises:
        BrixConfigurationError: A value is out of range.

    Example:
        >>> cache = InMemoryCache(max_size=2)
        >>> for city in ("Paris", "Rome", "Madrid"):
        ...     cache.set(city, None)
        >>> [cache.get(city, default="gone") for city in ("Paris", "Rome", "Madrid")]
        ['gone', None, None]
    """

    blocking = False

    def __init__(self, max_size: int = 1000, default_ttl: float = 3600.0, clock: Clock | None = None) -> None:
        self._max_size = checks.whole("max_size", max_size, 1)
        self._default_ttl = checks.positive("default_ttl", default_ttl, infinite=True)
        self._clock: Clock = SystemClock() if clock is None else clock
        # Reentrant: forgetting a value may run its destructor, and that may come back here. So each operation takes
        # an entry out and puts it in again, and never relies on finding what it saw a moment before.
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, tuple[Any, float]] = OrderedDict()
        self._hits = 0
        self._misses = 0

    def __len__(self) -> int:
        """Values kept, those whose time is over but that nobody has asked for since included."""
        return len(self._entries)

    def get(self, key: str, default: Any = None) -> Any:
        """See `Cache.get`."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None or self._clock.now() >= entry[1]:
                self._misses += 1
                return default
            self._hits += 1
            self._entries[key] = entry
            return entry[0]

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        seconds = self._default_ttl if ttl is None else checks.positive("ttl", ttl, infinite=True)
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (value, self._clock.now() + seconds)
            while len(self._entries) > self._max_size:
                self._entries.popitem(last=False)

    def delete(self, key: str) -> bool:
        """See `Cache.delete`."""
        with self._lock:
            entry = self._entries.pop(key, None)
            return entry is not None and self._clock.now() < entry[1]

    def clear(self) -> None:
        """See `Cache.clear`."""
        with self._lock:
            self._entries.clear()
            self._hits = self._misses = 0

    def get_stats(self) -> dict[str, Any]:
        """See `Cache.get_stats`."""
        with self._lock:
            hits, misses = self._hits, self._misses
        return {"hits": hits, "misses": misses, "hit_rate": f"{hits / max(1, hits + misses):.2%}"}


__all__ = ["MISSING", "Cache", "InMemoryCache"]
