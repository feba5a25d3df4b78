"""A read-mostly view over a framework's own message list, measured once.

A conversation grows at its end, so a session remembers the prefix it has measured last (its token
count, and the state of its hash) and a call pays only for what is new. The prefix is compared *by
value*, at C speed: a message edited in place is seen.

Guards read a conversation as turns and change it by edits (docs/decisions/0010): an edit makes another conversation
that shares all untouched messages, and counting it costs what was edited.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar

from brix_core.audit.canonical import canonical, chained_digest, parsed
from brix_core.errors import BrixConfigurationError
from brix_core.tokens import REPLY_PRIMING, count_message, count_tools, tokenizer_for
from brix_core.turns import Role, Turn, read_turn

if TYPE_CHECKING:
    from hashlib import _Hash

_T = TypeVar("_T")

MAX_MODELS: Final = 8
"""Models for which a known prefix keeps its token count."""


class Codec(Protocol):
    """Reads one framework's messages. Stateless."""

    def to_dict(self, message: Any) -> dict[str, Any]:
        """The message in OpenAI's chat format: what is counted and hashed."""
        ...

    def turn(self, message: Any) -> Turn:
        """What the message says."""
        ...

    def snapshot(self, messages: Sequence[Any], known: Any = None) -> Any:
        """A by-value picture of the messages; `known` is that of a prefix of them, to build on."""
        ...

    def extends(self, snapshot: Any, messages: Sequence[Any]) -> bool:
        """Whether the messages begin with those of the snapshot, unchanged."""
        ...

    def message(self, role: Role, text: str) -> Any:
        """A new message."""
        ...

    def map_text(self, message: Any, change: Callable[[str], str]) -> Any:
        """A copy of the message whose every text has gone through `change`."""
        ...

    def edit(self, messages: Sequence[Any], system: str, turns: Sequence[tuple[Role, str]]) -> Edit:
        """How the messages become a prompt with more system text and more turns at the end."""
        ...


class Edit(NamedTuple):
    """A change of a list of messages: `head`, then the messages without the first `skip`, then `tail`."""

    head: Sequence[Any]
    skip: int
    tail: Sequence[Any]


class MessageEdits(ABC):
    """The edits of a codec whose prompts are lists of messages."""

    @abstractmethod
    def to_dict(self, message: Any) -> dict[str, Any]:
        """See `Codec`."""

    @abstractmethod
    def message(self, role: Role, text: str) -> Any:
        """See `Codec`."""

    @abstractmethod
    def with_text(self, message: Any, text: str) -> Any:
        """A copy of the message that says `text` at its end, too."""

    def turn(self, message: Any) -> Turn:
        """See `Codec`."""
        return read_turn(self.to_dict(message))

    def edit(self, messages: Sequence[Any], system: str, turns: Sequence[tuple[Role, str]]) -> Edit:
        """See `Codec`."""
        tail = [self.message(role, text) for role, text in turns]
        if not system:
            return Edit((), 0, tail)
        if messages and self.turn(messages[0]).role == "system":
            return Edit([self.with_text(messages[0], system)], 1, tail)
        return Edit([self.message("system", system)], 0, tail)


class DictCodec(MessageEdits):
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

    def message(self, role: Role, text: str) -> dict[str, Any]:
        """A new message."""
        return {"role": role, "content": text}

    def with_text(self, message: Mapping[str, Any], text: str) -> dict[str, Any]:
        """A copy that says `text` at its end, too."""
        return {**message, "content": joined(message.get("content"), text)}

    def map_text(self, message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
        """A copy whose every text has gone through `change`."""
        return {**message, "content": mapped(message.get("content"), change)}


def joined(content: Any, text: str) -> Any:
    r"""A message's content with a further paragraph.

    Example:
        >>> joined("Be brief.", "Be kind."), joined([{"type": "text", "text": "a"}], "b")
        ('Be brief.\n\nBe kind.', [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}])
    """
    if isinstance(content, list | tuple):
        return [*content, {"type": "text", "text": text}]
    return f"{content}\n\n{text}" if content else text


def mapped(content: Any, change: Callable[[str], str]) -> Any:
    """A message's content, each of its texts gone through `change`; texts inside tool results too.

    Example:
        >>> mapped([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}], str.upper)
        [{'type': 'text', 'text': 'A'}, {'type': 'image_url', 'image_url': {'url': 'u'}}]
    """
    if isinstance(content, str):
        return change(content)
    if isinstance(content, list | tuple):
        return [mapped(part, change) for part in content]
    if isinstance(content, Mapping):
        if isinstance(content.get("text"), str):
            return {**content, "text": change(content["text"])}
        if content.get("type") == "tool_result":
            return {**content, "content": mapped(content.get("content"), change)}
    return content


def _frozen_copy(value: Any) -> Any:
    """Copy dicts and lists all the way down; anything else is shared (`deepcopy` is 20 x slower)."""
    if isinstance(value, dict):
        return {key: item if type(item) is str else _frozen_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_frozen_copy(item) for item in value]
    return value


@dataclass(slots=True)
class _Prefix:
    """What was measured of the first `length` messages. Never changed, but for what is found out on demand."""

    codec: Codec
    snapshot: Any
    length: int
    sha: _Hash
    tokens: dict[str, int]
    each: dict[str, list[int]]
    turns: list[Turn] | None = None
    json: tuple[list[Any], str] | None = None


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

    __slots__ = ("_counted", "_edit", "_known", "_memory", "_parent", "_prefix", "added", "codec", "messages")

    def __init__(self, messages: Iterable[Any], codec: Codec, memory: PrefixMemory | None = None) -> None:
        self.messages = list(messages)
        self.codec = codec
        self.added = 0
        self._memory = memory if memory is not None else PrefixMemory()
        self._prefix: _Prefix | None = None
        self._known: _Prefix | Literal[False] | None = False  # not looked yet
        self._parent: Conversation | None = None
        self._edit = Edit((), 0, ())
        self._counted: Callable[[str], int] | None = None

    def __len__(self) -> int:
        return len(self.messages)

    def prompt_tokens(self, model: str, schemas: Sequence[Any] = ()) -> int:
        """Tokens of the prompt for a model: messages, reply priming, tools and schemas."""
        total = self._tokens(model) + REPLY_PRIMING
        return total + count_tools(schemas, tokenizer_for(model), model=model) if schemas else total

    def message_tokens(self, model: str) -> Sequence[int]:
        """Tokens of each message for a model, without the reply priming."""
        if self._parent is not None:
            head, skip, tail = self._edit
            kept = self._parent.message_tokens(model)
            return [*self._count_each(model, head), *(kept[skip:] if skip else kept), *self._count_each(model, tail)]
        prefix = self._measured()
        each = prefix.each.get(model)
        if each is None:
            each = prefix.each[model] = self._count_each(model, self.messages)
        return each

    def turns(self) -> Sequence[Turn]:
        """What each message says."""
        if self._parent is not None:
            head, skip, tail = self._edit
            kept = self._parent.turns()
            return [*self._read(head), *(kept[skip:] if skip else kept), *self._read(tail)]
        prefix = self._measured()
        if prefix.turns is None:
            prefix.turns = self._read(self.messages)
        return prefix.turns

    def as_json(self) -> tuple[Sequence[Any], str]:
        """Each message as plain JSON in OpenAI's chat format, not to be changed, and their chained digest.

        Example:
            >>> Conversation([{"role": "user", "content": "Hello"}], DictCodec()).as_json()[0]
            [{'content': 'Hello', 'role': 'user'}]
        """
        prefix = self._measured()
        if prefix.json is None:
            prefix.json = _added_json(([], ""), self.codec, self.messages)
        return prefix.json

    def adding(self, *turns: tuple[Role, str]) -> Conversation:
        """With further turns at the end, the guards' own.

        Example:
            >>> talk = Conversation([{"role": "user", "content": "Hello"}], DictCodec())
            >>> more = talk.adding(("user", "Answer in French."))
            >>> len(more), more.added, more.prompt_tokens("gpt-4o") - talk.prompt_tokens("gpt-4o")
            (2, 1, 8)
        """
        return self._edited(self.codec.edit(self.messages, "", turns))

    def with_system(self, text: str) -> Conversation:
        """With more text in the system prompt; unchanged when a system message says so already.

        Example:
            >>> talk = Conversation([{"role": "user", "content": "Hello"}], DictCodec()).with_system("Be brief.")
            >>> talk.messages
            [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello'}]
            >>> talk.with_system("Be brief.") is talk
            True
        """
        if any(text in turn.text for turn in self.turns()[:1]):
            return self
        return self._edited(self.codec.edit(self.messages, text, ()))

    def keeping(self, messages: Iterable[Any], tokens: Callable[[str], int] | None = None) -> Conversation:
        """A conversation of other messages in the same codec.

        Args:
            messages: The messages.
            tokens: Their tokens for a model, without the reply priming, where that is known already.
        """
        kept = Conversation(messages, self.codec)
        kept._counted = tokens
        return kept

    def _edited(self, edit: Edit) -> Conversation:
        head, skip, tail = edit
        edited = Conversation([*head, *(self.messages[skip:] if skip else self.messages), *tail], self.codec)
        edited.added = self.added + len(tail)
        edited._parent, edited._edit = self, edit
        return edited

    def _tokens(self, model: str) -> int:
        """Of the messages alone."""
        if self._counted is not None:
            return self._counted(model)
        if self._parent is not None:
            head, skip, tail = self._edit
            gone = self._parent.messages[:skip]
            return self._parent._tokens(model) + self._count(model, [*head, *tail]) - self._count(model, gone)
        prefix = self._measured()
        tokens = prefix.tokens.get(model)
        if tokens is None:
            tokens = prefix.tokens[model] = self._count(model, self.messages)
        return tokens

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
        counted = _latest(known.tokens) if known else {}
        each = _latest(known.each) if known else {}
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
            each={model: counts + self._count_each(model, fresh) for model, counts in each.items()},
            turns=known.turns + self._read(fresh) if known and known.turns is not None else None,
            json=_added_json(known.json, self.codec, fresh) if known and known.json is not None else None,
        )

    def _count(self, model: str, messages: Sequence[Any]) -> int:
        return sum(self._count_each(model, messages))

    def _count_each(self, model: str, messages: Sequence[Any]) -> list[int]:
        tokenizer, to_dict = tokenizer_for(model), self.codec.to_dict
        return [count_message(to_dict(message), tokenizer, model=model) for message in messages]

    def _read(self, messages: Sequence[Any]) -> list[Turn]:
        return list(map(self.codec.turn, messages))


def _added_json(known: tuple[list[Any], str], codec: Codec, fresh: Sequence[Any]) -> tuple[list[Any], str]:
    messages = [parsed(canonical(codec.to_dict(message))) for message in fresh]
    return [*known[0], *messages], chained_digest(messages, known[1])


def _latest(by_model: dict[str, _T]) -> dict[str, _T]:
    """A copy, since another thread may add a model; of the latest few, since names may be many."""
    return dict(list(by_model.copy().items())[-MAX_MODELS:])


def _refuse_lone_surrogates(message: Any, number: int) -> None:
    """No HTTP body can carry them: better told now than after the money for the call is reserved."""
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BrixConfigurationError(
            f"messages[{number}] holds a lone surrogate ({error.object[error.start]!a}), which UTF-8 cannot carry; "
            "clean the text with text.encode('utf-8', 'replace').decode()"
        ) from error


__all__ = ["Codec", "Conversation", "DictCodec", "Edit", "MessageEdits", "PrefixMemory", "joined", "mapped"]
