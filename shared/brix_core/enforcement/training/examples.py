"""One example of a dataset: a prompt, and the valid data that was made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter

from brix_core.audit.canonical import canonical, digest
from brix_core.enforcement.outputs import EnforcedOutput
from brix_core.turns import text_of

Split = Literal["train", "val", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")

_SYSTEM: Final = ("system", "developer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example.

    Attributes:
        id: SHA-256 of messages, schema and output: equal examples have equal ids.
        prompt: What the user asked, as text; of several messages of the user, one below the other.
        schema: The schema's name.
        json_schema: The schema.
        output: The valid data, as JSON.
        provider: Who answered.
        model: The model that answered.
        tokens_used: Tokens of all requests it took.
        retry_count: How often the model was asked again.
        timestamp: When it was asked, ISO 8601, UTC.
        version: The dataset's version that it belongs to.
        messages: All that was asked, in OpenAI's chat format: the system text, and what was said before.
    """

    id: str
    prompt: str
    schema: str
    json_schema: dict[str, Any]
    output: Any
    provider: str = ""
    model: str = ""
    tokens_used: int = 0
    retry_count: int = 0
    timestamp: str = ""
    version: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, prompt: Any, schema: Any, output: EnforcedOutput, version: str) -> Example:
        """The example in an enforced output."""
        name, json_schema = _described(schema)
        data = _as_json(output.data)
        messages = [_user(prompt)] if isinstance(prompt, str) else plain(prompt)
        text = asked(messages)
        return cls(
            id=digest([text if messages == [_user(text)] else messages, json_schema, data]),
            prompt=text,
            schema=name,
            json_schema=json_schema,
            output=data,
            provider=output.generation.provider,
            model=output.generation.model,
            tokens_used=output.tokens_used,
            retry_count=output.retry_count,
            timestamp=output.generation.timestamp.isoformat(),
            version=version,
            messages=messages,
        )

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Example:
        """The example in a line of a file; one without messages has its prompt for the only one.

        Raises:
            TypeError: It is none.
        """
        found = cls(**fields)
        if not isinstance(found.prompt, str):
            raise TypeError(f"prompt must be a str, got {type(found.prompt).__name__}")
        if not are_messages(found.messages):
            raise TypeError("messages must be a list of dicts")
        return found if found.messages else replace(found, messages=[_user(found.prompt)])

    def fields(self) -> dict[str, Any]:
        """The example as JSON."""
        return asdict(self)

    def split(self, shares: tuple[float, float, float], seed: str = "") -> Split:
        """Which part of the dataset it belongs to: a matter of its messages alone, today and on any machine.

        Equal messages are in one part, so that no test prompt has been trained on.

        Args:
            shares: Of train, val and test.
            seed: Another one makes another division.
        """
        one = self.messages in ([], [_user(self.prompt)])
        said = self.prompt if one else canonical(self.messages).decode(errors="replace")
        number = int.from_bytes(hashlib.sha256(f"{seed}\0{said}".encode(errors="replace")).digest()[:8], "big")
        place = number / 2**64 * sum(shares)
        if place < shares[0]:
            return "train"
        return "val" if place < shares[0] + shares[1] else "test"

    def chat(self, system: str | None = None) -> dict[str, Any]:
        """The example in the format of fine-tuning chat models: its messages, and the answer.

        Args:
            system: A system message, where it has none of its own.

        Source: OpenAI, "Supervised fine-tuning", platform.openai.com/docs/guides/supervised-fine-tuning, 2025: each
        line is ``{"messages": [{"role": ..., "content": ...}, ...]}``.
        """
        turns = self.messages or [_user(self.prompt)]
        if system is not None and not any(turn.get("role") in _SYSTEM for turn in turns):
            turns = [{"role": "system", "content": system}, *turns]
        answer = json.dumps(self.output, ensure_ascii=False)
        return {"messages": [*turns, {"role": "assistant", "content": answer}]}


def plain(messages: Any) -> list[dict[str, Any]]:
    """Messages as plain JSON, copied; what is no dict is what the user says.

    Example:
        >>> plain([{"role": "system", "content": "Be brief."}, "Hello"])
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello'}]
    """
    listed = messages if isinstance(messages, Iterable) and not isinstance(messages, Mapping) else [messages]
    dicts = [dict(message) if isinstance(message, Mapping) else _user(str(message)) for message in listed]
    found: list[dict[str, Any]] = json.loads(json.dumps(dicts, default=str))
    return found


def are_messages(value: Any) -> bool:
    """Whether it is a list of dicts."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def asked(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the user says in messages, as text.

    Example:
        >>> asked([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
        'Hello'
    """
    said = [message.get("content") for message in messages if message.get("role") == "user"]
    return "\n".join(text_of(content) for content in said)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _described(schema: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(schema, Mapping):
        return str(schema.get("title") or "schema"), dict(schema)
    name = getattr(schema, "__name__", str(schema))
    return name, TypeAdapter(schema).json_schema()


def _as_json(data: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json", by_alias=True)
    return TypeAdapter(Any).dump_python(data, mode="json")


__all__ = ["SPLITS", "Example", "Split", "are_messages", "asked", "plain"]
