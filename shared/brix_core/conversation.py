"""A read-mostly view over a framework's own message list, measured once.

A conversation grows at its end, so a session remembers the prefix it has measured last (its token
count, and the state of its hash) and a call pays only for what is new. The prefix is compared *by
value*, at C speed: a message edited in place is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from brix_core.errors import BrixConfigurationError
from brix_core.tokens import REPLY_PRIMING, count_message, count_tools, tokenizer_for

if TYPE_CHECKING:
    from hashlib import _Hash


MAX_MODELS: Final = 8
"""Models for which a known prefix keeps its token count."""


class Codec(Protocol):
    """Reads one framework's messages. Stateless."""

    def to_dict(self, message: Any) -> dict[str, Any]:
        """The message in OpenAI's chat format: what is counted and hashed."""
        ...

    def snapshot(self, messages: Sequence[Any], known: Any = None) -> Any:
        """A by-value picture of the messages; `known` is that of a prefix of them, to build on."""
        ...

    def extends(self, snapshot: Any, messages: Sequence[Any]) -> bool:
        """Whether the messages begin with those of the snapshot, unchanged."""
        ...


class DictCodec:
    """Messages that are OpenAI-format dicts already.

    Example:
        >>> codec = DictCodec()
        >>> seen = codec.snapshot([{"role": "user", "content": "hi"}])
        >>> codec.extends(seen, [{"role": "user", "content": "hi"}, {"role": "user", "content": "there"}])
        True
        >>> codec.extends(seen, [{"role": "user", "content": "ho"}])
        False
    """

    def to_dict(self, message: Any) -> dict[str, Any]:
        """The message itself, as a plain dict."""
        return message if isinstance(message, dict) else dict(message)

    def snapshot(self, messages: Sequence[Any], known: Any = None) -> list[Any]:
        """Copies that later edits in place do not reach."""
        start = len(known) if known else 0
        return [*(known or ()), *map(_frozen_copy, messages[start:])]

    def extends(self, snapshot: Any, messages: Sequence[Any]) -> bool:
        """Compare by value."""
        return bool(messages[: len(snapshot)] == snapshot)


def _frozen_copy(value: Any) -> Any:
    """Copy dicts and lists all the way down; anything else is shared (`deepcopy` is 20 x slower)."""
    if isinstance(value, dict):
        return {key: item if type(item) is str else _frozen_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_frozen_copy(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What was measured of the first `length` messages. Never changed, but for more token counts."""

    codec: Codec
    snapshot: Any
    length: int
    sha: _Hash
    tokens: dict[str, int]


class PrefixMemory:
    """The prefix measured last. Safe to share between threads: read once, replaced whole."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: _Prefix | None = None


class Conversation:
    """The prompt of one call.

    Args:
        messages: The framework's own messages; the list is copied, the messages are not.
        codec: How to read them.
        memory: Where the session keeps the prefix it knows.

    Example:
        >>> talk = Conversation([{"role": "user", "content": "Hello"}], DictCodec())
        >>> talk.prompt_tokens("gpt-4o")
        8
        >>> talk.sha256()[:8]
        'f21a26f2'
    """

    __slots__ = ("_known", "_memory", "_prefix", "codec", "messages")

    def __init__(self, messages: Iterable[Any], codec: Codec, memory: PrefixMemory | None = None) -> None:
        self.messages = list(messages)
        self.codec = codec
        self._memory = memory if memory is not None else PrefixMemory()
        self._prefix: _Prefix | None = None
        self._known: _Prefix | Literal[False] | None = False  # not looked yet

    def __len__(self) -> int:
        return len(self.messages)

    def prompt_tokens(self, model: str, schemas: Sequence[Any] = ()) -> int:
        """Tokens of the prompt for a model: messages, reply priming, tools and schemas."""
        prefix = self._measured()
        tokens = prefix.tokens.get(model)
        if tokens is None:
            tokens = prefix.tokens[model] = self._count(model, self.messages)
        total = tokens + REPLY_PRIMING
        return total + count_tools(schemas, tokenizer_for(model), model=model) if schemas else total

    def sha256(self) -> str:
        """SHA-256 of ``json.dumps(messages)``, the messages being in OpenAI's chat format."""
        sha = self._measured().sha.copy()
        sha.update(b"]")
        return sha.hexdigest()

    def _measured(self) -> _Prefix:
        if self._prefix is None:
            known = self._beginning()
            if known is None or known.length < len(self.messages):
                known = self._extend(known)
                self._memory.last = known
            self._prefix = known
        return self._prefix

    @property
    def known(self) -> int:
        """How many of the first messages an earlier call had too, unchanged."""
        known = self._beginning()
        return known.length if known is not None else 0

    def _beginning(self) -> _Prefix | None:
        """What the session has measured, if this conversation begins with it."""
        if self._known is False:
            last = self._memory.last
            fits = last is not None and last.codec is self.codec and last.length <= len(self.messages)
            self._known = last if last and fits and self.codec.extends(last.snapshot, self.messages) else None
        return self._known

    def _extend(self, known: _Prefix | None) -> _Prefix:
        start = known.length if known else 0
        fresh = self.messages[start:]
        sha = known.sha.copy() if known else hashlib.sha256(b"[")
        # A copy, since another thread may add a model to the original; of the latest few, since names may be many.
        counted = dict(list(known.tokens.copy().items())[-MAX_MODELS:]) if known else {}
        parts = [json.dumps(self.codec.to_dict(message), default=str) for message in fresh]
        for number, part in enumerate(parts, start):
            if "\\ud" in part:  # an escaped surrogate: half of an emoji, or a lone one
                _refuse_lone_surrogates(json.loads(part), number)
        sha.update((", " if start and parts else "").encode() + ", ".join(parts).encode())
        return _Prefix(
            codec=self.codec,
            snapshot=self.codec.snapshot(self.messages, known.snapshot if known else None),
            length=len(self.messages),
            sha=sha,
            tokens={model: count + self._count(model, fresh) for model, count in counted.items()},
        )

    def _count(self, model: str, messages: Sequence[Any]) -> int:
        tokenizer, to_dict = tokenizer_for(model), self.codec.to_dict
        return sum(count_message(to_dict(message), tokenizer, model=model) for message in messages)


def _refuse_lone_surrogates(message: Any, number: int) -> None:
    """No HTTP body can carry them: better told now than after the money for the call is reserved."""
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BrixConfigurationError(
            f"messages[{number}] holds a lone surrogate ({error.object[error.start]!a}), which UTF-8 cannot carry; "
            "clean the text with text.encode('utf-8', 'replace').decode()"
        ) from error


def text_of(content: Any) -> str:
    """The text in a message's content, whichever shape it has.

    Example:
        >>> text_of([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, "b"])
        'ab'
    """
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        text = content.get("text")
        return text if isinstance(text, str) else ""
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return "".join(map(text_of, content))
    return ""


__all__ = ["Codec", "Conversation", "DictCodec", "PrefixMemory", "text_of"]
