"""Finds the recorded answer to a prompt, and says what differs where there is none (G14)."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

from brix_core.audit.canonical import canonical, chained_digest, parsed
from brix_core.audit.recordings import Record, read
from brix_core.errors import BrixReplayError

MAX_SHOWN: Final = 80
"""Characters of a message shown in an error, around the first difference."""


MAX_COMPARED: Final = 2_000
"""Characters of a message by which the nearest record is found."""


class Recording:
    """The records of a file, each given out once.

    Calls may come in another order than they were recorded in, as those of an agent's parallel steps do: the prompt
    decides. The same prompt, asked several times, gets its answers in the order in which they were recorded.

    Args:
        path: The file.

    Raises:
        BrixReplayError: There is none, or it is no recording.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read(path)
        self._lock = threading.Lock()
        self._left = {id(record): record for record in self.records}
        self._by_prompt: dict[str, deque[Record]] = defaultdict(deque)
        for record in self.records:
            self._by_prompt[record.key].append(record)

    @property
    def left(self) -> int:
        """Records not given out yet."""
        return len(self._left)

    def next(self) -> Record:
        """The next record, whatever was asked.

        Raises:
            BrixReplayError: All have been given out.
        """
        with self._lock:
            if not self._left:
                raise BrixReplayError(self._used_up())
            return self._give(next(iter(self._left.values())))

    def take(self, messages: Sequence[Any], schemas: str | None = None) -> Record:
        """The record of this prompt.

        Args:
            messages: The prompt, in OpenAI's chat format.
            schemas: SHA-256 of what is sent beside it; None for whatever it was.

        Raises:
            BrixReplayError: There is none, or none left; the first difference is named.
        """
        key = chained_digest(messages)
        with self._lock:
            for record in self._by_prompt.get(key, ()):
                if schemas in (None, record.schemas):
                    return self._give(record)
            raise BrixReplayError(self._explanation(key, schemas, parsed(canonical(list(messages)))))

    def _give(self, record: Record) -> Record:
        del self._left[id(record)]
        self._by_prompt[record.key].remove(record)
        return record

    def _explanation(self, key: str, schemas: str | None, messages: list[Any]) -> str:
        same = [record for record in self.records if record.key == key]
        if any(schemas in (None, record.schemas) for record in same):
            return (
                f"{self.path}: this prompt was recorded {len(same)} time(s), and is asked once more; record anew, or "
                "replay with replay_strict=False"
            )
        if same:
            return f"{self.path}: the prompt was recorded, but with other tools or another response format; record anew"
        candidates = list(self._left.values()) or self.records
        if not candidates:
            return f"{self.path} holds no call; record one first"
        nearest = max(candidates, key=lambda record: _likeness(record.messages, messages))
        return f"{self.path}: {first_difference(nearest.messages, messages)}; record anew if that is meant to be"

    def _used_up(self) -> str:
        return f"{self.path}: all {len(self.records)} recorded calls have been replayed; record anew for more"


def first_difference(recorded: Sequence[Any], came: Sequence[Any]) -> str:
    """What differs first between a recorded prompt and another.

    Example:
        >>> first_difference([{"role": "user", "content": "Hello you"}], [{"role": "user", "content": "Hello there"}])
        "messages[0].content differs from character 6 on: recorded 'Hello you', came 'Hello there'"
    """
    index = _common(recorded, came)
    if index == len(recorded) == len(came):
        return "the prompt has the same messages, and yet another hash"
    if index == len(came):
        return f"messages[{index}] is missing: recorded {_shown(recorded[index])}, and the prompt ends before it"
    if index == len(recorded):
        return f"messages[{index}] is new: recorded was a prompt that ends before it, came {_shown(came[index])}"
    before, now = recorded[index], came[index]
    if _common(recorded[index : index + 1], came[index + 1 :]):
        return f"messages[{index}] is new: came {_shown(now)}, before what was recorded there"
    if _common(recorded[index + 1 :], came[index : index + 1]):
        return f"messages[{index}] is missing: recorded {_shown(before)}, and came what follows it"
    if isinstance(before, dict) and isinstance(now, dict):
        names = ["role", *before, *(name for name in now if name not in before)]
        name = next(name for name in names if canonical(before.get(name)) != canonical(now.get(name)))
        return _difference(f"messages[{index}].{name}", before.get(name), now.get(name))
    return _difference(f"messages[{index}]", before, now)


def _likeness(one: Sequence[Any], two: Sequence[Any]) -> tuple[int, float]:
    """How many messages they begin with in common, and how alike the first is that differs."""
    common = _common(one, two)
    if common in (len(one), len(two)):
        return common, 0.0
    before, now = (canonical(messages[common])[:MAX_COMPARED].decode(errors="replace") for messages in (one, two))
    return common, SequenceMatcher(None, before, now).quick_ratio()


def _difference(place: str, before: Any, now: Any) -> str:
    if isinstance(before, str) and isinstance(now, str):
        at = next((n for n, (one, two) in enumerate(zip(before, now, strict=False)) if one != two), None)
        at = min(len(before), len(now)) if at is None else at
        start = max(0, at - MAX_SHOWN // 2)
        one, two = before[start : start + MAX_SHOWN], now[start : start + MAX_SHOWN]
        return f"{place} differs from character {at} on: recorded {one!r}, came {two!r}"
    return f"{place} differs: recorded {_shown(before)}, came {_shown(now)}"


def _shown(value: Any) -> str:
    text = canonical(value).decode(errors="replace")
    return text if len(text) <= 2 * MAX_SHOWN else f"{text[: 2 * MAX_SHOWN]}..."


def _common(one: Sequence[Any], two: Sequence[Any]) -> int:
    count = 0
    for before, now in zip(one, two, strict=False):
        if canonical(before) != canonical(now):
            break
        count += 1
    return count


__all__ = ["MAX_SHOWN", "Recording", "first_difference"]
