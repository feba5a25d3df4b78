"""The cache: least recently used first out, for as long as a value holds, from any thread."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import BrixConfigurationError, Cache, InMemoryCache
from brix_core.cache import MISSING
from tests.support.virtual import VirtualClock


def contents(cache: Cache, keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key in keys if (value := cache.get(key, MISSING)) is not MISSING}


@pytest.mark.parametrize("value", [None, False, 0, "", []])
def test_any_value_is_told_from_a_miss(value: Any) -> None:
    cache = InMemoryCache()
    cache.set("a", value)
    assert cache.get("a", MISSING) is value
    assert cache.get("b", MISSING) is MISSING
    assert cache.get_stats() == {"hits": 1, "misses": 1, "hit_rate": "50.00%"}


def test_a_miss_is_none_unless_told_otherwise() -> None:
    assert InMemoryCache().get("a") is None


def test_the_longest_unused_value_goes_first() -> None:
    cache = InMemoryCache(max_size=3)
    for key in "abc":
        cache.set(key, key)
    cache.get("a")
    cache.set("b", "B")
    cache.set("d", "d")
    assert contents(cache, "abcd") == {"a": "a", "b": "B", "d": "d"}
    assert len(cache) == 3


def test_a_value_holds_for_its_time_and_not_longer() -> None:
    clock = VirtualClock()
    cache = InMemoryCache(default_ttl=10, clock=clock)
    cache.set("default", 1)
    cache.set("short", 2, ttl=2.5)
    cache.set("ever", 3, ttl=math.inf)
    clock.advance(2.25)
    assert contents(cache, ["default", "short", "ever"]) == {"default": 1, "short": 2, "ever": 3}
    clock.advance(0.25)
    assert cache.get("short", MISSING) is MISSING
    clock.advance(7.5)
    assert cache.get("default", MISSING) is MISSING
    assert len(cache) == 1
    clock.advance(1e9)
    assert cache.get("ever") == 3


def test_a_value_set_again_holds_anew() -> None:
    clock = VirtualClock()
    cache = InMemoryCache(default_ttl=10, clock=clock)
    cache.set("a", 1)
    clock.advance(9)
    cache.set("a", 2)
    clock.advance(9)
    assert cache.get("a") == 2


def test_reading_a_value_does_not_make_it_hold_longer() -> None:
    clock = VirtualClock()
    cache = InMemoryCache(default_ttl=10, clock=clock)
    cache.set("a", 1)
    clock.advance(9)
    cache.get("a")
    clock.advance(1)
    assert cache.get("a") is None


def test_values_are_deleted_one_by_one_or_all_with_the_counts() -> None:
    clock = VirtualClock()
    cache = InMemoryCache(default_ttl=10, clock=clock)
    for key in "abc":
        cache.set(key, key)
    assert (cache.delete("a"), cache.delete("a"), cache.get("a")) == (True, False, None)
    cache.clear()
    assert len(cache) == 0
    assert cache.get_stats() == {"hits": 0, "misses": 0, "hit_rate": "0.00%"}
    cache.set("d", "d")
    clock.advance(10)
    assert not cache.delete("d")  # it held no more


@settings(deadline=None)
@given(
    size=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["get", "set", "delete", "wait"]), st.sampled_from("abcdef"))),
)
def test_it_does_what_a_plain_list_of_values_would_do(size: int, steps: list[tuple[str, str]]) -> None:
    clock = VirtualClock()
    cache, plain = InMemoryCache(size, 3.0, clock), OrderedDict[str, tuple[int, float]]()
    asked = found = 0
    for number, (what, key) in enumerate(steps):
        if what == "wait":
            clock.advance(1.0)
        elif what == "set":
            cache.set(key, number)
            plain[key] = number, clock.now() + 3.0
            plain.move_to_end(key)
            while len(plain) > size:
                plain.popitem(last=False)
        elif what == "delete":
            cache.delete(key)
            plain.pop(key, None)
        else:
            value, until = plain.get(key, (MISSING, 0.0))
            held = clock.now() < until
            assert cache.get(key, MISSING) is (value if held else MISSING)
            asked, found = asked + 1, found + held
            plain.move_to_end(key) if held else plain.pop(key, None)
        assert len(cache) == len(plain) <= size
    assert (cache.get_stats()["hits"], cache.get_stats()["misses"]) == (found, asked - found)


def test_threads_together_keep_it_bounded_and_its_counts_right() -> None:
    cache = InMemoryCache(max_size=10)

    def work(seed: int) -> int:
        dice, asked = random.Random(seed), 0
        for _ in range(2_000):
            key = str(dice.randrange(20))
            if dice.random() < 0.5:
                assert cache.get(key, key) == key
                asked += 1
            else:
                cache.set(key, key)
        return asked

    with ThreadPoolExecutor(8) as threads:
        asked = sum(threads.map(work, range(8)))
    stats = cache.get_stats()
    assert len(cache) == 10
    assert stats["hits"] + stats["misses"] == asked
    assert stats["hits"] > 0


def test_a_destructor_may_use_the_cache_that_forgets_its_value() -> None:
    cache = InMemoryCache(max_size=1)

    class Value:
        def __del__(self) -> None:
            cache.set("last words", 1)

    cache.set("a", Value())
    cache.set("b", 2)  # forgets the first, which puts another one in
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: InMemoryCache(max_size=0), "max_size"),
        (lambda: InMemoryCache(max_size=1.5), "max_size"),  # type: ignore[arg-type]
        (lambda: InMemoryCache(default_ttl=0), "default_ttl"),
        (lambda: InMemoryCache(default_ttl=math.nan), "default_ttl"),
        (lambda: InMemoryCache().set("a", 1, ttl=-1), "ttl"),
    ],
)
def test_what_it_cannot_keep_to_is_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(BrixConfigurationError, match=f"^{named} must be"):
        make()
