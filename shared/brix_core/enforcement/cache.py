"""Caches of answers."""

from brix_core.cache import Cache, InMemoryCache

BaseCache = Cache
"""What a cache must be able to do."""

__all__ = ["BaseCache", "InMemoryCache"]
